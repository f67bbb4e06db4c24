#!/usr/bin/env python3
"""Compare models: parameters, MACs, time and peak memory of images and of training steps, as Markdown.

    python benchmarks/run.py                                        both backbones, with fresh weights
    python benchmarks/run.py --logdir trained_model/Rain200H trained_model/Rain200H-light --size 321,481
    python benchmarks/run.py --only steps --batch 12 48 --patch_size 120 --precision bfloat16 --compile

The models run in turn (A B A B ...), so a machine that slows down slows all of them; the ratio to the first
model is the median over rounds. Two runs of each are not counted: the first, which may compile, is reported;
peak memory is that of the second. Each row says what ran: its arithmetic, and whether its units are compiled.

A MAC is a multiplication with its addition, of convolutions and matrix products; biases, activations,
pooling and resizing are not counted. FLOPs are twice as many.
"""

import contextlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started as a script, from any folder

from config import STUDENTS, TEACHERS
from engine import optimizer_of, training_step
from machinery import distributed
from machinery.backbones import BACKBONES, AutocastModel, network_from
from machinery.checkpoints import find_checkpoint, load_checkpoint
from machinery.inference import Derainer, best_precision, hardware
from machinery.options import Machine, option, parse
from networks import DerainNet
from stages import SID, SSIDKD
from utils import escape_unprintable, run

Call = Callable[[], object]
Make = Callable[[], nn.Module]  # a new network, with the same weights each time
PRECISIONS = ("float32", "tf32", "bfloat16")
MODES = {"eager": None, "compiled": "default", "compiled, CUDA graphs": "reduce-overhead"}
STEPS = 10  # training steps on CUDA between two readings of the clock


@dataclass(frozen=True)
class Benchmark(Machine):
    logdir: tuple[Path, ...] = option((), "checkpoints or their folders; none: fresh DerainNet and LightNet")
    only: tuple[str, ...] = option(("images", "steps"), "what to measure", ("images", "steps"))
    size: tuple[int, ...] = option(
        (), "height and width of each image; none: 256,256, on CUDA also 1080,1920", min=1, max=16384
    )
    batch: tuple[int, ...] = option((), "crops per step; none: 4, on CUDA also 12 and 64", min=1)
    patch_size: int = option(128, "side of the crops, in pixels", min=16, max=4096)
    stage: str = option("SID", "whose training step; SSID-KD: as many real crops besides", ("SID", "SSID-KD"))
    precision: tuple[str, ...] = option(  # type: ignore[assignment]
        (), "arithmetic; none: all that this device is fast at", PRECISIONS, group="machine"
    )
    compile: bool = option(False, "measure steps with compiled units too, on CUDA also with CUDA graphs")
    rounds: int = option(5, "timed runs of each model", min=1)

    def validate(self) -> str | None:
        if len(self.size) % 2:
            return "--size takes a height and a width for each image, as 256,256 1080,1920"
        if "tf32" in self.precision and not (self.use_GPU and torch.cuda.is_available()):
            return "--precision tf32 exists on CUDA only"
        return super().validate()


class Figures(NamedTuple):
    """Seconds of the first run and of the timed ones, peak memory in bytes; or why there are none."""

    first: float
    times: list[float]
    peak: int
    error: str = ""


def main() -> None:
    options = parse(Benchmark(), __doc__)
    device = distributed.device(options)
    print(f"{hardware(device)}, torch {torch.__version__}, {date.today().isoformat()}")
    models: dict[str, Make] = dict(map(_from_checkpoint, options.logdir))
    models = models or {name: partial(_fresh, name) for name in BACKBONES}
    cuda = device.type == "cuda"
    sizes = list(zip(options.size[::2], options.size[1::2], strict=True)) or [(256, 256)]
    sizes += [(1080, 1920)] * (cuda and not options.size)
    _print_row("model", "parameters", f"MACs, {_shape(sizes[0])}", head=True)
    for name, make in models.items():
        net = make()
        count = sum(each.numel() for each in net.parameters())
        _print_row(name, f"{count:,}", f"{macs(net, sizes[0]) / 1e9:.1f} G")
    columns = "first run, s", "seconds", "per second", "times the first model's speed", "peak memory"
    _print_row("work", "model", "arithmetic", *columns, head=True)
    for work, how, makers, items in _rows(options, models, sizes, device):
        per_reading = STEPS if cuda and work.startswith("step") else 1
        figures = measure(makers, options.rounds, device, per_reading)
        base = next(iter(figures.values()))
        for name, found in figures.items():
            _print_row(work, name, how, *([found.error] if found.error else _cells(found, base, items)))
    scope = "allocated by PyTorch on the card" if cuda else "of the process, Python and PyTorch included"
    print(f"\nSeconds: median (range) of {options.rounds}. Peak memory: {scope}.")


