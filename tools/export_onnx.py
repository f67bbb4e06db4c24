"""A checkpoint's network as ONNX, for other runtimes than PyTorch: any batch, images of any size.

    python tools/export_onnx.py --logdir trained_model/Rain200L+Real --save_path derain.onnx

The input is 'rainy' (N, 3, H, W), float32 RGB in [0, 1], sides of 32 pixels at least; the output 'derained'
is like it, not clamped. Before the file is kept, onnxruntime derains odd sizes by it, and what differs from
PyTorch by more than TOLERANCE stops it. Needs what requirements-extras.txt says for it.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[1]))  # found as a script too, whatever folder one is in

from inference import Derainer, Prepared
from machinery.options import Options, option, parse
from networks import SLOPE, Fusion
from utils import UserError, run, write_atomically

OPSET = 18
TOLERANCE = 1e-4  # of values in [0, 1]: a fortieth of a level of 8 bits
TRACED = (2, 3, 103, 111)  # odd at every resolution, so that no shortcut for even sides is traced
CHECKED = (TRACED, (1, 3, 37, 51), (1, 3, 32, 32), (3, 3, 40, 64), (1, 3, 114, 57))


@dataclass(frozen=True)
class ExportOnnx(Options):
    """The options of this script."""

    logdir: Path = option(Path("trained_model/Rain200L+Real"), "the model: a checkpoint, or its folder")
    save_path: Path = option(Path("derain.onnx"), "the file to write")


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


def main() -> None:
    options = parse(ExportOnnx(), __doc__)
    if not all(map(find_spec, ("onnx", "onnxruntime"))):
        raise UserError("onnx and onnxruntime are missing: pip install -r requirements-extras.txt")
    if options.save_path.suffix != ".onnx":
        raise UserError(f"--save_path {options.save_path}: give a file that ends in .onnx")
    derainer = Derainer.open(options.logdir)
    far = 0.0

    def write(temporary: Path) -> None:
        nonlocal far
        export(derainer.net.net, temporary)
        far = difference(derainer.net, temporary)
        if not far <= TOLERANCE:
            raise UserError(f"{derainer.path}: onnxruntime's result differs from PyTorch's by {far:.1e}")

    write_atomically(options.save_path, write)
    print(f"written: {options.save_path}, opset {OPSET}; onnxruntime's results differ by {far:.1e} at most")


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


def difference(net: Prepared, path: Path) -> float:
    """The largest one between PyTorch's and onnxruntime's results, over the sizes CHECKED."""
    import onnxruntime  # an extra, which `export` alone does without

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape in CHECKED:
        rainy = torch.rand(shape, generator=generator)
        with torch.inference_mode():
            expected = net(rainy).derained.numpy()
        (given,) = session.run(None, {"rainy": rainy.numpy()})
        found.append(float(np.abs(given - expected).max()))
    return max(found)


if __name__ == "__main__":
    run(main)
