"""Training runs that are killed at random moments, and gone on with until they are done.

Weights, log and net_best must be those of a run that was never stopped, bit for bit.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from backbones import BACKBONES
from config import Training
from machinery.checkpoints import load_checkpoint
from tests import layouts
from tests.attack.conftest import Budget
from tests.attack.scripts import BAR, OneConvolution, begun, called, with_one_convolution
from tests.small import SMALL, command, lines, student, teacher, trained

TINY: dict[str, Any] = {**SMALL, "backbone": "OneConvolution", "save_every": 1, "val_every": 1}
PATIENCE = 20  # seconds: a process whose fellow has not come yet waits for it, and is ended by its launcher
SCRIPTS = {teacher: "train_Rain200H.py", student: "train_Rain200H_real.py"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    layouts.rain200(folder / "data")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(BACKBONES, "OneConvolution", OneConvolution)
        trained(teacher(folder, **{**TINY, "steps": 1, "val_every": 0}))
    return folder


def as_one_of(size: int, rank: int, port: int) -> None:
    """What torchrun makes of a process, where there are several."""
    with_one_convolution()
    if size == 1:
        return
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def run_until(folder: Path, line: str, processes: int, moment: Callable[[], bool]) -> bool:
    """Trains until `moment` has come, and kills; or to the end. Whether it was killed.

    Of two processes one is killed, as a card's or a node's end would, and then the other ends by itself.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = [
        begun(folder / f"said-{rank}", line, partial(as_one_of, processes, rank, port))
        for rank in range(processes)
    ]
    killed_at = None
    while any(process.is_alive() for process in running):
        if killed_at is None and moment():
            victim = random.choice(running)
            assert victim.pid
            os.kill(victim.pid, signal.SIGKILL)
            killed_at = time.monotonic()
        if killed_at and time.monotonic() > killed_at + PATIENCE:  # a launcher ends those that still wait
            for process in running:
                process.kill()
        time.sleep(0.002)
    codes = [process.exitcode for process in running]
    # not of those killed: their readers, left alone, say so each in its way
    said = [
        (folder / f"said-{rank}/err").read_text(errors="replace")
        for rank, code in enumerate(codes)
        if code != -signal.SIGKILL
    ]
    assert "Traceback" not in "".join(said), said
    if -signal.SIGKILL not in codes:
        assert codes == [0] * processes, (codes, said)
    return -signal.SIGKILL in codes


def moments(rng: random.Random, folder: Path, seconds: float) -> Callable[[], bool]:
    """When to kill: after a time, or while a file is being written, or when one has just come."""
    at = time.monotonic() + rng.uniform(0, seconds)
    kind = rng.choice(["time", "time", "writing", "written"])
    name = rng.choice([".unfinished-*", "net_latest", "net_best", "log.jsonl"])

    def stamps() -> list[tuple[str, int]]:
        found = []
        for path in folder.glob(".unfinished-*" if kind == "writing" else name):
            try:
                found.append((path.name, path.stat().st_mtime_ns))
            except FileNotFoundError:
                continue
        return found

    before = stamps()
    return lambda: time.monotonic() >= at and (kind == "time" or stamps() != before)


def unlike(straight: Path, killed: Path) -> list[str]:
    """What two runs' folders differ in."""
    different = []
    kept, theirs_kept = (sorted(path.name for path in folder.glob("net_*")) for folder in (straight, killed))
    if kept != theirs_kept:
        return [f"checkpoints: {kept}, {theirs_kept}"]
    for name in kept:
        ours, theirs = (load_checkpoint(folder / name) for folder in (straight, killed))
        if differs(ours["net"], theirs["net"]):
            different.append(f"the weights of {name}")
        if differs(ours["training"], theirs["training"]) or ours["step"] != theirs["step"]:
            different.append(f"the training state of {name}")
    if lines(straight) != lines(killed):
        different.append("log.jsonl")
    if left := [path.name for path in killed.glob(".unfinished-*")]:
        different.append(f"leftovers: {left}")
    return different


def differs(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return not torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() != other.keys() or any(differs(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) != len(other) or any(map(differs, one, other))
    return one != other


def series(
    place: Path, seed: int, stage: Callable[..., Training], workers: int, processes: int, most: int
) -> int:
    """One run never stopped and one killed up to `most` times; returns how often it was."""
    rng = random.Random(f"{seed} {stage.__name__} {workers} {processes}")
    random.seed(seed)
    folder = place / "series"
    shutil.rmtree(folder, ignore_errors=True)
    changes: dict[str, Any] = {
        "steps": rng.choice([3, 4, 6]),
        "seed": seed,
        "save_every": rng.choice([1, 1, 2]),
        "keep_every": rng.choice([0, 2]),
        "ema": rng.choice([0.0, 0.5]),
        "val_every": rng.choice([0.5, 1.0]),
        "augment": rng.random() < 0.5,
        "log_every": rng.choice([1, 2]),
    }
    recipe = stage(place, **{**TINY, "workers": workers, "save_path": folder / "killed", **changes})
    words = ["--backbone OneConvolution", *(f"--{name} {value}" for name, value in changes.items())]
    line = " ".join([*command(SCRIPTS[stage], recipe)[1:], *words])  # type: ignore[arg-type]
    began = time.monotonic()
    straight = line.replace(f"{folder}/killed", f"{folder}/straight")
    assert not run_until(folder / "straight-said", straight, processes, lambda: False)
    took = time.monotonic() - began
    kills = 0
    for attempt in range(1000):
        resume = " --resume" * (recipe.save_path / "net_latest").exists()
        moment = moments(rng, recipe.save_path, took) if kills < most else (lambda: False)
        if run_until(folder / f"said-{attempt}", line + resume, processes, moment):
            kills += 1
            continue
        break
    different = unlike(folder / "straight", recipe.save_path)
    assert not different, (different, line, kills)
    return kills


KINDS = [
    (stage, workers, processes) for processes in (1, 2) for workers in (0, 2) for stage in (teacher, student)
]


def test_killed_runs_end_as_if_they_had_never_been(budget: Budget, place: Path, record_property: Any) -> None:
    kills = 0
    # one of each stage in `make test`; the others are slower to begin than to train
    for seed in budget.seeds(2):
        stage, workers, processes = KINDS[seed % len(KINDS)]
        kills += series(place, seed, stage, workers, processes, most=3 if budget.is_short else 6)
    record_property("kills", kills)


@pytest.mark.parametrize("stage", [teacher, student])
def test_a_killed_loader_worker_is_one_line_that_says_how_to_go_on(
    place: Path, stage: Callable[..., Training]
) -> None:
    recipe = stage(
        place, **{**TINY, "workers": 2, "steps": 6, "save_path": place / f"worker-{stage.__name__}"}
    )
    line = " ".join([*command(SCRIPTS[stage], recipe)[1:], "--backbone OneConvolution"])  # type: ignore[arg-type]
    ended = called(place / "said", line, worker_dies)
    told = ended.line()
    assert told.startswith(
        "a process that reads images ahead was killed, as a machine does whose memory is used up: "
    )
    assert "lower --workers; go on from the last checkpoint with: python " in told and told.endswith(
        " --resume"
    )
    assert not BAR.search(told)


def worker_dies() -> None:
    """A worker of the loader is killed at the second epoch, as the kernel does where memory is short."""
    import DerainDataset

    with_one_convolution()
    true_crop = DerainDataset.PairCrops.__getitem__

    def crop(self: Any, key: tuple[int, int]) -> Any:
        if key[0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return true_crop(self, key)

    DerainDataset.PairCrops.__getitem__ = crop  # type: ignore[method-assign]
