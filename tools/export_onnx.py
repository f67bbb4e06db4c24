"""A checkpoint's network as ONNX, for other runtimes than PyTorch: any batch, images of any size.

    python tools/export_onnx.py --logdir trained_model/Rain200L+Real --save_path derain.onnx

The input is 'rainy' (N, 3, H, W), float32 RGB in [0, 1], sides of 32 pixels at least; the output 'derained'
is like it, not clamped. Before the file is kept, onnxruntime derains odd sizes by it, and what differs from
PyTorch by more than TOLERANCE stops it. Needs what requirements-extras.txt says for it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # found as a script too, whatever folder one is in

from inference import Derainer, Prepared
from machinery.options import Options, option, parse
from machinery.portable import OPSET, TRACED, export
from utils import UserError, run, write_atomically

TOLERANCE = 1e-4  # of values in [0, 1]: a fortieth of a level of 8 bits
CHECKED = (TRACED, (1, 3, 37, 51), (1, 3, 32, 32), (3, 3, 40, 64), (1, 3, 114, 57))


@dataclass(frozen=True)
class ExportOnnx(Options):
    """The options of this script."""

    logdir: Path = option(Path("trained_model/Rain200L+Real"), "the model: a checkpoint, or its folder")
    save_path: Path = option(Path("derain.onnx"), "the file to write")


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