def _rows(
    options: Benchmark, models: Mapping[str, Make], sizes: Sequence[Sequence[int]], device: torch.device
) -> Iterator[tuple[str, str, Mapping[str, Callable[[], Call]], int]]:
    """Work, arithmetic, what makes the call of each model, and the images or crops of a call."""
    cuda = device.type == "cuda"
    fast = ["float32", *["tf32"] * cuda, *["bfloat16"] * (best_precision(device) == "bfloat16")]
    side, modes = options.patch_size, list(MODES)[: 1 + options.compile * (1 + cuda)]
    for mode, precision in product(modes, options.precision or fast):  # compiled last: it takes minutes
        for size in sizes if "images" in options.only and mode == "eager" else ():
            makers = {m: partial(image_call, models[m], precision, size, device) for m in models}
            yield f"image {_shape(size)}", precision, makers, 1
        for batch in options.batch or ((4, 12, 64) if cuda else (4,)) if "steps" in options.only else ():
            how = precision, mode, options, batch, device
            makers = {m: partial(step_call, models[m], *how) for m in models}
            yield f"step {options.stage} {batch}x{side}x{side}", f"{precision}, {mode}", makers, batch


def image_call(make: Make, precision: str, size: Sequence[int], device: torch.device) -> Call:
    """Derains one random image, as eval scripts and derain.py do."""
    distributed.set_arithmetic(precision)
    torch.backends.cudnn.benchmark = False
    derainer = Derainer(make(), device, precision=precision, tile=None)
    rainy = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    return lambda: derainer.derained(rainy)


def step_call(
    make: Make, precision: str, mode: str, options: Benchmark, batch: int, device: torch.device
) -> Call:
    """Takes one training step on random crops, which lie on the device, by the recipe of the backbone."""
    distributed.set_arithmetic(precision)
    torch.backends.cudnn.benchmark = device.type == "cuda"
    table, kind = (TEACHERS, SID) if options.stage == "SID" else (STUDENTS, SSIDKD)
    net: Any = make()
    recipe: Any = table["Rain200H"].with_preset("paper" if isinstance(net, DerainNet) else "light")
    if MODES[mode]:
        net.compile_units(mode=MODES[mode])
    net = AutocastModel(net, precision).to(device)
    stage: Any = kind(recipe)
    stage.aux_networks = nn.ModuleDict(stage.make_aux_networks(net)).to(device)
    optimizer = optimizer_of(recipe, net)
    shape = batch, 3, options.patch_size, options.patch_size
    crops = {name: torch.rand(shape, device=device) for name in ("rainy", "clean", "real_rainy")}
    return lambda: training_step(stage, net, optimizer, [crops])


# ------------------------------------------------------------------------------------------------ measuring


def measure(
    makers: Mapping[str, Callable[[], Call]], rounds: int, device: torch.device, per_reading: int = 1
) -> dict[str, Figures]:
    """Figures of each call, timed in turn. One that fails does not end the others."""
    figures: dict[str, Figures] = {}
    calls: dict[str, Call] = {}
    for name, make in makers.items():
        try:
            call = make()
            first = seconds(call, device)
            reset_peak(device)
            seconds(call, device)
            figures[name], calls[name] = Figures(first, [], peak_memory(device)), call
        except RuntimeError as error:  # out of memory, a kernel or a compiler that is missing
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            figures[name] = Figures(0, [], 0, f"failed: {reason}")
    for _ in range(rounds):
        for name, call in calls.items():
            figures[name].times.append(seconds(call, device, per_reading))
    return figures


def seconds(call: Call, device: torch.device, count: int = 1) -> float:
    """Of one call, on the mean of `count` in a row."""
    finished = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    finished()
    began = time.perf_counter()
    for _ in range(count):
        call()
    finished()
    return (time.perf_counter() - began) / count


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # Linux only
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes, since `reset_peak`; on a CPU, 0 where the system is not Linux."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return 1024 * int(found[1]) if found else 0


def macs(net: nn.Module, size: Sequence[int]) -> int:
    """Of one image of `size` (H, W), without computing it."""
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), counter, torch.no_grad():
        net(torch.empty(1, 3, *size, device=next(net.parameters()).device))
    return counter.get_total_flops() // 2


# ------------------------------------------------------------------------------------------------ the tables


def _fresh(name: str) -> nn.Module:
    torch.manual_seed(0)
    return BACKBONES[name]()


def _from_checkpoint(logdir: Path) -> tuple[str, Make]:
    path = find_checkpoint(logdir, "train one, or give another --logdir")
    content = load_checkpoint(path)
    method = content["recipe"].get("stage", "unknown")
    return escape_unprintable(f"{method}, {path}"), lambda: network_from(content, path)


def _cells(found: Figures, base: Figures, items: int) -> tuple[str, ...]:
    ratios = [a / b for a, b in zip(base.times, found.times, strict=False)]  # none where the first failed
    pace = items / statistics.median(found.times)
    ratio = _number(statistics.median(ratios)) if ratios else ""
    return _number(found.first), _spread(found.times), _number(pace), ratio, f"{found.peak / 1e9:.2f} GB"


def _spread(values: Sequence[float]) -> str:
    """The median, and the range."""
    return "{} ({} to {})".format(*map(_number, (statistics.median(values), min(values), max(values))))


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _shape(size: Sequence[int]) -> str:
    return f"{size[1]}x{size[0]}"


def _print_row(*cells: str, head: bool = False) -> None:
    line = f"| {' | '.join(cells)} |"
    print(f"\n{line}\n{'|---' * len(cells)}|" if head else line, flush=True)


if __name__ == "__main__":
    run(main)
