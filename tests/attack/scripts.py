"""The project's scripts as processes of their own, begun within milliseconds, ended within half a second.

They are forked off a process that has imported everything and computed nothing.
"""

import atexit
import multiprocessing
import os
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from machinery.backbones import BACKBONES
from networks import Derained
from tests.small import ROOT, SMALL, arguments, as_torchrun_does, free_port

IMPORTED = ["tests.small", "derain", "export", "metrix_code.folders", "metrix_code.tables"]
IMPORTED += ["torch._dynamo", "torch.distributed.tensor"]  # which an optimizer would import
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(IMPORTED)
Process = multiprocessing.context.ForkServerProcess


class OneConvolution(nn.Module):
    """A backbone that costs nothing, where files and processes are the point."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, channels[0], 3, padding=1), nn.Conv2d(channels[0], 3, 1)

    def forward(self, rainy: Tensor) -> Derained:
        code = self.first(rainy)
        streaks = self.last(code)
        return Derained(rainy - streaks, streaks, code)


BACKBONES["OneConvolution"] = OneConvolution  # here, and in every process that is forked from here
TINY = SMALL | {"backbone": "OneConvolution", "channels": (2, 3, 4), "steps": 2, "save_every": 1}

# Command lines on the place `here` of conftest.py. All but RESUME write to {here}/out.
TRAIN = "train_Rain200H.py --data_path {here}/data --save_path {here}/out " + " ".join(arguments(TINY))
STUDENT = TRAIN.replace("train_Rain200H.py", "train_Rain200H_real.py --teacher {here}/teacher")
STUDENT += " --real_path {here}/real"
RESUME = TRAIN.replace("{here}/out", "{here}/teacher") + " --resume --steps 3"
PAGE = "eval_Rain200H.py --data_path {here}/data --logdir {here}/teacher --save_path {here}/out"
PAGE += " --use_GPU False"
EVAL = PAGE + " --page False"
DERAIN = "derain.py {here}/data/rain_data_test_Heavy/rain/X2 --logdir {here}/teacher --save_path {here}/out"
DERAIN += " --use_GPU False"
PSNR = "metrix_code/psnr.py --res_path {here}/data/rain_data_test_Heavy/rain/X2"
PSNR += " --gt_path {here}/data/rain_data_test_Heavy/norain"
EXPORT = "export.py --logdir {here}/teacher --save_path {here}/out/small"


class Ended(NamedTuple):
    """How a script ended: its exit code, and what it said."""

    code: int
    out: str
    err: str

    def line(self) -> str:
        """The one line of an error that is not ours, without the script's name before it."""
        said = [line for line in self.err.splitlines() if line.strip()]
        assert self.code == 2, self
        assert len(said) == 1, self.err
        return said[0].partition(": ")[2]


def begun(report: Path, command: str, before: Callable[[], None] | None = None) -> Process:
    """Begins `command`, a script and its words. `before` is called in its process, before the script."""
    report.mkdir(parents=True, exist_ok=True)
    script, *words = shlex.split(command)
    process = context.Process(target=_as_script, args=(report, script, words, before))
    process.start()
    return process


def begun_together(
    report: Path, command: str, size: int, join: Callable[[int, int, int], None] = as_torchrun_does
) -> list[Process]:
    """`command` in `size` processes, by torchrun's rules if several; what each says is in its own folder."""
    port = free_port()
    before = [partial(join, rank, size, port) if size > 1 else None for rank in range(size)]
    return [begun(report / str(rank), command, each) for rank, each in enumerate(before)]


def called(report: Path, command: str, before: Callable[[], None] | None = None) -> Ended:
    """Runs `command` to its end; what it said is in the folder `report`."""
    process = begun(report, command, before)
    process.join(120)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"{command} did not end within two minutes")
    out, err = ((report / name).read_text(errors="surrogateescape") for name in ("out", "err"))
    # without the lines of a progress bar
    return Ended(process.exitcode, out, re.sub(r"[^\n]*\d+%\|[^\n]*\|[^\n]*", "", err.replace("\r", "\n")))


def _as_script(report: Path, script: str, words: list[str], before: Callable[[], None] | None) -> None:
    for number, name in ((1, "out"), (2, "err")):
        to = os.open(report / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND, 0o666)
        os.dup2(to, number)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    multiprocessing.set_start_method("fork", force=True)  # a script's own, as it is where nobody forked it
    torch.set_num_threads(1)
    os.chdir(ROOT)
    sys.argv = [script, *words]
    try:
        if before:
            before()
        runpy.run_path(script, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # as the interpreter's end does, which a forked process does not come to
