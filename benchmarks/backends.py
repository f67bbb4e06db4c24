#!/usr/bin/env python3
"""A network by PyTorch, onnxruntime and OpenVINO on this CPU, in one run: speed, and what it costs.

    python benchmarks/backends.py
    python benchmarks/backends.py --size 321,481 --rounds 5 --threads 1

They run in turn, A B C A B C, on one photograph, and each ratio is taken within a round. 'dB' is the PSNR of
the derained image against PyTorch's in float32. bfloat16 is measured where the processor multiplies it.
Needs requirements-extras.txt.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started as a script, from any folder

from benchmarks.material import photograph
from benchmarks.measure import Spread, in_turn
from inference import CPU, Derainer, best_precision, hardware
from machinery.options import Options, option, parse
from metrix_code.psnr import psnr
from tools.export_onnx import export
from utils import UserError, run

try:
    import onnx  # noqa: F401  which the export needs
    import onnxruntime
    import openvino
except ImportError:
    onnxruntime = openvino = None

Backend = Callable[[np.ndarray], np.ndarray]  # rainy (1, 3, H, W), float32 in [0, 1], to derained


@dataclass(frozen=True)
class Backends(Options):
    """The options of this script."""

    logdir: Path = option(Path("trained_model/Rain200L+Real"), "the model: a checkpoint, or its folder")
    size: tuple[int, ...] = option((256, 256), "height and width of the image", count=2, least=32, most=16384)
    rounds: int = option(5, "times that the image is derained, after a first that does not count", least=1)
    threads: int = option(torch.get_num_threads(), "of each backend", least=1)


def main() -> None:
    options = parse(Backends(), __doc__)
    if openvino is None:
        raise UserError("onnxruntime and OpenVINO are missing: pip install -r requirements-extras.txt")
    torch.set_num_threads(options.threads)
    height, width = options.size
    rainy = photograph((height, width)).numpy()
    loading, backends = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "derain.onnx"
        export(Derainer.open(options.logdir).net.net, model)
        for name, load in loaders(options.logdir, model, options.threads).items():
            began = perf_counter()
            backends[name] = load()
            loading[name] = perf_counter() - began
        results = {
            name: backend(rainy)[0].transpose(1, 2, 0).clip(0, 1) for name, backend in backends.items()
        }
        times = in_turn(
            {name: partial(backend, rainy) for name, backend in backends.items()}, options.rounds, CPU
        )
    first = next(iter(backends))
    print(f"{width}x{height}, {options.logdir}, {hardware(CPU)}, {date.today()}\n")
    print("| | loading, s | an image, s | times as fast as PyTorch | dB |\n|---|---|---|---|---|")
    for name, each in times.items():
        ratio = Spread.of([one / other for one, other in zip(times[first], each, strict=True)])
        near = psnr(results[name], results[first], peak=1.0)
        print(f"| {name} | {loading[name]:.1f} | {Spread.of(each)} | {ratio} | {near:.1f} |")


def loaders(logdir: Path, model: Path, threads: int) -> dict[str, Callable[[], Backend]]:
    """What loads each backend. The first is what others are measured by."""
    found: dict[str, Callable[[], Backend]] = {
        "PyTorch, float32": partial(by_pytorch, logdir, "float32"),
        "onnxruntime, float32": partial(by_onnxruntime, model, threads),
        "OpenVINO, float32": partial(by_openvino, model, threads, "f32"),
    }
    if best_precision(CPU) == "bfloat16":
        found["PyTorch, bfloat16"] = partial(by_pytorch, logdir, "bfloat16")
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        found["OpenVINO, bfloat16"] = partial(by_openvino, model, threads, "bf16")
    return found


def by_pytorch(logdir: Path, precision: str) -> Backend:
    derainer = Derainer.open(logdir, precision=precision)
    return lambda rainy: derainer.derained(torch.from_numpy(rainy[0]))[None].numpy()


def by_onnxruntime(model: Path, threads: int) -> Backend:
    how = onnxruntime.SessionOptions()
    how.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model), how, providers=["CPUExecutionProvider"])
    return lambda rainy: session.run(None, {"rainy": rainy})[0]


def by_openvino(model: Path, threads: int, precision: str) -> Backend:
    how = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    network = openvino.Core().compile_model(str(model), "CPU", how)
    return lambda rainy: network({"rainy": rainy})[0]


if __name__ == "__main__":
    run(main)
