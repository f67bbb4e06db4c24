#!/usr/bin/env python3
"""Measures the project against the plain formulation (plain.py) in one run: speed, memory, losses, loading.

    python benchmarks/run.py                            all of it: 20 minutes on two CPU cores
    python benchmarks/run.py --quick                    the small cases, few rounds: about 2 minutes
    python benchmarks/run.py --only inference losses

What is compared runs in turn, and each ratio is taken within a round. Peak memory is that of a process of its
own which does one such call. Figures are medians with the least and the greatest; a target that was missed is
printed as missed. What fails prints its error, the rest goes on, and the exit code is that of a failure. The
figures are written after each section. What a card does, in detail: prove_cuda.py.

On a CPU others use too, set OMP_WAIT_POLICY=passive: two threads that wait for each other by spinning are
then several times slower, and no ratio means anything.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started as a script, from any folder

import losses
from benchmarks import plain
from benchmarks.material import Step, generated_set, photograph, stage_and_batch
from benchmarks.measure import Spread, in_turn, peak_memory, seconds
from datasets.layouts import find_pairs
from DerainDataset import PairCrops
from inference import Derainer, Prepared, hardware
from machinery import distributed, fourier
from machinery.loading import BatchStream, ImageCache, loader
from machinery.options import Machine, option, parse
from networks import DerainNet
from utils import UserError, run, write_atomically

PRODUCTS = "float32, products"
SECTIONS = ("machine", "inference", "step", "losses", "loader", "memory")


@dataclass(frozen=True)
class Benchmark(Machine):
    """The options of this script."""

    quick: bool = option(False, "the small cases alone, few rounds")
    only: tuple[str, ...] = option(SECTIONS, "which sections", SECTIONS)
    out: Path = option(Path("benchmarks/latest.json"), "the figures as JSON")
    logdir: Path = option(Path(), "a checkpoint, for how far bfloat16 lies off; none: random weights")
    peak: tuple[str, ...] = option((), "a case and a variant: one such call alone, its figures as JSON")


@dataclass(frozen=True)
class Case:
    """Something the network does: an image derained, or a training step of `stage`."""

    size: tuple[int, int]  # height, width
    pairs: int = 1
    stage: str = ""  # "SID", "SSID-KD"; "": inference


# each run as plain (plain.py, contiguous, float32), float32, bfloat16; a step with "recompute" too; where
# machinery/fourier.py pays, "float32, products" is float32 without it
CASES = {
    "inference 120x120": Case((120, 120)),
    "inference 481x321": Case((321, 481)),
    "inference 1920x1080": Case((1080, 1920)),
    "teacher step, 2 at 120": Case((120, 120), 2, "SID"),
    "teacher step, 12 at 120": Case((120, 120), 12, "SID"),
    "student step, 2+2 at 128": Case((128, 128), 2, "SSID-KD"),
}
# on a CPU: at least so many times faster than plain, or, of memory, at most that share of its peak
TARGETS = {
    "inference 120x120": {"float32": 1.8, "bfloat16": 2.8},
    "inference 481x321": {"float32": 1.5, "bfloat16": 2.8},
    "teacher step, 2 at 120": {"float32": 1.3, "bfloat16": 2.0},
    "student step, 2+2 at 128": {"float32": 1.2, "bfloat16": 2.0},
    "dark channel, window 128": {"project": 50.0},
    "peak memory, inference 481x321": {"float32": 0.65},
    "peak memory, teacher step, 2 at 120": {"bfloat16": 0.6, "bfloat16, recompute": 0.3},
    "peak memory, student step, 2+2 at 128": {"bfloat16": 0.6, "bfloat16, recompute": 0.3},
}


# ---------------------------------------------------------------------------------------- what is measured


def prepared(case: Case, how: str, device: torch.device) -> Callable[[], Any]:
    """The work of a case as a function of no arguments, all it needs already in place."""
    torch.manual_seed(0)
    own = DerainNet()
    if "recompute" in how:
        own.recompute_units()
    net: nn.Module = plain.plain(own) if how == "plain" else Prepared(own, how.split(",")[0])
    if "products" in how:
        net.forward = torch.backends.nnpack.flags(enabled=False)(net.forward)
    if not case.stage:
        return deraining(net.to(device), photograph(case.size).to(device))
    # the very step of the training, of the plain network too: the ratio is to praise the network alone
    student = how == "plain" and case.stage == "SSID-KD"
    net = (plain.PlainStudent(net) if student else net).to(device)
    return Step(net, *stage_and_batch(case.stage, case.pairs, case.size[0], device))


def deraining(net: nn.Module, rainy: Tensor) -> Callable[[], Tensor]:
    return torch.inference_mode()(lambda: net(rainy).derained)


def followed(term: Callable[..., Tensor], *arguments: Any) -> Callable[[], None]:
    """A loss term, forward and backward."""
    leaves = [each.clone().requires_grad_() if isinstance(each, Tensor) else each for each in arguments]
    return lambda: term(*leaves).backward()


def peak_of(name: str, how: str, machine: Machine) -> dict[str, float]:
    """Peak memory in bytes and seconds of one call, from a process of its own."""
    command = [sys.executable, __file__, "--use_GPU", str(machine.use_GPU), "--peak", name, how]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed: too little memory?"])[-1]
        raise UserError(f"ended with exit code {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def loading_rates(root: Path, cache: str, workers: int, repeats: int) -> list[float]:
    """Pairs a second over whole epochs, after one in which the workers start and the cache fills."""
    crops = PairCrops(find_pairs(root, "train"), 120, cache=ImageCache(cache))
    batch = 12
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


# --------------------------------------------------------------------------------------- rows and sections


@dataclass(frozen=True)
class Row:
    """One line of the table. `ratio` is to plain: times faster, or the share of its memory."""

    what: str
    how: str
    value: Spread
    unit: str
    ratio: Spread | None = None
    target: float | None = None

    @property
    def missed(self) -> bool:
        if self.ratio is None or self.target is None:
            return False
        return self.ratio.median > self.target if self.unit == "GB" else self.ratio.median < self.target

    def __str__(self) -> str:
        aim = "" if self.target is None else f"at {'most' if self.unit == 'GB' else 'least'} {self.target:g}"
        measured = f"{self.value} {self.unit} | {self.ratio or ''}"
        return f"| {self.what} | {self.how} | {measured} | {aim}{', MISSED' * self.missed} |"


class Measured:
    """The sections, each a method of its name, and the rows they have made so far."""

    def __init__(self, options: Benchmark, device: torch.device) -> None:
        self.options, self.device, self.cuda = options, device, device.type == "cuda"
        self.rows: list[Row] = []
        self.remarks: list[str] = []
        self.failed: list[str] = []
        self.hows = ["plain", "float32", "bfloat16"]
        if fourier.pays(torch.empty(1, 1, fourier.TILE, fourier.TILE, device=device)):
            self.hows.insert(1, PRODUCTS)
        teacher = f"teacher step, {12 if self.cuda else 2} at 120"
        self.steps = [teacher] if options.quick else [teacher, "student step, 2+2 at 128"]

    def attempt(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """What the call gives; where it fails, None: its error is told and kept, for the rest to go on."""
        try:
            return call(*arguments)
        except Exception as error:  # of whatever kind: twenty minutes of other figures hang on it
            self.failed.append(f"{what}: {type(error).__name__}: {error}")
            tqdm.write(f"failed, {self.failed[-1]}", file=sys.stderr)
            return None

    def add(self, what: str, figures: Mapping[str, Sequence[float]], unit: str) -> None:
        """A row for each variant, with its ratio to the one called plain, round by round."""
        for how, values in figures.items():
            pairs = list(zip(figures.get("plain", ()), values, strict=False)) if how != "plain" else []
            ratios = [b / a if unit == "GB" else a / b for a, b in pairs]
            target = TARGETS.get(what, {}).get(how) if ratios and not self.cuda else None
            ratio = Spread.of(ratios) if ratios else None
            self.rows.append(Row(what, how, Spread.of(values), unit, ratio, target))

    def speed(self, what: str, calls: Mapping[str, Callable[[], Any]], rounds: int) -> None:
        self.add(what, in_turn(calls, rounds, self.device), "s")

    def network(self, name: str, rounds: int) -> None:
        calls = {how: prepared(CASES[name], how, self.device) for how in self.hows}
        self.speed(name, calls, rounds)

    def machine(self) -> None:
        """What the device can do at best. Where bfloat16 is emulated, its speed is not measured."""
        side = 8192 if self.cuda else 1024
        medians = {}
        for kind in ("float32", "bfloat16"):
            a, b = torch.rand(2, side, side, device=self.device).to(getattr(torch, kind))
            taken = in_turn({kind: lambda a=a, b=b: a @ b}, 5, self.device)[kind]  # type: ignore[misc]
            rates = [2 * side**3 / t / 1e9 for t in taken]
            medians[kind] = Spread.of(rates).median
            self.add(f"matrix product, {side} square", {kind: rates}, "GFLOP/s")
        if medians["bfloat16"] < medians["float32"]:
            self.hows.remove("bfloat16")
            self.remarks.append(
                "this machine multiplies bfloat16 no faster than float32, so its speed is left out: that "
                "takes a CPU with AMX or AVX512-BF16, or a card"
            )

    def inference(self) -> None:
        self.attempt("inference 120x120", self.network, "inference 120x120", 7)
        if not self.options.quick:
            self.attempt("inference 481x321", self.network, "inference 481x321", 2)
        net, whose = DerainNet(), "random weights"
        if self.options.logdir != Path():
            opened = Derainer.open(self.options.logdir, remedy="give --logdir a checkpoint, or nothing")
            net, whose = opened.net.net, f"weights of {opened.path}"
        rainy = photograph((120, 120) if self.options.quick else (321, 481)).to(self.device)
        expected = deraining(plain.plain(net).to(self.device), rainy)()
        for precision, most in (("float32", 1e-5), ("bfloat16", 1e-2)):
            if precision not in self.hows:
                continue  # emulated: a quarter of an hour
            ours = deraining(Prepared(net, precision).to(self.device), rainy)()
            apart, psnr = (ours - expected).abs().max(), -10 * (ours - expected).square().mean().log10()
            self.remarks.append(
                f"output against plain, {whose}, {precision}: {apart:.2g} apart at most "
                f"({most:g}{', MISSED' * bool(apart > most)}), {psnr:.1f} dB PSNR"
            )

    def step(self) -> None:
        for name in self.steps:
            self.attempt(name, self.network, name, 20 if self.cuda else 1 if self.options.quick else 3)

    def losses(self) -> None:
        """Forward and backward, on two images of 128x128. Where there is no plain row, both word it alike."""
        torch.manual_seed(0)
        x, y = torch.rand(2, 2, 3, 128, 128, device=self.device)
        codes = torch.randn(2, 2, 48, 32, 32, device=self.device)
        both = {"plain": plain, "project": losses}
        rounds = 2 if self.options.quick else 7
        self.speed("SSIM", {how: followed(of.ssim, x, y) for how, of in both.items()}, rounds)
        dark = {how: followed(of.dark_channel, x, 128) for how, of in both.items()}
        self.speed("dark channel, window 128", dark, rounds)
        self.speed("total variation", {"project": followed(losses.total_variation, x)}, 20)
        self.speed("KL of the codes", {"project": followed(losses.distillation, *codes)}, 20)

    def loader(self) -> None:
        """Crops of 481x321 PNGs with nobody training meanwhile; a step of 12 in 50 ms would take 240/s."""
        with tempfile.TemporaryDirectory() as folder:
            root = generated_set(Path(folder) / "set", 48)
            for cache, workers in [(cache, workers) for cache in ("on", "off") for workers in (0, 2)]:
                how = f"{workers} workers, " + ("cached" if cache == "on" else "decoding each time")
                rates = loading_rates(root, cache, workers, 1 if self.options.quick else 3)
                self.add("loading 120x120 crops", {how: rates}, "pairs/s")

    def memory(self) -> None:
        half = [] if self.options.quick else ["bfloat16", "bfloat16, recompute"]
        for name in self.steps:
            self.peaks(name, ["plain", "float32", "float32, recompute", *half])
        if not self.options.quick:
            # of several processes, since chance counts: how whole the heap stays differs from run to run
            self.peaks("inference 481x321", ["plain", "float32", "bfloat16"], processes=3)
            # by the project alone: plain would take minutes, and much memory
            self.peaks("inference 1920x1080", ["float32"])

    def peaks(self, name: str, hows: Sequence[str], processes: int = 1) -> None:
        peaks: dict[str, list[float]] = {}
        for how in hows:
            for _ in range(processes):
                if told := self.attempt(f"peak memory, {name}, {how}", peak_of, name, how, self.options):
                    peaks.setdefault(how, []).append(told["bytes"] / 1e9)
                    self.remarks.append(f"{name}, {how}: {told['seconds']:.1f} s, one first call")
        self.add(f"peak memory, {name}", peaks, "GB")


def main() -> None:
    options = parse(Benchmark(), __doc__)
    device = distributed.device(options)
    if options.peak:
        name, how = options.peak
        took = seconds(prepared(CASES[name], how, device), device)
        print(json.dumps({"bytes": peak_memory(device), "seconds": took}))
        return
    torch.backends.cudnn.benchmark = True  # as in training
    done, began = Measured(options, device), time.perf_counter()
    machine = f"{hardware(device)}, torch {torch.__version__}, {date.today().isoformat()}"
    if (busy := psutil.cpu_percent(interval=1)) > 10:
        done.remarks.append(f"the machine was {busy:.0f} % busy with something else at the start: noisy")
        print(f"warning: {done.remarks[-1]}", file=sys.stderr)
    for name in (bar := tqdm([each for each in SECTIONS if each in options.only], unit="section")):
        bar.set_description(name)
        done.attempt(name, getattr(done, name))
        rows = [dataclasses.asdict(row) for row in done.rows]
        content = {"machine": machine, "rows": rows, "remarks": done.remarks, "failed": done.failed}
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(options.out, lambda temporary, text=text: temporary.write_text(text))  # type: ignore[misc]
    head = [
        "| | | median (least to greatest) | times faster, or share of memory | target |",
        "|---" * 5 + "|",
    ]
    print("\n".join([machine, "", *head, *map(str, done.rows), "", *done.remarks]))
    print(f"{time.perf_counter() - began:.0f} s; written: {options.out}")
    if done.failed:
        raise UserError(f"{len(done.failed)} failed, told above; the other rows are in {options.out}")


if __name__ == "__main__":
    run(main)
