"""Runs that are killed at any moment, and disks that fill up.

A run that was killed and gone on with has weights, log and net_best of one that was never stopped, bit for
bit. On a full disk a line names a file, and what was whole before stays so.
"""

import contextlib
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from DerainDataset import PairCrops
from machinery.checkpoints import load_checkpoint
from metrix_code.scores import read_scores
from tests.attack.conftest import Budget
from tests.attack.scripts import DERAIN, EXPORT, PAGE, RESUME, STUDENT, TINY, TRAIN, begun_together, called
from tests.small import command, lines, student, teacher
from utils import read_image

SCRIPTS = {teacher: "train_Rain200H.py", student: "train_Rain200H_real.py"}
# stage, loader's workers, processes. `make test` runs the first two; the others begin slower than they train
KINDS = [(stage, workers, size) for size in (1, 2) for workers in (0, 2) for stage in (teacher, student)]


def killed(said: Path, line: str, size: int, folder: Path, changes: float, delay: float) -> bool:
    """Trains in `size` processes, and kills them `delay` seconds after so many changes of the run's folder.

    False: they ended before.
    """
    running, before = begun_together(said, line, size), stamps(folder)
    while any(process.is_alive() for process in running):
        if (now := stamps(folder)) != before:
            before, changes = now, changes - 1
        if changes <= 0:
            time.sleep(delay)
            for process in running:
                process.kill()
        time.sleep(0.002)
    codes = [process.exitcode for process in running]
    if -signal.SIGKILL in codes:
        return True
    assert codes == [0] * size, [path.read_text(errors="replace") for path in said.glob("*/err")]
    return False


def stamps(folder: Path) -> list[tuple[str, int]]:
    found = []
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            found.append((path.name, path.stat().st_mtime_ns))
    return sorted(found)


def assert_alike(straight: Path, other: Path, about: object) -> None:
    assert lines(straight) == lines(other), about
    kept = [{path.name for path in folder.glob("*net_*")} for folder in (straight, other)]
    assert kept[0] == kept[1], about  # nothing is unfinished either
    for name in kept[0]:
        ours, theirs = (load_checkpoint(folder / name) for folder in (straight, other))
        for key in ("net", "training", "step"):
            torch.testing.assert_close(theirs[key], ours[key], rtol=0, atol=0, msg=f"{name} {key}: {about}")


def test_killed_runs_end_as_if_they_had_never_been(budget: Budget, whole: Path, tmp_path: Path) -> None:
    for seed in budget.seeds(2):
        rng, (stage, workers, size) = random.Random(seed), KINDS[seed % len(KINDS)]
        folder = tmp_path / str(seed)
        changes: dict[str, Any] = {
            "steps": rng.choice([3, 4, 6]),
            "seed": seed,
            "workers": workers,
            "save_every": rng.choice([1, 1, 2]),
            "keep_every": rng.choice([0, 2]),
            "ema": rng.choice([0.0, 0.5]),
            "val_every": rng.choice([0.5, 1.0]),
            "augment": rng.random() < 0.5,
            "log_every": rng.choice([1, 2]),
        }
        script = partial(command, SCRIPTS[stage], stage(whole, **TINY), backbone="OneConvolution", **changes)
        straight, line = (" ".join(script(save_path=folder / name)[1:]) for name in ("straight", "killed"))
        assert not killed(folder / "said", straight, size, folder / "straight", math.inf, 0)
        resume, kills = "", 3
        while killed(
            folder / "said",
            line + resume,
            size,
            folder / "killed",
            changes=rng.randint(0, 10) if kills else math.inf,
            delay=rng.choice([0, rng.uniform(0, 0.1)]),
        ):
            resume, kills = " --resume" * (folder / "killed/net_latest").exists(), kills - 1
        assert_alike(folder / "straight", folder / "killed", line)


def dies() -> None:
    """The process that reads ahead is killed in the second epoch, as where memory is short."""
    true_item = PairCrops.__getitem__

    def item(self: Any, key: Any) -> Any:
        if key[0] == 1:
            time.sleep(1)  # what came before has arrived
            os.kill(os.getpid(), signal.SIGKILL)
        return true_item(self, key)

    PairCrops.__getitem__ = item  # type: ignore[method-assign]


def test_a_killed_reader_is_one_line_that_says_how_to_go_on(here: Path) -> None:
    ended = called(here / "said", f"{STUDENT.format(here=here)} --steps 6 --workers 2", dies)
    again = ", then run it again, a training with --resume"
    assert ended.line() == "a loader worker was killed, probably out of memory: lower --workers" + again
    assert (here / "out/net_latest").exists()


# ----------------------------------------------------------------------------------------------------- disks

WRITERS = [  # each with about how many bytes it writes
    (TRAIN + " --val_every 1", 80_000),
    (RESUME.replace("{here}/teacher", "{here}/out") + " --steps 4 --val_every 1 --keep_every 1", 80_000),
    (PAGE, 50_000),
    (DERAIN + " --compare", 50_000),
    (EXPORT, 12_000),
]


def no_large_files(most: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextlib.contextmanager
def disk(at: Path, size: int) -> Iterator[Callable[[], None] | None]:
    """A disk of so many bytes; where none can be mounted, what a process calls instead."""
    at.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)]
    mounted = shutil.which("mount") and not subprocess.run(mount, capture_output=True).returncode
    try:
        yield None if mounted else partial(no_large_files, max(2000, size // 4))
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(at)], check=True)
        shutil.rmtree(at)


def test_a_disk_that_fills_up_is_told_and_nothing_whole_is_lost(budget: Budget, here: Path) -> None:
    out = here / "out"
    for seed in budget.seeds(4):
        line, needs = WRITERS[seed % len(WRITERS)]
        size = int(needs * random.Random(seed).uniform(0.05, 1.2)) // 4096 * 4096 + 4096
        with disk(out, size) as before:
            if "--resume" in line:
                if size < (here / "teacher/net_latest").stat().st_size + 4096:
                    continue  # smaller than what there is to resume
                shutil.copy(here / "teacher/net_latest", out)
            ended = called(here / "said", line.format(here=here), before)
            if ended.code:
                said = ended.line()
                assert str(out) in said or "could not be derained" in said, said
                told = said + ended.out  # of photographs, each is told on its way
                assert "No space left" in told or "too large" in told, told
            # nothing is there that is not whole, and what was before is
            assert (out / "net_latest").exists() or "--resume" not in line
            for path in out.rglob("*"):
                assert not path.name.startswith(".unfinished"), path
                if path.name.startswith("net_"):
                    load_checkpoint(path)
                elif path.name == "scores.json":
                    read_scores(path)
                elif path.suffix in (".png", ".jpg"):
                    read_image(path)
