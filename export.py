"""Export a trained model: the network alone in float16, with its recipe, log and curves, or as ONNX.

    python export.py --logdir trained_model/Rain200H          trained_model/Rain200H/pretrained/
    python export.py --logdir trained_model/Rain200H --save_path derain.onnx

The checkpoint loads like any other (`--logdir`, `--teacher`), in float32; it lacks what `--resume` needs.
TensorBoard's curves are copied; its images and texts, which show a dataset and name folders of a machine, are
left out.

An ONNX file maps 'rainy' (N, 3, H, W), float32 RGB in [0, 1], sides of at least 32 pixels, to 'derained', not
clamped. It needs photographs/requirements.txt; tests compare it with PyTorch on odd sizes.
"""

import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import torch
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor, nn

import networks
from machinery.checkpoints import LATEST, SHIPPED, find_checkpoint, load_checkpoint, save_checkpoint
from machinery.inference import Derainer
from machinery.options import Options, option, parse
from machinery.runlog import LOG, files_of_run
from utils import UserError, file_errors, run, write_atomically

KEPT = ("network", "step", "recipe", "data", "counts", "initialized_from", "released")
TRACED = (2, 3, 103, 111)  # odd sides at every resolution, so that no shortcut for even sides is traced


@dataclass(frozen=True)
class Export(Options):
    logdir: Path = option(Path(), "folder of the run, or its checkpoint", required=True)
    save_path: Path = option(
        Path(), "a new folder, or a file that ends in .onnx; default: pretrained/ in --logdir"
    )


def main() -> None:
    options = parse(Export(), __doc__)
    path = find_checkpoint(options.logdir, "give the folder of a training run")
    save_path = options.save_path if options.save_path != Path() else path.parent / SHIPPED
    if save_path.suffix == ".onnx":
        if not find_spec("onnx"):
            raise UserError("onnx is missing: python -m pip install -r photographs/requirements.txt")
        net = Derainer.open(path).net.net.eval()
        write_atomically(save_path, lambda file: write_onnx(net, file))
        print(f"written: {save_path}")
        return
    target = Path(os.path.realpath(save_path)) / LATEST
    if taken := files_of_run(target.parent):
        raise UserError(f"{target.parent} already has a {taken[0].name}: give another --save_path")
    content = load_checkpoint(path)
    small = {name: content[name] for name in KEPT if name in content}
    small["net"] = {name: value.half() for name, value in content["net"].items()}
    save_checkpoint(target, small)
    with file_errors(save_path, done="written to"):
        if (path.parent / LOG).exists():
            shutil.copy(path.parent / LOG, save_path)
        for file in path.parent.glob("events.out.tfevents.*"):
            copy_curves(file, save_path / file.name)
    print(f"written: {target}, {target.stat().st_size / 1e6:.1f} MB")


def copy_curves(events: Path, target: Path) -> None:
    """Copies TensorBoard's scalars, with the times of the run."""
    with target.open("wb") as file:
        writer = RecordWriter(file)
        for record in RawEventFileLoader(str(events)).Load():
            if all(value.HasField("simple_value") for value in Event.FromString(record).summary.value):
                writer.write(record)


# ------------------------------------------------------------------------------------------------- as ONNX


class Alone(nn.Module):
    """rainy (N, 3, H, W) to derained alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, rainy: Tensor) -> Tensor:
        return self.net(rainy).derained


def write_onnx(net: nn.Module, path: Path) -> None:
    """By the older of torch's two exporters: the newer one specialises on every branch."""
    axes = {name: {0: "images", 2: "height", 3: "width"} for name in ("rainy", "derained")}
    with warnings.catch_warnings(action="ignore"), patch.object(networks, "nearest", in_whole_numbers):
        torch.onnx.export(
            Alone(net),
            (torch.rand(TRACED),),
            str(path),
            dynamo=False,
            opset_version=18,
            input_names=["rainy"],
            output_names=["derained"],
            dynamic_axes=axes,
        )


def in_whole_numbers(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest upsampling in integers: ONNX's own divides by a rounded scale, and differs from PyTorch's at
    sides of 114, 171 and more."""
    for dim, to in ((2, size[0]), (3, size[1])):
        x = x.index_select(dim, torch.arange(to) * x.shape[dim] // to)
    return x


if __name__ == "__main__":
    run(main)
