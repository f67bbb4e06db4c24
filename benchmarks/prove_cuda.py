#!/usr/bin/env python3
"""Proves the method on a CUDA card: what was predicted beside what is measured, a row at a time.

    python benchmarks/prove_cuda.py                     on a card: minutes, and more of them for the last two
    python benchmarks/prove_cuda.py --only agreement ssim
    python benchmarks/prove_cuda.py --only whole        the network compiled as one: by itself, it takes long
    python benchmarks/prove_cuda.py --device cpu --small        what of it has a meaning on a CPU

A check that fails says so, and the rest goes on. Each row is written to --out as it comes, so that a run
which is cut short keeps what it has; a run with other checks (--only) adds its rows to that file's. The
predictions are counts of a step's operations and bytes (benchmarks/README.md), and the rounding of each
number format; none has been held against a card yet. Where a row has none, it says what is measured.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started as a script, from any folder

import losses
from benchmarks import plain
from benchmarks.material import Step, generated_set, stage_and_batch
from benchmarks.measure import seconds
from engine import backward
from inference import Prepared, hardware
from machinery.arithmetic import set_arithmetic
from machinery.checkpoints import load_checkpoint, restore
from machinery.fast import FastGradient
from machinery.options import Options, option, parse
from networks import Conv, DerainNet, Fusion
from utils import UserError, run, write_atomically

Batch = Mapping[str, Tensor]

ROOT = Path(__file__).resolve().parents[1]

# of a bfloat16 step of each stage, traced without a card: kernels, and GB that they read and write
KERNELS = {"SID": 13_988, "SSID-KD": 14_024}
# GB that a teacher step of twelve 120x120 crops keeps: counted on a CPU at one and two crops, and carried on
SAVED = {"float32": 8.21, "bfloat16": 4.27, "bfloat16, recompute": 0.744}


@dataclass(frozen=True)
class Row:
    """`holds`: whether the measurement is what was predicted; None where only a person can tell."""

    what: str
    predicted: str
    measured: str
    holds: bool | None = None

    def line(self) -> str:
        verdict = {True: "holds", False: "DOES NOT HOLD", None: ""}[self.holds]
        return f"| {self.what} | {self.predicted} | {self.measured} | {verdict} |"


def at_most(what: str, measured: float, limit: float) -> Row:
    return Row(what, f"at most {limit:.2g}", f"{measured:.2g}", measured <= limit)


@dataclass(frozen=True)
class Setting:
    """Where and how large: the paper's network and step, or small ones."""

    device: torch.device
    small: bool

    @property
    def on_card(self) -> bool:
        return self.device.type == "cuda"

    def net(self, precision: str = "float32", recompute: bool = False) -> Prepared:
        torch.manual_seed(0)
        net = DerainNet((4, 6, 8), (2, 2, 1)) if self.small else DerainNet()
        if recompute:
            net.recompute_units()
        return Prepared(net, precision).to(self.device)

    def step(self, precision: str = "float32", recompute: bool = False, stage: str = "SID") -> Step:
        """A stage's step at the paper's size: 12 crops of 120x120, or 2 and 2 of 128x128."""
        count, side = (2, 32) if self.small else {"SID": (12, 120), "SSID-KD": (2, 128)}[stage]
        return Step(self.net(precision, recompute), *stage_and_batch(stage, count, side, self.device))


def away(ours: Tensor, exact: Tensor) -> float:
    """The length of the difference, as a share of the exact one's."""
    exact = exact.detach().double().cpu()
    return ((ours.detach().double().cpu() - exact).norm() / exact.norm()).item()


def gradient(net: nn.Module) -> Tensor:
    return torch.cat(
        [p.grad.detach().double().cpu().flatten() for p in net.parameters() if p.grad is not None]
    )


# -------------------------------------------------------------------------------------------- what is proved


