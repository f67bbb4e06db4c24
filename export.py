"""Makes a trained model fit to publish: the network alone, in float16, with its recipe, log and curves.

    python export.py --logdir trained_model/Rain200H          trained_model/Rain200H/pretrained/
    python export.py --logdir trained_model/Rain200H --save_path derain.onnx

It loads like any other (`--logdir`, `--teacher`), into float32; only `--resume` needs the whole one. An ONNX
file takes 'rainy' (N, 3, H, W), float32 RGB in [0, 1], sides of 32 pixels at least, and gives 'derained', not
clamped. Before it is kept, onnxruntime derains odd sizes by it; it needs what requirements-extras.txt says.
"""

import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[1]))  # found as a script too, whatever folder one is in

import networks
from inference import Derainer
from machinery.checkpoints import LATEST, SHIPPED, find_checkpoint, load_checkpoint, save_checkpoint
from machinery.options import Options, option, parse
from machinery.runlog import LOG
from utils import UserError, file_errors, run, write_atomically

KEPT = ("network", "step", "recipe", "data", "counts", "initialized_from", "released")
TOLERANCE = 1e-4  # of values in [0, 1]: a fortieth of a level of 8 bits
TRACED = (2, 3, 103, 111)  # odd at every resolution, so that no shortcut for even sides is traced
CHECKED = (TRACED, (1, 3, 37, 51), (1, 3, 32, 32), (3, 3, 40, 64), (1, 3, 114, 57))


@dataclass(frozen=True)
class Export(Options):
    """The options of this script."""

    logdir: Path = option(Path(), "the run's folder, or its checkpoint", required=True)
    save_path: Path = option(Path(), "a folder, or a file that ends in .onnx; none: pretrained/ beside it")


def main() -> None:
    options = parse(Export(), __doc__)
    path = find_checkpoint(options.logdir, "give the folder of a training run")
    save_path = options.save_path if options.save_path != Path() else path.parent / SHIPPED
    if save_path.suffix == ".onnx":
        to_onnx(path, save_path)
        return
    target = Path(os.path.realpath(save_path)) / LATEST
    if target.exists():
        raise UserError(f"{target.parent} has a {LATEST} already: take it away, or give another --save_path")
    content = load_checkpoint(path)
    small = {name: content[name] for name in KEPT if name in content}
    small["net"] = {name: value.half() for name, value in content["net"].items()}
    save_checkpoint(target, small)
    with file_errors(save_path, done="written to"):
        if (path.parent / LOG).exists():
            shutil.copy(path.parent / LOG, save_path)
        for file in path.parent.glob("events.out.tfevents.*"):
            copy_without_pictures(file, save_path / file.name)
    print(f"written: {target}, {target.stat().st_size / 1e6:.1f} MB")


def copy_without_pictures(events: Path, target: Path) -> None:
    """TensorBoard's events as the run wrote them, but for its pictures: they show images of a dataset."""
    with target.open("wb") as file:
        writer = RecordWriter(file)
        for record in RawEventFileLoader(str(events)).Load():
            if not any(value.HasField("image") for value in Event.FromString(record).summary.value):
                writer.write(record)


# ------------------------------------------------------------------------------------------------- as ONNX


def to_onnx(path: Path, file: Path) -> None:
    """Raises UserError where onnxruntime's results differ from PyTorch's; what lay at `file` then stays."""
    if not all(map(find_spec, ("onnx", "onnxruntime"))):
        raise UserError("onnx and onnxruntime are missing: pip install -r requirements-extras.txt")
    net = Derainer.open(path).net.net.eval()
    far = 0.0

    def write(temporary: Path) -> None:
        nonlocal far
        write_onnx(net, temporary)
        far = difference(net, temporary)
        if not far <= TOLERANCE:
            raise UserError(f"{path}: onnxruntime's result differs from PyTorch's by {far:.1e}")

    write_atomically(file, write)
    print(f"written: {file}; onnxruntime's results differ by {far:.1e} at most")


class Alone(nn.Module):
    """rainy (N, 3, H, W) to derained alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, rainy: Tensor) -> Tensor:
        return self.net(rainy).derained


def write_onnx(net: nn.Module, path: Path) -> None:
    """By the older of torch's two exporters: the newer one makes a program for each of our branches."""
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
    """Nearest upsampling. ONNX's own divides by a rounded scale: at a side of 114, 171 and many more it takes
    another pixel than PyTorch does."""
    for dim, to in ((2, size[0]), (3, size[1])):
        x = x.index_select(dim, torch.arange(to) * x.shape[dim] // to)
    return x


def difference(net: nn.Module, path: Path) -> float:
    """The largest one between PyTorch's and onnxruntime's results, over the sizes CHECKED."""
    import onnxruntime  # an extra

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
