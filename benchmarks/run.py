#!/usr/bin/env python3
"""Measures the project against the plain formulation (plain.py) in one run: speed, memory, losses, loading.

    python benchmarks/run.py                            all of it: 20 minutes on two CPU cores
    python benchmarks/run.py --quick                    the small cases, few rounds: about 2 minutes
    python benchmarks/run.py --only inference,losses
    python benchmarks/run.py --compile                  on CUDA: the units compiled too

What is compared runs in turn, A B A B, and each ratio is taken within a round, so that a machine that slows
down meanwhile slows both. Peak memory is that of a process of its own which does one such call. Figures are
medians with the least and the greatest; a target that was missed is printed as missed.

On a CPU others use too, set OMP_WAIT_POLICY=passive: two threads that wait for each other by spinning are
then several times slower, and no ratio means anything.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import skimage.data
import torch
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started as a script, from any folder

import losses
from benchmarks import plain
from config import STUDENTS, TEACHERS
from datasets.layouts import find_pairs
from DerainDataset import PairCrops
from engine import training_step
from inference import Derainer, Prepared, hardware
from machinery.loading import BatchStream, ImageCache, loader
from networks import Derained, DerainNet
from stages import SID, SSIDKD
from utils import UserError, run, to_tensor, write_atomically, write_image

SECTIONS = ("inference", "step", "losses", "loader", "memory")
FLOP_A_PIXEL = 113.0e9 / 120**2  # of the default network's forward pass; a step takes three times as many
CARD_NEEDS = 240.0  # images a second: a teacher step of 12 in 50 ms

# ------------------------------------------------------------------------------------- what is measured


@dataclass(frozen=True)
class Variant:
    """One way to run the network. `plain` is benchmarks/plain.py, contiguous, float32."""

    name: str
    plain: bool = False
    precision: str = "float32"
    recompute: bool = False
    compile: bool = False


VARIANTS = {
    each.name: each
    for each in (
        Variant("plain", plain=True),
        Variant("float32"),
        Variant("bfloat16", precision="bfloat16"),
        Variant("float32, recompute", recompute=True),
        Variant("bfloat16, recompute", precision="bfloat16", recompute=True),
        Variant("bfloat16, compiled", precision="bfloat16", compile=True),
    )
}


@dataclass(frozen=True)
class Case:
    """Something the network does: an image derained, or a training step."""

    name: str
    size: tuple[int, int]  # height, width
    images: int = 1
    stage: str = ""  # "teacher", "student"; "": inference

    @property
    def flop(self) -> float:
        return FLOP_A_PIXEL * self.size[0] * self.size[1] * self.images * (3 if self.stage else 1)


CASES = {
    "inference 120x120": Case("inference 120x120", (120, 120)),
    "inference 481x321": Case("inference 481x321", (321, 481)),
    "inference 1920x1080": Case("inference 1920x1080", (1080, 1920)),
    "teacher step, 2 at 120": Case("teacher step, 2 at 120", (120, 120), 2, "teacher"),
    "teacher step, 12 at 120": Case("teacher step, 12 at 120", (120, 120), 12, "teacher"),
    "student step, 2+2 at 128": Case("student step, 2+2 at 128", (128, 128), 4, "student"),
}

# (device, case, variant) to: at least so many times faster than plain / at most that share of its peak memory
FASTER = {
    ("cpu", "inference 120x120", "float32"): 1.8,
    ("cpu", "inference 120x120", "bfloat16"): 2.8,
    ("cpu", "inference 481x321", "float32"): 1.5,
    ("cpu", "inference 481x321", "bfloat16"): 2.8,
    ("cpu", "teacher step, 2 at 120", "float32"): 1.3,
    ("cpu", "teacher step, 2 at 120", "bfloat16"): 2.0,
    ("cpu", "student step, 2+2 at 128", "float32"): 1.2,
    ("cpu", "student step, 2+2 at 128", "bfloat16"): 2.0,
    ("cpu", "dark channel, window 128", "project"): 50.0,
    ("cuda", "teacher step, 12 at 120", "bfloat16, compiled"): 4.0,
    ("cuda", "student step, 2+2 at 128", "bfloat16, compiled"): 4.0,
}
SMALLER = {
    ("inference 481x321", "float32"): 0.65,
    ("teacher step, 2 at 120", "bfloat16"): 0.6,
    ("teacher step, 2 at 120", "bfloat16, recompute"): 0.3,
    ("student step, 2+2 at 128", "bfloat16"): 0.6,
    ("student step, 2+2 at 128", "bfloat16, recompute"): 0.3,
}
CARD_STEP = 0.050  # seconds at most, on an H200: teacher step, 12 at 120, bfloat16, compiled


class PlainStudent(nn.Module):
    """The plain network, given synthetic and real images in two passes, as released."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, rainy: Tensor) -> Derained:
        halves = [self.net(half) for half in rainy.chunk(2)]
        return Derained(*(torch.cat(both) for both in zip(*halves, strict=True)))


