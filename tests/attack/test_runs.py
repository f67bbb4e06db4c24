"""Runs that are killed at any moment, and disks that fill up.

A run that was killed and gone on with has weights, log and net_best of one that was never stopped, bit for
bit. On a full disk a line names a file, and what was whole before stays so.
"""

import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from config import Training
from DerainDataset import PairCrops
from machinery.checkpoints import load_checkpoint
from metrix_code.scores import read_scores
from tests.attack.conftest import Budget
from tests.attack.scripts import TINY, begun, called
from tests.attack.test_bad_inputs import DERAIN, EXPORT, PAGE, RESUME, STUDENT, TRAIN
from tests.small import command, lines, student, teacher
from utils import read_image

PATIENCE = 20  # seconds: a process whose fellow has not come yet waits for it, and is ended by its launcher
SCRIPTS = {teacher: "train_Rain200H.py", student: "train_Rain200H_real.py"}


def as_one_of(size: int, rank: int, port: int) -> None:
    """What torchrun makes of a process, where there are several."""
    if size > 1:
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
            with contextlib.suppress(FileNotFoundError):
                found.append((path.name, path.stat().st_mtime_ns))
        return found

    before = stamps()
    return lambda: time.monotonic() >= at and (kind == "time" or stamps() != before)


def assert_alike(straight: Path, killed: Path, about: object) -> None:
    kept = [sorted(path.name for path in folder.glob("net_*")) for folder in (straight, killed)]
    assert kept[0] == kept[1], about
    for name in kept[0]:
        ours, theirs = (load_checkpoint(folder / name) for folder in (straight, killed))
        for key in ("net", "training", "step"):
            assert not differs(ours[key], theirs[key]), (name, key, about)
    assert lines(straight) == lines(killed), about
    assert not list(killed.glob(".unfinished-*")), about


def differs(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return not torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() != other.keys() or any(differs(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) != len(other) or any(map(differs, one, other))
    return one != other


def series(
    place: Path, folder: Path, seed: int, kind: tuple[Callable[..., Training], int, int], most: int
) -> int:
    """One run never stopped and one killed up to `most` times; returns how often it was."""
    stage, workers, processes = kind
    rng = random.Random(f"{seed} {stage.__name__} {workers} {processes}")
    random.seed(seed)
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
    kills, killed = 0, True
    while killed:
        resume = " --resume" * (recipe.save_path / "net_latest").exists()
        moment = moments(rng, recipe.save_path, took) if kills < most else (lambda: False)
        killed = run_until(folder / f"said-{kills}", line + resume, processes, moment)
        kills += killed
    assert_alike(folder / "straight", recipe.save_path, (line, kills))
    return kills


KINDS = [
    (stage, workers, processes) for processes in (1, 2) for workers in (0, 2) for stage in (teacher, student)
]


def test_killed_runs_end_as_if_they_had_never_been(
    budget: Budget, whole: Path, tmp_path: Path, record_property: Any
) -> None:
    # one of each stage in `make test`; the others are slower to begin than to train
    most = 3 if budget.is_short else 6
    kills = [
        series(whole, tmp_path / "series", seed, KINDS[seed % len(KINDS)], most) for seed in budget.seeds(2)
    ]
    record_property("kills", sum(kills))


def dies() -> None:
    """The process that reads ahead is killed in the second epoch, as where memory is short."""
    true_item = PairCrops.__getitem__

    def item(self: Any, key: Any) -> Any:
        if key[0] == 1:
            time.sleep(1)  # what came before has arrived
            os.kill(os.getpid(), signal.SIGKILL)
        return true_item(self, key)

    PairCrops.__getitem__ = item  # type: ignore[method-assign]


AGAIN = ", then run it again, a training with --resume"


@pytest.mark.parametrize("line", [TRAIN, STUDENT])
def test_a_killed_reader_is_one_line_that_says_how_to_go_on(whole: Path, tmp_path: Path, line) -> None:
    line = f"{line.format(here=whole)} --steps 6 --workers 2 --save_path {tmp_path}/out"
    ended = called(tmp_path / "said", line, dies)
    assert ended.line() == "a loader worker was killed, probably out of memory: lower --workers" + AGAIN
    assert (tmp_path / "out/net_latest").exists()


# ----------------------------------------------------------------------------------------------------- disks

COMMANDS = [  # each with about how many bytes it writes
    (TRAIN + " --val_every 1", 80_000),
    (RESUME.replace("{here}/teacher", "{here}/out") + " --steps 4 --val_every 1 --keep_every 1", 80_000),
    (PAGE, 50_000),
    (DERAIN + " --compare --streaks", 50_000),
    (EXPORT + "/small", 12_000),
]


def no_large_files(most: int) -> None:
    """As good as a full disk where no disk can be mounted; 0: there is one."""
    if most:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextlib.contextmanager
def disk(at: Path, size: int) -> Iterator[Callable[[], None]]:
    """A disk of so many bytes at the folder, or what is to be called in a process that writes to it."""
    at.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield partial(no_large_files, 0 if mounted else max(2000, size // 4))
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(at)], check=True)
        shutil.rmtree(at)


def test_a_disk_that_fills_up_is_told_and_nothing_whole_is_lost(budget, whole, tmp_path):
    out = tmp_path / "out"
    for seed in budget.seeds(4):
        rng = random.Random(seed)
        command, needs = COMMANDS[seed % len(COMMANDS)]
        with disk(out, int(needs * rng.uniform(0.05, 1.2)) // 4096 * 4096 + 4096) as before:
            if "--resume" in command:
                try:
                    shutil.copy(whole / "teacher/net_latest", out)
                except OSError:
                    continue  # smaller than what there is to resume
            line = command.replace("{here}/new", "{here}/out").replace("{here}/out", str(out))
            ended = called(tmp_path / "said", line.format(here=whole), before)
            assert ended.code in (0, 2), ended
            if ended.code:
                said = ended.line()
                assert str(out) in said or "could not be derained" in said, said
                told = said + ended.out  # of photographs, each is told on its way
                assert "No space left" in told or "too large" in told, told
            # nothing is there that is not whole, and what was before is
            assert (out / "net_latest").exists() or "--resume" not in command
            for path in out.rglob("*"):
                assert not path.name.startswith(".unfinished"), path
                if path.name.startswith("net_"):
                    load_checkpoint(path)
                elif path.name == "scores.json":
                    read_scores(path)
                elif path.suffix in (".png", ".jpg"):
                    read_image(path)
