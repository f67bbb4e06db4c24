#!/usr/bin/env python3
"""Measures the project against the plain formulation (plain.py) in one run: speed, memory, losses, loading.

    python benchmarks/run.py                            all of it: 20 minutes on two CPU cores
    python benchmarks/run.py --quick                    the small cases, few rounds: about 2 minutes
    python benchmarks/run.py --only inference,losses
    python benchmarks/run.py --compile                  on CUDA: the units compiled too

What is compared runs in turn, A B A B, and each ratio is taken within a round, so that a machine that slows
down meanwhile slows both. Peak memory is that of a process of its own which does one such call. Figures are
medians with the least and the greatest; a target that was missed is printed as missed. What fails prints its
error, the rest goes on, and the exit code is that of a failure. The figures are written after each section.

On a CPU others use too, set OMP_WAIT_POLICY=passive: two threads that wait for each other by spinning are
then several times slower, and no ratio means anything.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
CARD_STEP = 0.050  # seconds at most, on an H200: teacher step, 12 at 120, bfloat16, compiled


@dataclass(frozen=True)
class Variant:
    """One way to run the network. `plain` is benchmarks/plain.py, contiguous, float32."""

    plain: bool = False
    precision: str = "float32"
    recompute: bool = False
    compile: bool = False


@dataclass(frozen=True)
class Case:
    """Something the network does: an image derained, or a training step."""

    size: tuple[int, int]  # height, width
    images: int = 1
    stage: str = ""  # "teacher", "student"; "": inference

    @property
    def flop(self) -> float:
        return FLOP_A_PIXEL * self.size[0] * self.size[1] * self.images * (3 if self.stage else 1)


VARIANTS = {
    "plain": Variant(plain=True),
    "float32": Variant(),
    "bfloat16": Variant(precision="bfloat16"),
    "float32, recompute": Variant(recompute=True),
    "bfloat16, recompute": Variant(precision="bfloat16", recompute=True),
    "bfloat16, compiled": Variant(precision="bfloat16", compile=True),
}
CASES = {
    "inference 120x120": Case((120, 120)),
    "inference 481x321": Case((321, 481)),
    "inference 1920x1080": Case((1080, 1920)),
    "teacher step, 2 at 120": Case((120, 120), 2, "teacher"),
    "teacher step, 12 at 120": Case((120, 120), 12, "teacher"),
    "student step, 2+2 at 128": Case((128, 128), 4, "student"),
}
# (device, row, variant) to: at least so many times faster than plain / at most that share of its peak memory
TARGETS = {
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
    ("cpu", "peak memory, inference 481x321", "float32"): 0.65,
    ("cpu", "peak memory, teacher step, 2 at 120", "bfloat16"): 0.6,
    ("cpu", "peak memory, teacher step, 2 at 120", "bfloat16, recompute"): 0.3,
    ("cpu", "peak memory, student step, 2+2 at 128", "bfloat16"): 0.6,
    ("cpu", "peak memory, student step, 2+2 at 128", "bfloat16, recompute"): 0.3,
}


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
        several = f" ({self.least:.3g} to {self.greatest:.3g})" if self.least < self.greatest else ""
        return f"{self.median:.3g}{several}"


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

    def line(self) -> str:
        verdict = "" if self.reached is None else "reached" if self.reached else "MISSED"
        measured = f"{self.value} {self.unit} | {self.ratio or ''}"
        return f"| {self.what} | {self.how} | {measured} | {self.target} | {verdict} | {self.note} |"


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    finished = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    finished()
    began = time.perf_counter()
    call()
    finished()
    return time.perf_counter() - began


def peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # not getrusage's ru_maxrss where it can be helped: a process inherits its parent's
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return 1024 * int(found[1])
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_of(name: str, how: str, device: torch.device) -> dict[str, float]:
    """Peak memory in bytes and seconds of one call, from a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--device", device.type, "--peak", name, how]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed: too little memory?"])[-1]
        raise UserError(f"ended with exit code {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


class Benchmark:
    """The sections, each a method of its name, and the rows they have made so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, options.device
        self.quick, self.cuda = options.quick, options.device.type == "cuda"
        self.rows: list[Row] = []
        self.remarks: list[str] = []
        self.failed: list[str] = []
        self.matrix_rates: dict[str, float] = {}  # FLOP/s by arithmetic
        self.images_per_second: dict[str, float] = {}  # of the fastest variant, by case

    def attempt(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """What the call gives; where it fails, None: its error is told and kept, for the rest to go on."""
        try:
            return call(*arguments)
        except Exception as error:  # of whatever kind: twenty minutes of other figures hang on it
            self.failed.append(f"{what}: {type(error).__name__}: {error}")
            tqdm.write(f"failed, {self.failed[-1]}", file=sys.stderr)
            return None

    def add(
        self,
        what: str,
        how: str,
        values: Sequence[float],
        unit: str,
        ratios: Sequence[float] = (),
        **more: Any,
    ) -> None:
        """A row; `more` is as Row's, and what TARGETS has for it goes before."""
        bound, ratio = TARGETS.get((self.device.type, what, how)), Spread.of(ratios) if ratios else None
        if bound and ratio:
            less = unit == "GB"
            more["target"] = f"at most {bound:g}" if less else f"at least {bound:g} times"
            more["reached"] = ratio.median <= bound if less else ratio.median >= bound
        self.rows.append(Row(what, how, Spread.of(values), unit, ratio, **more))

    def in_turn(
        self, what: str, calls: Mapping[str, Callable[[], Any]], rounds: int, once: str = "", flop: float = 0
    ) -> dict[str, list[float]]:
        """Seconds of each call, in every round one of each. A first round, which warms up, is not counted.

        `once` runs in the first counted round alone. What fails is left out from there on.
        """
        times: dict[str, list[float]] = {how: [] for how in calls}
        for number in range(rounds + 1):
            for how in [each for each in times if each != once or number == 1]:
                took = self.attempt(f"{what}, {how}", seconds, calls[how], self.device)
                if took is None:
                    del times[how]
                elif number:
                    times[how].append(took)
        return times

    def speed(self, what: str, calls: Mapping[str, Callable[[], Any]], rounds: int, **more: Any) -> None:
        """Rows of what runs in turn, "plain" among it or not. `more`: as in_turn's; `flop`: of one call."""
        times = self.in_turn(what, calls, rounds, **more)
        for how, taken in times.items():
            others = times.get("plain", []) if how != "plain" else []
            ratios = [a / b for a, b in zip(others, taken, strict=False)]
            note = self.rate(more["flop"] / statistics.median(taken)) if more.get("flop") else ""
            self.add(what, how, taken, "s", ratios, note=note)
        if times and what in CASES:
            self.images_per_second[what] = CASES[what].images / min(map(statistics.median, times.values()))

    def rate(self, flops: float) -> str:
        best = max(self.matrix_rates.values(), default=0)
        return f"{flops / 1e9:,.0f} GFLOP/s" + (
            f", {flops / best:.0%} of the best matrix product" if best else ""
        )

    def network(self, name: str, hows: Sequence[str], rounds: int) -> None:
        calls = {
            how: self.attempt(f"{name}, {how}", prepared, CASES[name], VARIANTS[how], self.device)
            for how in hows
        }
        once = "bfloat16" if self.slow_bfloat16() else ""  # it is slower then than what it should speed up
        ready = {how: call for how, call in calls.items() if call}
        self.speed(name, ready, rounds, once=once, flop=CASES[name].flop)

    def slow_bfloat16(self) -> bool:
        return self.matrix_rates.get("bfloat16", 0) < self.matrix_rates.get("float32", 0)

    def step_cases(self) -> list[str]:
        teacher = f"teacher step, {12 if self.cuda else 2} at 120"
        return [teacher] if self.quick else [teacher, "student step, 2+2 at 128"]

    # ---------------------------------------------------------------------------------------- the sections

    def machine(self) -> None:
        """What the device can do at best: the floor of every time below."""
        side = 8192 if self.cuda else 2048
        for kind in ("float32", "bfloat16"):
            a, b = torch.rand(2, side, side, device=self.device).to(getattr(torch, kind))
            what, how = "matrix product", f"{kind}, {side} square"
            if taken := self.in_turn(what, {how: lambda a=a, b=b: a @ b}, 5).get(how):  # type: ignore[misc]
                rates = [2 * side**3 / t / 1e9 for t in taken]
                self.matrix_rates[kind] = 1e9 * statistics.median(rates)
                self.add(what, how, rates, "GFLOP/s")
        if self.slow_bfloat16():
            self.remarks.append(
                "this machine multiplies bfloat16 no faster than float32: the targets for bfloat16's speed "
                "ask for one that does, a CPU with AMX or AVX512-BF16"
            )
        source = torch.rand(2**28 if self.cuda else 2**26, device=self.device)
        target = torch.empty_like(source)
        what, how = "memory copied", "read and written"
        if taken := self.in_turn(what, {how: lambda: target.copy_(source)}, 5).get(how):
            self.add(what, how, [2 * source.nbytes / t / 1e9 for t in taken], "GB/s")

    def inference(self) -> None:
        hows = ["plain", "float32", "bfloat16"]
        self.network("inference 120x120", hows, 7)
        if not self.quick:
            self.network("inference 481x321", hows, 2)
        self.attempt("output against plain", self.agreement)

    def agreement(self) -> None:
        """How far the outputs lie apart, on one image."""
        net, whose = DerainNet(), "random weights"
        if self.options.logdir:
            opened = Derainer.open(self.options.logdir, remedy="give --logdir a checkpoint, or nothing")
            net, whose = opened.net.net, f"weights of {opened.path}"
        rainy = photograph((120, 120) if self.quick else (321, 481)).to(self.device)
        expected = deraining(plain.plain(net).to(self.device), rainy)()
        ours = deraining(Prepared(net).to(self.device), rainy)()
        apart = (ours - expected).abs().max().item()
        verdict: dict[str, Any] = {"target": "at most 1e-05", "reached": apart <= 1e-5}
        self.add("output against plain", "float32", [apart], "at most", note=whose, **verdict)
        half = deraining(Prepared(net, "bfloat16").to(self.device), rainy)()
        psnr = -10 * torch.log10((half - ours).square().mean()).item()
        self.add("output against float32", "bfloat16", [psnr], "dB PSNR", note=whose)

    def step(self) -> None:
        hows = ["plain", "float32", "bfloat16"] + ["bfloat16, compiled"] * self.options.compile
        for name in self.step_cases():
            few = 1 if self.quick else 3 if CASES[name].stage == "teacher" else 2
            self.network(name, hows, 20 if self.cuda else few)
        compiled = [row for row in self.rows if row.how == "bfloat16, compiled" and self.cuda]
        for fast in compiled[:1]:
            target, reached = f"at most {CARD_STEP:g} s on an H200", fast.value.median <= CARD_STEP
            self.rows.append(replace(fast, ratio=None, target=target, reached=reached, note=""))

    def losses(self) -> None:
        """Forward and backward, on two images of 128x128. Where there is no plain row, both word it alike."""
        torch.manual_seed(0)
        x, y = torch.rand(2, 2, 3, 128, 128, device=self.device)
        codes = torch.randn(2, 2, 48, 32, 32, device=self.device)

        def followed(term: Callable[..., Tensor], *arguments: Any) -> Callable[[], None]:
            leaves = [
                each.clone().requires_grad_() if isinstance(each, Tensor) else each for each in arguments
            ]
            return lambda: term(*leaves).backward()

        rounds = 2 if self.quick else 7
        ssim = {"plain": followed(plain.ssim, x, y), "project": followed(losses.ssim, x, y)}
        self.speed("SSIM", ssim, rounds)
        dark = {
            each: followed(of.dark_channel, x, 128)
            for each, of in {"plain": plain, "project": losses}.items()
        }
        self.speed("dark channel, window 128", dark, rounds)
        self.speed("total variation", {"project": followed(losses.total_variation, x)}, 20)
        self.speed("KL of the codes", {"project": followed(losses.distillation, *codes)}, 20)

    def loader(self) -> None:
        """Pairs a second with nobody training meanwhile, against what the fastest step here takes."""
        what = "loading 120x120 crops of 481x321 PNGs"
        steps = [rate for name, rate in self.images_per_second.items() if name.startswith("teacher")]
        with tempfile.TemporaryDirectory() as folder:
            root = generated_set(Path(folder), 48)
            for cache, workers in [(cache, workers) for cache in ("on", "off") for workers in (0, 1, 2)]:
                how = f"{workers} workers, " + ("cached" if cache == "on" else "decoding each time")
                repeats = 1 if self.quick else 3
                rates = self.attempt(f"{what}, {how}", loading_rates, root, cache, workers, repeats)
                if not rates:
                    continue
                median = statistics.median(rates)
                more: dict[str, Any] = {}
                if steps:
                    target = f"at least {max(steps):.3g}/s: the fastest step here"
                    more = {"target": target, "reached": median >= max(steps)}
                note = f"{median / CARD_NEEDS:.2g} times what a step of 12 in 50 ms would take"
                self.add(what, how, rates, "images/s", note=note, **more)

    def memory(self) -> None:
        half = [] if self.quick else ["bfloat16", "bfloat16, recompute"]
        for name in self.step_cases():
            self.peaks(name, ["plain", "float32", "float32, recompute", *half])
        if self.quick:
            return
        # of several processes, since chance counts: how whole the heap stays differs from run to run
        measured = self.peaks("inference 481x321", ["plain", "float32", "bfloat16"], processes=3)
        if "float32" in measured:
            self.large_image(statistics.median(measured["float32"]) / CASES["inference 481x321"].flop)

    def peaks(self, name: str, hows: Sequence[str], processes: int = 1) -> dict[str, list[float]]:
        """GB by variant; what failed is left out."""
        peaks: dict[str, list[float]] = {}
        for how in hows:
            told = [
                self.attempt(f"peak memory, {name}, {how}", peak_of, name, how, self.device)
                for _ in range(processes)
            ]
            if all(told):
                peaks[how] = [each["bytes"] / 1e9 for each in told]
        for how, taken in peaks.items():
            others = peaks.get("plain", []) if how != "plain" else []
            ratios = [a / b for a, b in zip(taken, others, strict=False)]
            self.add(f"peak memory, {name}", how, taken, "GB", ratios)
        return peaks

    def large_image(self, gigabytes_a_flop: float) -> None:
        """1920x1080, once, by the project alone: plain would take minutes, and much memory."""
        name = "inference 1920x1080"
        flop = CASES[name].flop
        needed = gigabytes_a_flop * flop
        free = (torch.cuda.mem_get_info()[0] if self.cuda else psutil.virtual_memory().available) / 1e9
        if needed > 0.8 * free:
            self.remarks.append(f"left out, {name}: takes {needed:.1f} GB, and {free:.1f} GB are free")
        elif told := self.attempt(name, peak_of, name, "float32", self.device):
            note = f"{self.rate(flop / told['seconds'])}; one first call"
            self.add(name, "float32", [told["seconds"]], "s", note=note)
            self.add(f"peak memory, {name}", "float32", [told["bytes"] / 1e9], "GB")


def loading_rates(root: Path, cache: str, workers: int, repeats: int, batch: int = 12) -> list[float]:
    """Images a second over whole epochs, after one in which the workers start and the cache fills."""
    crops = PairCrops(find_pairs(root, "train"), 120, cache=ImageCache(cache))
    first, counted = len(crops) // batch, 40 if cache == "on" else 12
    rates = []
    for _ in range(repeats):
        stream = BatchStream(len(crops), batch, steps=range(first + counted))
        began = 0.0
        for number, _ in enumerate(loader(crops, stream, workers=workers), 1):
            if number == first:
                began = time.perf_counter()
        rates.append(counted * batch / (time.perf_counter() - began))
    return rates


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


def table(head: str, done: Benchmark) -> str:
    """Markdown."""
    missed = [f"{row.what}, {row.how}" for row in done.rows if row.reached is False]
    lines = [
        head,
        "",
        "| | | median (least to greatest) | to plain | target | | |",
        "|---|---|---|---|---|---|---|",
        *(row.line() for row in done.rows),
        "",
        "'To plain' is how many times faster, or the share of its peak memory.",
        *done.remarks,
        *(f"failed, {each}" for each in done.failed),
        f"targets missed: {'; '.join(missed) or 'none'}",
    ]
    return "\n".join(lines)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    latest = Path(__file__).with_name("latest.json")
    add("--quick", action="store_true", help="the small cases alone, few rounds")
    add("--only", default=",".join(SECTIONS), help="sections, by commas (default: %(default)s)")
    add(
        "--out",
        type=Path,
        default=latest,
        help="the figures as JSON (default: latest.json beside this script)",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: cuda where there is one")
    add("--compile", action="store_true", help="steps with compiled units too: minutes more")
    add("--logdir", type=Path, help="a checkpoint, for how far bfloat16 lies off (default: random weights)")
    add("--peak", nargs=2, metavar=("CASE", "VARIANT"), help="only one call, and its peak memory as JSON")
    options = parser.parse_args()
    options.only = options.only.split(",")
    if wrong := [each for each in options.only if each not in SECTIONS]:
        parser.error(f"--only {wrong[0]}: the sections are {', '.join(SECTIONS)}")
    if options.peak and (options.peak[0] not in CASES or options.peak[1] not in VARIANTS):
        parser.error(f"--peak takes one of {'; '.join(CASES)}, and one of {'; '.join(VARIANTS)}")
    options.device = device_asked(parser, options.device)
    return options


def device_asked(parser: argparse.ArgumentParser, name: str) -> torch.device:
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        parser.error("--device cuda: torch sees no CUDA device here")
    return torch.device("cuda" if cuda and name != "cpu" else "cpu")


def main() -> None:
    options = read_options()
    if options.peak:
        call = prepared(CASES[options.peak[0]], VARIANTS[options.peak[1]], options.device)
        took = seconds(call, options.device)
        print(json.dumps({"bytes": peak_memory(options.device), "seconds": took}))
        return
    torch.backends.cudnn.benchmark = True  # as in training
    done, began = Benchmark(options), time.perf_counter()
    content: dict[str, Any] = {
        "machine": f"{hardware(options.device)}, torch {torch.__version__}, {date.today().isoformat()}",
        "busy_percent": psutil.cpu_percent(interval=1),
    }
    if content["busy_percent"] > 10:
        busy = f"{content['busy_percent']:.0f} % busy with something else at the start"
        done.remarks.append(f"the machine was {busy}: noisy")
        print(f"warning: {done.remarks[-1]}", file=sys.stderr)
    sections = ["machine", *(each for each in SECTIONS if each in options.only)]
    for name in (bar := tqdm(sections, unit="section")):
        bar.set_description(name)
        done.attempt(name, getattr(done, name))
        content["seconds"] = round(time.perf_counter() - began)
        content["rows"] = [dataclasses.asdict(row) for row in done.rows]
        content |= {"remarks": done.remarks, "failed": done.failed}
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(options.out, lambda temporary, text=text: temporary.write_text(text))  # type: ignore[misc]
    print(table(content["machine"], done))
    print(f"{content['seconds']} s; written: {options.out}")
    if done.failed:
        raise UserError(f"failed: {len(done.failed)}, told above; the other rows are in {options.out}")


if __name__ == "__main__":
    run(main)