def prepared(case: Case, variant: Variant, device: torch.device) -> Callable[[], Any]:
    """The work of a case as a function of no arguments, all it needs already in place."""
    torch.manual_seed(0)
    own = DerainNet()
    if variant.recompute:
        own.recompute_units()
    if variant.compile:
        own.compile_units()
    net: nn.Module = plain.plain(own) if variant.plain else Prepared(own, variant.precision)
    if variant.plain and case.stage == "student":
        net = PlainStudent(net)
    net = net.to(device)
    rainy = photograph(case.size).expand(case.images, -1, -1, -1).to(device)
    return step_of(net, rainy, case) if case.stage else deraining(net, rainy)


def deraining(net: nn.Module, rainy: Tensor) -> Callable[[], Tensor]:
    def derain() -> Tensor:
        with torch.inference_mode():
            return net(rainy).derained

    return derain


def step_of(net: nn.Module, rainy: Tensor, case: Case) -> Callable[[], Any]:
    """The very step of the training. Of the plain network too: the ratio is to praise the network alone."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-4, fused=rainy.device.type == "cuda")
    if case.stage == "teacher":
        batch = {"rainy": rainy, "clean": torch.rand_like(rainy)}
        stage: SID | SSIDKD = SID(TEACHERS["Rain200H"])
    else:
        synthetic, real = rainy.chunk(2)
        batch = {"rainy": synthetic, "clean": torch.rand_like(synthetic), "real_rainy": real}
        stage = SSIDKD(replace(STUDENTS["Rain200H"], patch_size=case.size[0]))
    return lambda: training_step(stage, net, optimizer, [batch])


def photograph(size: tuple[int, int]) -> Tensor:
    """A photograph that ships with scikit-image, scaled, under a little noise: (1, 3, H, W) in [0, 1]."""
    image = cv2.resize(skimage.data.astronaut(), size[::-1], interpolation=cv2.INTER_AREA)
    noise = np.random.default_rng(0).normal(0, 20, image.shape)
    return to_tensor(np.clip(image + noise, 0, 255).astype(np.uint8))[None]


# ----------------------------------------------------------------------------------------- how it is measured


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of repeated measurements."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        if self.least == self.greatest:
            return f"{self.median:.3g}"
        return f"{self.median:.3g} ({self.least:.3g} to {self.greatest:.3g})"


@dataclass(frozen=True)
class Row:
    """One line of the table. `ratio` is to plain: times faster, or the share of its memory."""

    what: str
    how: str
    value: Spread
    unit: str
    ratio: Spread | None = None
    target: str = ""
    reached: bool | None = None
    note: str = ""

    def cells(self) -> list[str]:
        verdict = "" if self.reached is None else "reached" if self.reached else "MISSED"
        ratio = str(self.ratio) if self.ratio else ""
        return [self.what, self.how, f"{self.value} {self.unit}", ratio, self.target, verdict, self.note]


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def in_turn(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    once: Sequence[str] = (),
) -> dict[str, list[float]]:
    """Seconds of each call, in every round one of each. A first round, which warms up, is not counted.

    What is named in `once` runs in the first counted round alone.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            if name in once and number != 1:
                continue
            took = seconds(call, device)
            if number:
                times[name].append(took)
    return times