def agreement(at: Setting) -> Iterator[Row]:
    """Output, terms and gradient of both stages against the same in float64 on the CPU."""
    # rounding: 24 bits of mantissa, 11 in TF32, 8 in bfloat16, through some hundred convolutions
    limits = {"float32": (1e-4, 1e-4), "tf32": (2e-3, 0.05), "bfloat16": (1e-2, 0.2)}
    for name in ("SID", "SSID-KD"):
        stage, batch = stage_and_batch(name, 1, 64, torch.device("cpu"))
        exact = at.net().net.cpu().double()
        doubled = {key: images.double() for key, images in batch.items()}
        expected = stage.terms(exact, doubled)
        backward(stage, exact, doubled, 1)
        output = exact(doubled["rainy"]).derained
        here = {key: images.to(at.device) for key, images in batch.items()}
        for precision in ("float32", *(["tf32"] if at.on_card else []), "bfloat16"):
            for recompute in (False, True):
                set_arithmetic(precision)
                net = at.net(precision, recompute)
                terms = stage.terms(net, here)
                backward(stage, net, here, 1)
                found = (
                    away(net(here["rainy"]).derained, output),
                    max(away(terms[each], expected[each]) for each in terms),
                    away(gradient(net), gradient(exact)),
                )
                limit, of_gradient = limits[precision]
                yield Row(
                    f"{name}, {precision}{', recompute' if recompute else ''}: output, terms, gradient",
                    f"at most {limit:.2g}, {limit:.2g}, {of_gradient:.2g}",
                    ", ".join(f"{each:.2g}" for each in found),
                    max(found[:2]) <= limit and found[2] <= of_gradient,
                )


def ssim(at: Setting) -> Iterator[Row]:
    """The SSIM's gradient in both layouts, with TF32 on: its blur is true float32 all the same."""
    set_arithmetic("tf32")
    torch.manual_seed(0)
    x, y = torch.rand(2, 2, 3, 64, 64, dtype=torch.float64)
    x.requires_grad_()
    (exact,) = torch.autograd.grad(losses.ssim(x, y), x)
    for layout in (torch.contiguous_format, torch.channels_last):
        a, b = (each.detach().float().to(at.device).contiguous(memory_format=layout) for each in (x, y))
        (ours,) = torch.autograd.grad(losses.ssim(a.requires_grad_(), b), a)
        yield at_most(f"gradient of SSIM, {str(layout).removeprefix('torch.')}", away(ours, exact), 1e-4)


def dark_channel(at: Setting) -> Iterator[Row]:
    """Window 128 forward and backward: its gradient against three-dimensional pooling, and its time."""
    window = 32 if at.small else 128
    torch.manual_seed(0)
    count = 2 * 3 * window * window  # no two values alike: among equals, whose gradient it is is not defined
    image = (torch.randperm(count) / count).view(2, 3, window, window).to(at.device).requires_grad_()

    def work() -> Tensor:
        return torch.autograd.grad(losses.dark_channel(image, window), image)[0]

    exact = image.detach().double().cpu().requires_grad_()
    (expected,) = torch.autograd.grad(plain.dark_channel(exact, window), exact)
    yield at_most(f"gradient of the dark channel, window {window}", away(work(), expected), 1e-6)
    measured = f"{1000 * median_seconds(work, at, 5):.3g} ms"
    yield Row(f"dark channel, window {window}, forward and backward", "", measured)


def strides(at: Setting) -> Iterator[Row]:
    """Every map of a step lies channels last, and every gradient as its weight: no copy in between."""
    for precision in ("float32", "bfloat16"):
        step = at.step(precision)
        lies: list[bool] = []

        def look(module: nn.Module, _: Any, out: Tensor, lies: list[bool] = lies) -> None:
            lies.append(out.is_contiguous(memory_format=torch.channels_last))

        for module in step.net.modules():
            if isinstance(module, Conv | Fusion):
                module.register_forward_hook(look)
        step()
        wrong = [p for p in step.net.parameters() if p.grad is None or p.grad.stride() != p.stride()]
        crossed = lies.count(False)
        yield Row(f"{precision}: maps not channels last", "0", f"{crossed} of {len(lies)}", not crossed)
        yield Row(f"{precision}: gradients that lie otherwise than weights", "0", str(len(wrong)), not wrong)


def waits(at: Setting) -> Iterator[Row]:
    """No step waits for the card."""
    if not at.on_card:
        return
    for stage in ("SID", "SSID-KD"):
        for how in ("eager", "recorded"):
            step = at.step("bfloat16", stage=stage)
            if how == "recorded":
                step.recorded()
            step()
            torch.cuda.synchronize()
            try:
                torch.cuda.set_sync_debug_mode("error")
                step()
                found = "none"
            except RuntimeError as error:
                found = str(error).splitlines()[0]
            finally:
                torch.cuda.set_sync_debug_mode("default")
            what = f"where the processor waits for the card in a step, {stage}, {how}"
            yield Row(what, "none", found, found == "none")


