"""A network out of PyTorch: as ONNX for any runtime, and by OpenVINO in place of PyTorch on a CPU."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import SLOPE, Fusion
from utils import UserError, about, write_atomically

OPSET = 18
TRACED = (2, 3, 103, 111)  # odd at every resolution, so that no shortcut for even sides is traced


class PortableFusion(Fusion):
    """A Fusion made of convolutions alone, which other runtimes lay out as they like; nothing in place."""

    def forward(self, maps: Iterable[Tensor], plus: Tensor | None = None) -> Tensor:
        first, *others = maps
        size = first.shape[-2:]
        of_first, *slices = self.weight.split(first.shape[1], dim=1)
        fused = F.conv2d(first, of_first, self.bias)
        for level, part in zip(others, slices, strict=True):
            small = F.conv2d(level, part)
            fused = fused + (small if level.shape[-2:] == size else nearest(small, size))
        fused = F.leaky_relu(fused, SLOPE) if self.activated else fused
        return fused if plus is None else fused + plus


def nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest upsampling in whole numbers. ONNX's own divides by a rounded scale: at a side of 114, 171 and
    many more it takes another pixel than PyTorch does."""
    for dim, to in ((2, size[0]), (3, size[1])):
        x = x.index_select(dim, torch.arange(to) * x.shape[dim] // to)
    return x


class Portable(nn.Module):
    """rainy (N, 3, H, W) to derained alone, by a copy of `net`; of other backbones than ours as it is."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).cpu().float().eval()
        for module in self.net.modules():
            if type(module) is Fusion:
                module.__class__ = PortableFusion

    def forward(self, rainy: Tensor) -> Tensor:
        return self.net(rainy).derained


def export(net: nn.Module, path: Path) -> None:
    """Writes `net` to `path`. By the older of torch's two exporters: the newer one makes a program for each
    of our branches on sizes, or none."""
    names: list[str] = ["rainy", "derained"]
    with warnings.catch_warnings():  # of tracing, of the exporter's age
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Portable(net),
            (torch.rand(TRACED),),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=names[:1],
            output_names=names[1:],
            dynamic_axes={name: {0: "images", 2: "height", 3: "width"} for name in names},
        )


class ByOpenVINO:
    """`net` run by OpenVINO: rainy (N, 3, H, W), float32 on the CPU, to derained.

    `file` keeps it as ONNX: written where there is none yet, which takes a minute. `precision` is float32 or
    bfloat16. Raises UserError where OpenVINO or onnx is not installed, and where `file` is broken.
    """

    def __init__(self, net: nn.Module, file: Path, precision: str = "float32") -> None:
        try:
            import onnx  # noqa: F401  which the export needs
            import openvino
        except ImportError:
            raise UserError("OpenVINO and onnx are missing: pip install -r requirements-extras.txt") from None
        if not file.exists():
            write_atomically(file, partial(export, net))
        how = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        }
        with about(file, "delete it, and it is made anew"):
            self.run = openvino.Core().compile_model(str(file), "CPU", how)

    def __call__(self, rainy: Tensor) -> Tensor:
        return torch.from_numpy(self.run({"rainy": rainy.numpy()})[0].copy())  # its own memory is used again