def speed_rows(
    what: str, times: Mapping[str, Sequence[float]], options: argparse.Namespace, flop: float = 0
) -> list[Row]:
    """Rows of what ran in turn, "plain" among it or not. `flop`: operations of one call."""
    rows = []
    for how, taken in times.items():
        pairs = zip(times.get("plain", ()), taken, strict=False)
        ratio = Spread.of([a / b for a, b in pairs]) if "plain" in times and how != "plain" else None
        bound = FASTER.get((options.device.type, what, how))
        spread = Spread.of(taken)
        note = rate_note(flop / spread.median, options) if flop else ""
        target, reached = (
            (f"at least {bound:g} times", ratio.median >= bound) if bound and ratio else ("", None)
        )
        rows.append(Row(what, how, spread, "s", ratio, target, reached, note))
    return rows


def rate_note(rate: float, options: argparse.Namespace) -> str:
    share = rate / max(options.matrix_rates.values())
    return f"{rate / 1e9:,.0f} GFLOP/s, {share:.0%} of the best matrix product"


def peak_of(case: Case, variant: Variant, options: argparse.Namespace) -> dict[str, float]:
    """Peak memory in bytes and seconds of one call, from a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--device", options.device.type]
    done = subprocess.run(
        [*command, "--peak", case.name, variant.name],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed: too little memory?"])[-1]
        raise UserError(f"{case.name}, {variant.name}, ended with exit code {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def tell_peak(case: Case, variant: Variant, device: torch.device) -> None:
    """What such a process does."""
    call = prepared(case, variant, device)
    took = seconds(call, device)
    print(json.dumps({"bytes": peak_memory(device), "seconds": took}))


def peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # not getrusage's ru_maxrss where it can be helped: a process inherits its parent's
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return 1024 * int(found[1])
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_rows(
    case: Case, hows: Sequence[str], options: argparse.Namespace, processes: int = 1
) -> list[Row]:
    """Peaks, of several processes where chance counts: how whole the heap stays differs from run to run."""
    peaks = {
        how: [peak_of(case, VARIANTS[how], options)["bytes"] / 1e9 for _ in range(processes)] for how in hows
    }
    rows = []
    for how, taken in peaks.items():
        share = Spread.of([a / b for a, b in zip(taken, peaks["plain"], strict=True)])
        bound = SMALLER.get((case.name, how)) if options.device.type == "cpu" else None
        target, reached = (f"at most {bound:g}", share.median <= bound) if bound else ("", None)
        ratio = None if how == "plain" else share
        rows.append(Row(f"peak memory, {case.name}", how, Spread.of(taken), "GB", ratio, target, reached))
    return rows


# -------------------------------------------------------------------------------------------- the sections


def machine_rows(options: argparse.Namespace) -> list[Row]:
    """What the device can do at best: the floor of every time below."""
    device, cuda = options.device, options.device.type == "cuda"
    side, rows = 8192 if cuda else 2048, []
    for kind in (torch.float32, torch.bfloat16):
        a, b = torch.rand(2, side, side, device=device).to(kind)
        taken = in_turn({"": lambda a=a, b=b: a @ b}, 5, device)[""]  # type: ignore[misc]
        rates = Spread.of([2 * side**3 / t / 1e9 for t in taken])
        name = str(kind).removeprefix("torch.")
        options.matrix_rates[name] = rates.median * 1e9
        rows.append(Row("matrix product", f"{name}, {side} square", rates, "GFLOP/s"))
    if slow_bfloat16(options):
        options.remarks.append(
            "this machine multiplies bfloat16 no faster than float32: the targets for bfloat16's speed "
            "ask for one that does, a CPU with AMX or AVX512-BF16"
        )
    source = torch.rand(2**28 if cuda else 2**26, device=device)
    target = torch.empty_like(source)
    taken = in_turn({"": lambda: target.copy_(source)}, 5, device)[""]
    rows.append(
        Row(
            "memory copied",
            "read and written",
            Spread.of([2 * source.nbytes / t / 1e9 for t in taken]),
            "GB/s",
        )
    )
    return rows


def inference_rows(options: argparse.Namespace) -> list[Row]:
    rows = []
    for name, rounds in (("inference 120x120", 7), ("inference 481x321", 2))[: 1 if options.quick else 2]:
        rows += network_rows(CASES[name], ["plain", "float32", "bfloat16"], rounds, options)
    return rows + agreement_rows(options)


def network_rows(case: Case, hows: Sequence[str], rounds: int, options: argparse.Namespace) -> list[Row]:
    calls = {how: prepared(case, VARIANTS[how], options.device) for how in hows}
    once = ["bfloat16"] if slow_bfloat16(options) else []  # it is slower then than what it should speed up
    times = in_turn(calls, rounds, options.device, once)
    options.images_per_second[case.name] = case.images / min(map(statistics.median, times.values()))
    return speed_rows(case.name, times, options, case.flop)


def slow_bfloat16(options: argparse.Namespace) -> bool:
    return options.matrix_rates["bfloat16"] < options.matrix_rates["float32"]


def agreement_rows(options: argparse.Namespace) -> list[Row]:
    """How far the outputs lie apart, on one image."""
    net, whose = DerainNet(), "random weights"
    if options.logdir:
        opened = Derainer.open(
            options.logdir, options.device, remedy="give --logdir a checkpoint, or nothing"
        )
        net, whose = opened.net.net, f"weights of {opened.path}"
    rainy = photograph((120, 120) if options.quick else (321, 481)).to(options.device)
    expected = deraining(plain.plain(net).to(options.device), rainy)()
    ways = (Prepared(net, precision).to(options.device) for precision in ("float32", "bfloat16"))
    ours, half = (deraining(way, rainy)() for way in ways)
    apart = (ours - expected).abs().max().item()
    psnr = -10 * torch.log10((half - ours).square().mean()).item()
    return [
        Row(
            "output against plain",
            "float32",
            Spread.of([apart]),
            "at most",
            None,
            "at most 1e-05",
            apart <= 1e-5,
            whose,
        ),
        Row("output against float32", "bfloat16", Spread.of([psnr]), "dB PSNR", note=whose),
    ]


def large_image_rows(measured: Case, peak: float, options: argparse.Namespace) -> list[Row]:
    """1920x1080, once, by the project alone: the plain formulation would take minutes, and much memory."""
    case = CASES["inference 1920x1080"]
    needed = peak * case.flop / measured.flop
    free = (
        torch.cuda.mem_get_info()[0] if options.device.type == "cuda" else psutil.virtual_memory().available
    )
    if needed > 0.8 * free:
        options.remarks.append(
            f"left out, {case.name}: takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        )
        return []
    told = peak_of(case, VARIANTS["float32"], options)
    rate = rate_note(case.flop / told["seconds"], options)
    return [
        Row(case.name, "float32", Spread.of([told["seconds"]]), "s", note=f"{rate}; one first call"),
        Row(f"peak memory, {case.name}", "float32", Spread.of([told["bytes"] / 1e9]), "GB"),
    ]


def step_cases(options: argparse.Namespace) -> list[Case]:
    teacher = "teacher step, 12 at 120" if options.device.type == "cuda" else "teacher step, 2 at 120"
    return [CASES[name] for name in (teacher, "student step, 2+2 at 128")[: 1 if options.quick else 2]]


def step_rows(options: argparse.Namespace) -> list[Row]:
    cuda = options.device.type == "cuda"
    hows = ["plain", "float32", "bfloat16"] + ["bfloat16, compiled"] * options.compile
    rows = []
    for case in step_cases(options):
        rounds = 20 if cuda else 1 if options.quick else 3 if case.stage == "teacher" else 2
        rows += network_rows(case, hows, rounds, options)
    if cuda and options.compile:
        fast = next(row for row in rows if row.how == "bfloat16, compiled")
        target = f"at most {CARD_STEP:g} s on an H200"
        rows.append(replace(fast, ratio=None, target=target, reached=fast.value.median <= CARD_STEP, note=""))
    return rows


def all_memory_rows(options: argparse.Namespace) -> list[Row]:
    rows = []
    for case in step_cases(options):
        half = [] if options.quick else ["bfloat16", "bfloat16, recompute"]
        rows += memory_rows(case, ["plain", "float32", "float32, recompute", *half], options)
    if options.quick:
        return rows
    case = CASES["inference 481x321"]
    rows += memory_rows(case, ["plain", "float32", "bfloat16"], options, processes=3)
    peak = next(row.value.median for row in rows if row.what.endswith(case.name) and row.how == "float32")
    return rows + large_image_rows(case, peak * 1e9, options)


def losses_rows(options: argparse.Namespace) -> list[Row]:
    """Forward and backward, on two images of 128x128. Where there is no plain row, both word it alike."""
    torch.manual_seed(0)
    x, y = torch.rand(2, 2, 3, 128, 128, device=options.device)
    codes = torch.randn(2, 2, 48, 32, 32, device=options.device)

    def followed(term: Callable[..., Tensor], *arguments: Any) -> Callable[[], None]:
        leaves = [each.clone().requires_grad_() if isinstance(each, Tensor) else each for each in arguments]
        return lambda: term(*leaves).backward()

    both = {
        "SSIM": (followed(plain.ssim, x, y), followed(losses.ssim, x, y)),
        "dark channel, window 128": (
            followed(plain.dark_channel, x, 128),
            followed(losses.dark_channel, x, 128),
        ),
    }
    rounds = 2 if options.quick else 7
    rows = []
    for name, (theirs, ours) in both.items():
        rows += speed_rows(name, in_turn({"plain": theirs, "project": ours}, rounds, options.device), options)
    for name, ours in {
        "total variation": followed(losses.total_variation, x),
        "KL of the codes": followed(losses.distillation, *codes),
    }.items():
        rows += speed_rows(name, in_turn({"project": ours}, 20, options.device), options)
    return rows


def loader_rows(options: argparse.Namespace) -> list[Row]:
    """Pairs a second with nobody training meanwhile, against what the fastest step measured here takes."""
    needed = max(
        (rate for name, rate in options.images_per_second.items() if name.startswith("teacher")), default=None
    )
    target = f"at least {needed:.3g}/s: the fastest step here" if needed else ""
    repeats, batch, pairs = 1 if options.quick else 3, 12, 48
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = generated_set(Path(folder), pairs)
        for cache in ("on", "off"):
            for workers in (0, 1, 2):
                crops = PairCrops(find_pairs(root, "train"), 120, cache=ImageCache(cache))
                rates = [images_per_second(crops, batch, workers, cache == "on") for _ in range(repeats)]
                spread = Spread.of(rates)
                how = f"{workers} workers, " + ("cached" if cache == "on" else "decoding each time")
                note = f"{spread.median / CARD_NEEDS:.2g} times what a step of 12 in 50 ms would take"
                rows.append(
                    Row(
                        "loading 120x120 crops of 481x321 PNGs",
                        how,
                        spread,
                        "images/s",
                        None,
                        target,
                        spread.median >= needed if needed else None,
                        note,
                    )
                )
    return rows


def images_per_second(crops: PairCrops, batch: int, workers: int, cached: bool) -> float:
    """Over whole epochs, after one in which the workers start and the cache fills."""
    first, counted = len(crops) // batch, 40 if cached else 12
    stream = BatchStream(len(crops), batch, steps=range(first + counted))
    began, batches = 0.0, loader(crops, stream, workers=workers)
    for number, _ in enumerate(batches, 1):
        if number == first:
            began = time.perf_counter()
    return counted * batch / (time.perf_counter() - began)


def generated_set(folder: Path, pairs: int) -> Path:
    rng = np.random.default_rng(0)
    clean = cv2.resize(skimage.data.astronaut(), (481, 321), interpolation=cv2.INTER_AREA)
    for number in range(1, pairs + 1):
        streaks = cv2.blur(rng.integers(0, 256, clean.shape[:2], np.uint8), (1, 15))[..., None] // 2
        rainy = np.clip(clean.astype(np.int16) + streaks, 0, 255).astype(np.uint8)
        write_image(folder / "train/rain" / f"{number}.png", rainy)
        write_image(folder / "train/norain" / f"{number}.png", clean)
    return folder


# ------------------------------------------------------------------------------------------------- the report


def table(rows: Sequence[Row], head: str, remarks: Sequence[str]) -> str:
    """Markdown."""
    title = ["", "", "median (least to greatest)", "to plain", "target", "", ""]
    lines = [title, ["---"] * len(title), *(row.cells() for row in rows)]
    missed = [f"{row.what}, {row.how}" for row in rows if row.reached is False]
    return "\n".join(
        [
            head,
            "",
            *("| " + " | ".join(cells) + " |" for cells in lines),
            "",
            "'To plain' is how many times faster, or the share of its peak memory.",
            *remarks,
            f"targets missed: {'; '.join(missed) or 'none'}",
        ]
    )


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the small cases alone, few rounds")
    parser.add_argument(
        "--only", default=",".join(SECTIONS), help="sections, by commas (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_name("latest.json"),
        help="the figures as JSON (default: latest.json beside this script)",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: cuda where there is one"
    )
    parser.add_argument("--compile", action="store_true", help="steps with compiled units too: minutes more")
    parser.add_argument(
        "--logdir", type=Path, help="a checkpoint, for how far bfloat16 lies off (default: random weights)"
    )
    parser.add_argument(
        "--peak", nargs=2, metavar=("CASE", "VARIANT"), help="only one call, and its peak memory as JSON"
    )
    options = parser.parse_args()
    options.only = options.only.split(",")
    if wrong := [each for each in options.only if each not in SECTIONS]:
        parser.error(f"--only {wrong[0]}: the sections are {', '.join(SECTIONS)}")
    if options.peak and (options.peak[0] not in CASES or options.peak[1] not in VARIANTS):
        parser.error(f"--peak takes one of {'; '.join(CASES)}, and one of {'; '.join(VARIANTS)}")
    cuda = torch.cuda.is_available()
    if options.device == "cuda" and not cuda:
        parser.error("--device cuda: torch sees no CUDA device here")
    options.device = torch.device("cuda" if cuda and options.device != "cpu" else "cpu")
    options.remarks, options.images_per_second, options.matrix_rates = [], {}, {}
    return options


def main() -> None:
    options = read_options()
    if options.peak:
        tell_peak(CASES[options.peak[0]], VARIANTS[options.peak[1]], options.device)
        return
    head = f"{hardware(options.device)}, torch {torch.__version__}, {date.today().isoformat()}"
    torch.backends.cudnn.benchmark = True  # as in training
    busy = psutil.cpu_percent(interval=1)
    if busy > 10:
        options.remarks.append(f"the machine was {busy:.0f} % busy with something else at the start: noisy")
        print(f"warning: {options.remarks[-1]}", file=sys.stderr)
    parts: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
        "inference": inference_rows,
        "step": step_rows,
        "losses": losses_rows,
        "loader": loader_rows,
        "memory": all_memory_rows,
    }
    began, rows = time.perf_counter(), []
    with tqdm(total=1 + len(options.only), unit="section", desc="machine") as bar:
        rows += machine_rows(options)
        for name in (each for each in SECTIONS if each in options.only):
            bar.update()
            bar.set_description(name)
            rows += parts[name](options)
        bar.update()
    print(table(rows, head, options.remarks))
    content = {
        "machine": head,
        "busy_percent": busy,
        "seconds": round(time.perf_counter() - began),
        "rows": [asdict(row) for row in rows],
        "remarks": options.remarks,
    }
    write_atomically(
        options.out, lambda temporary: temporary.write_text(json.dumps(content, indent=1) + "\n")
    )
    print(f"{content['seconds']} s; written: {options.out}")


if __name__ == "__main__":
    run(main)
