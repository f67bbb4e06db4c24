"""Disks that fill up at any moment: a line that names a file, and what was whole before stays so."""

from __future__ import annotations

import functools
import random
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backbones import BACKBONES
from machinery.checkpoints import load_checkpoint
from metrix_code.scores import read_scores
from tests.attack.conftest import Budget
from tests.attack.scripts import OneConvolution, called, with_one_convolution
from tests.attack.test_bad_inputs import DERAIN, EVAL, EXPORT, PSNR, RESUME, TINY, TRAIN
from tests.small import teacher, trained
from utils import read_image

SHEET = "tools/contact_sheet.py rainy={here}/data/rain_data_test_Heavy/rain/X2 --out {here}/out/sheet.png"
COMMANDS = [  # each with about how many bytes it writes
    (TRAIN + " --val_every 1", 80_000),
    (RESUME.replace("{here}/teacher", "{here}/out") + " --steps 4 --val_every 1 --keep_every 1", 80_000),
    (EVAL.replace(" --page False", ""), 50_000),
    (DERAIN + " --compare --streaks", 50_000),
    (EXPORT + "/small", 12_000),
    (PSNR + " --csv {here}/out/scores.csv", 4_000),
    (SHEET, 12_000),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disks")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(BACKBONES, "OneConvolution", OneConvolution)
        trained(teacher(folder, **TINY))
    return folder


def no_large_files(most: int) -> None:
    """As good as a full disk where no disk can be mounted; 0: there is one."""
    with_one_convolution()
    if not most:
        return
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextmanager
def disk(at: Path, size: int) -> Iterator[Callable[[], None]]:
    """A disk of so many bytes at the folder, or what is to be called in a process that writes to it."""
    at.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield functools.partial(no_large_files, 0 if mounted else max(2000, size // 4))
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(at)], check=True)
        shutil.rmtree(at)


def test_a_disk_that_fills_up_is_told_and_nothing_whole_is_lost(budget: Budget, place: Path) -> None:
    for seed in budget.seeds(4):
        rng = random.Random(seed)
        command, needs = COMMANDS[seed % len(COMMANDS)]
        with disk(place / "out", int(needs * rng.uniform(0.05, 1.2)) // 4096 * 4096 + 4096) as before:
            earlier = place / "out/net_latest"
            if "--resume" in command:
                try:
                    shutil.copy(place / "teacher/net_latest", earlier)
                except OSError:
                    continue  # smaller than what there is to resume
            line = command.format(here=place).replace(str(place / "new"), str(place / "out"))
            ended = called(place / "said", line, before)
            assert ended.code in (0, 2), ended
            if ended.code:
                said = ended.line()
                assert str(place / "out") in said or "could not be derained" in said, said
                told = said + ended.out  # of photographs, each is told on its way
                assert "No space left" in told or "too large" in told, told
            assert_whole(place / "out", begun="--resume" in command)


def assert_whole(folder: Path, begun: bool) -> None:
    """Nothing is there that is not whole, and what was before is."""
    assert not begun or (folder / "net_latest").exists()
    for path in folder.rglob("*"):
        assert not path.name.startswith(".unfinished"), path
        if path.name.startswith("net_"):
            load_checkpoint(path)
        elif path.name == "scores.json":
            read_scores(path)
        elif path.suffix in (".png", ".jpg"):
            read_image(path)