def kernels(at: Setting) -> Iterator[Row]:
    """How many a bfloat16 step launches, how long the card works on them, how much of the step that is."""
    if not at.on_card:
        return
    for stage in ("SID", "SSID-KD"):
        for how, share in (("eager", "a fifth to a third"), ("recorded", "nearly all")):
            step = at.step("bfloat16", stage=stage)
            if how == "recorded":
                step.recorded()
            for _ in range(3):
                step()
            # the card's side alone: to note each operation as well would slow the processor, and so the step
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
                took = seconds(step, at.device)
            of_card = torch.autograd.DeviceType.CUDA
            # annotations lie over the kernels that they name
            done = [e for e in seen.events() if e.device_type == of_card and not e.is_user_annotation]
            busy = sum(each.time_range.elapsed_us() for each in done) / 1e6
            name, expected = f"bfloat16 step, {stage}, {how}", KERNELS[stage]
            holds = abs(len(done) / expected - 1) < 0.15
            yield Row(f"{name}: kernels", f"{expected:,}, within 15 %", f"{len(done):,}", holds)
            yield Row(f"{name}: the card works", "see benchmarks/README.md", f"{1000 * busy:.3g} ms")
            yield Row(f"{name}: so of its time", share, f"{busy / took:.0%}")


def saved(at: Setting) -> Iterator[Row]:
    """What a step keeps for its backward pass, whoever runs it, and the card's peak."""
    for precision, recompute in (("float32", False), ("bfloat16", False), ("bfloat16", True)):
        step = at.step(precision, recompute)
        kept: dict[int, int] = {}

        def note(x: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            total = step.stage.terms(step.net, step.batch)
        how = f"{precision}{', recompute' if recompute else ''}"
        predicted = "" if at.small else f"{SAVED[how]:.3g} GB"
        gigabytes = sum(kept.values()) / 1e9
        holds = None if at.small else abs(gigabytes / SAVED[how] - 1) < 0.1
        yield Row(f"kept for the backward pass, {how}", predicted, f"{gigabytes:.3g} GB", holds)
        del total
        if at.on_card:
            step()
            torch.cuda.reset_peak_memory_stats()
            step()
            peak = torch.cuda.max_memory_allocated() / 1e9
            yield Row(f"peak memory of a step, {how}", f"above {SAVED[how]:.3g} GB", f"{peak:.3g} GB")


def speed(at: Setting) -> Iterator[Row]:
    """A bfloat16 step, eager and as one CUDA graph. A loader needs a fraction of it: benchmarks/run.py."""
    yield from timed(at, "SID", "recorded", predicted="about 55 ms", prepare=Step.recorded)
    if at.on_card:  # elsewhere both are one
        yield from timed(at, "SID", "eager", predicted="85 to 100 ms", prepare=lambda step: step)
        yield from timed(at, "SSID-KD", "recorded", predicted="", prepare=Step.recorded)
        yield from timed(at, "SSID-KD", "eager", predicted="85 to 100 ms", prepare=lambda step: step)
        yield Row("step, SID, eager float32", "", f"{1000 * median_seconds(at.step(), at, 10):.3g} ms")


def units(at: Setting) -> Iterator[Row]:
    """The same with the units compiled: minutes, most of them on the processor."""
    if at.on_card:  # elsewhere it takes minutes too, and proves nothing

        def compiled(step: Step) -> Step:
            step.net.net.compile_units()
            return step

        yield from timed(at, "SID", "compiled units", predicted="", prepare=compiled)
        yield from timed(
            at,
            "SID",
            "compiled units, recorded",
            predicted="",
            prepare=lambda step: compiled(step).recorded(),
        )


def whole(at: Setting) -> Iterator[Row]:
    """The same with the network compiled as one graph, in the CUDA graph: --fast --compile."""
    if at.on_card:

        def compiled(step: Step) -> Step:
            step.net.net.compile(dynamic=False, fullgraph=True)
            return step.recorded()

        yield from timed(at, "SID", "compiled whole, recorded", predicted="about 33 ms", prepare=compiled)


def timed(
    at: Setting, stage: str, how: str, *, predicted: str, prepare: Callable[[Step], Step]
) -> Iterator[Row]:
    """A step in some way: its first losses against the eager step's, how long they take, its time."""
    eager = at.step("bfloat16", stage=stage)
    expected = [eager()["total"].item() for _ in range(3)]
    del eager
    step = prepare(at.step("bfloat16", stage=stage))
    began = time.perf_counter()
    went = [step()["total"].item() for _ in range(3)]
    begun = time.perf_counter() - began
    apart = max(abs(a / b - 1) for a, b in zip(went, expected, strict=True))
    yield at_most(f"losses of three steps, {stage}, {how}, against eager", apart, 2e-2)
    yield Row(f"its first three steps, {stage}, {how}", "", f"{begun:.3g} s")
    measured = f"{1000 * median_seconds(step, at, 20 if at.on_card else 3):.3g} ms"
    yield Row(f"step, {stage}, {how}", predicted if at.on_card else "", measured)
    torch._dynamo.reset()


def resumed(at: Setting) -> Iterator[Row]:
    """Three steps, and three more from what they leave, are six: bit for bit here, to rounding from a CPU."""
    for made_on in dict.fromkeys((at.device, torch.device("cpu"))):
        set_arithmetic("float32", deterministic=True)
        through, again = (
            Step(at.net().to(device), *stage_and_batch("SID", 1, 32, device))
            for device in (made_on, at.device)
        )
        for _ in range(3):
            through()
        constant = [LambdaLR(step.optimizer, lambda _: 1.0) for step in (through, again)]
        holders: dict[str, Any] = {
            "optimizer": through.optimizer,
            "scheduler": constant[0],
            "stage": through.stage,
        }
        held: dict[str, Any] = copy.deepcopy({name: each.state_dict() for name, each in holders.items()})
        weights = copy.deepcopy(through.net.state_dict())
        again.net.load_state_dict(weights)
        restore(again.optimizer, constant[1], again.stage, training=held, path=Path("what was held"))
        for _ in range(3):
            through()
            again()
        name = f"three steps on {made_on.type}, and three more on {at.device.type}"
        moves = [
            torch.cat(
                [(p.detach().cpu() - weights[key].cpu()).flatten() for key, p in net.named_parameters()]
            )
            for net in (through.net, again.net)
        ]
        if made_on == at.device:
            apart = int((moves[0] != moves[1]).sum())
            yield Row(f"{name}, deterministic: weights that differ", "0", f"{apart:,}", apart == 0)
        else:
            (group,) = again.optimizer.param_groups
            fused = group["fused"] and all(each["step"].is_cuda for each in again.optimizer.state.values())
            yield Row(
                f"{name}: Adam is fused, its counts on the card", "yes", "yes" if fused else "no", fused
            )
            # a gradient of nearly 0 may differ in sign, and Adam moves by the sign
            yield at_most(f"{name}: how far the weights then go otherwise", away(*reversed(moves)), 0.1)


def killed(at: Setting) -> Iterator[Row]:
    """The train script, killed and resumed, against one that was not: its weights bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        generated_set(Path(folder) / "data", 4)
        command = [sys.executable, "train_Rain200H.py", "--deterministic", "--data_path", f"{folder}/data"]
        command += [
            "--gpu_id",
            "0",
            "--batchSize",
            "2",
            "--patch_size",
            "32",
            "--val_every",
            "0",
            "--workers",
            "1",
            "--save_every",
            "2",
        ]
        command += ["--use_GPU", str(at.on_card)]
        if at.small:
            command += ["--channels", "4,6,8", "--units", "2,1,1"]
        first = [*command, "--steps", "6", "--save_path"]
        with subprocess.Popen(
            [*first, f"{folder}/killed"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            while process.poll() is None and not Path(folder, "killed/net_latest").exists():
                time.sleep(0.02)
            process.kill()
        for more in ([f"{folder}/killed", "--resume"], [f"{folder}/straight"]):
            subprocess.run([*first, *more], cwd=ROOT, capture_output=True, text=True, check=True)
        ends = [load_checkpoint(Path(folder) / each / "net_latest") for each in ("killed", "straight")]
        apart = sum(not torch.equal(value, ends[1]["net"][name]) for name, value in ends[0]["net"].items())
        yield Row("steps of a run killed and resumed", "6", str(ends[0]["step"]), ends[0]["step"] == 6)
        yield Row("its weights that differ from a straight run's, deterministic", "0", str(apart), apart == 0)


def processes(at: Setting) -> Iterator[Row]:
    """A world of one, by the backend that cards have; and two processes on this one device against one."""
    with tempfile.TemporaryDirectory() as folder:
        stage, batch = stage_and_batch("SID", 2, 64, at.device)
        alone = at.net()
        backward(stage, alone, batch, 1)
        backend = "nccl" if at.on_card else "gloo"
        dist.init_process_group(backend, rank=0, world_size=1, store=dist.FileStore(f"{folder}/one", 1))
        try:
            net = at.net()
            model = DistributedDataParallel(net, gradient_as_bucket_view=True)
            backward(stage, model, batch, 1)
            yield at_most(
                f"gradient in a world of one, {backend}", away(gradient(net), gradient(alone)), 1e-5
            )
        finally:
            dist.destroy_process_group()
        torch.multiprocessing.spawn(half_of_it, (at, folder), nprocs=2)
        for how in ("DistributedDataParallel", "recorded"):
            halves = [torch.load(f"{folder}/{how}{rank}") for rank in range(2)]
            one = torch.equal(*halves)
            yield Row(f"two processes have one gradient, {how}", "yes", "yes" if one else "no", one)
            yield at_most(f"gradient of two processes, {how}", away(halves[0], gradient(alone)), 1e-4)


def half_of_it(rank: int, at: Setting, folder: str) -> None:
    """One of two processes: its half of the batch, the gradient left in a file."""
    set_arithmetic("float32")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, store=dist.FileStore(f"{folder}/two", 2))
    stage, batch = stage_and_batch("SID", 2, 64, at.device)
    mine = {name: images[rank : rank + 1] for name, images in batch.items()}
    net = at.net()
    backward(stage, DistributedDataParallel(net, gradient_as_bucket_view=True), mine, 1)
    torch.save(gradient(net), f"{folder}/DistributedDataParallel{rank}")
    net = at.net()
    FastGradient(partial(backward, stage, net, parts=1), net.parameters())([mine])
    torch.save(gradient(net), f"{folder}/recorded{rank}")
    dist.destroy_process_group()


def median_seconds(call: Callable[[], Any], at: Setting, times: int) -> float:
    call()  # warms up
    return statistics.median(seconds(call, at.device) for _ in range(times))


CHECKS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    each.__name__: each
    for each in (
        *(agreement, ssim, dark_channel, strides, saved, resumed, waits, kernels, speed),
        *(processes, killed, units, whole),
    )
}


# ------------------------------------------------------------------------------------------------ the table


def proved(names: Iterable[str], at: Setting) -> Iterator[tuple[str, Row]]:
    """The rows of the checks named, each with its check's name; one that raises ends its own check alone."""
    for name in names:
        began = time.perf_counter()
        try:
            set_arithmetic("float32")
            torch.backends.cudnn.benchmark = at.on_card  # as in training
            for row in CHECKS[name](at):
                yield name, row
        except Exception as error:
            traceback.print_exc()
            last = (str(error).strip().splitlines() or [""])[0]
            yield name, Row(name, "", f"failed: {type(error).__name__}: {last}", False)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    set_arithmetic("float32")


@dataclass(frozen=True)
class Proof(Options):
    """The options of this script."""

    only: tuple[str, ...] = option(tuple(CHECKS), "which checks", tuple(CHECKS))
    device: str = option("auto", "auto: cuda where there is one", ("auto", "cpu", "cuda"))
    small: bool = option(False, "a small network and small crops")
    out: Path = option(Path("benchmarks/proof.json"), "the rows as JSON")


def main() -> None:
    options = parse(Proof(), __doc__)
    there = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(there if options.device == "auto" else options.device)
    if device.type == "cuda" and there != "cuda":
        raise UserError("--device cuda: torch sees no CUDA device here")
    machine = f"{hardware(device)}, torch {torch.__version__}, {date.today().isoformat()}"
    print(f"{machine}\n\n| | predicted | measured | |\n| --- | --- | --- | --- |", flush=True)
    # what an earlier run found by other checks stays
    kept = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    kept = [row for row in kept if row["check"] not in options.only]
    rows: list[Row] = []
    for name, row in proved(options.only, Setting(device, options.small)):
        print(row.line(), flush=True)
        rows.append(row)
        kept.append({"check": name, "machine": machine, **dataclasses.asdict(row)})
        text = json.dumps({"rows": kept}, indent=1) + "\n"
        write_atomically(options.out, lambda temporary, text=text: temporary.write_text(text))  # type: ignore[misc]
    print(f"\nwritten: {options.out}")
    if wrong := [row.what for row in rows if row.holds is False]:
        raise UserError(f"{len(wrong)} of {len(rows)} do not hold: {'; '.join(wrong)}")


if __name__ == "__main__":
    run(main)
