"""What a training run leaves in its folder: lines of JSON for programs, TensorBoard for people."""

import contextlib
import itertools
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from machinery.checkpoints import BEST, LATEST
from utils import UserError, content_of, file_errors, sweep, to_tensor, write_text

LOG = "log.jsonl"


def _told_by_the_next(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread, and raises its full disk again at the next figure."""
    if not isinstance(failure.exc_value, OSError):
        sys.__excepthook__(failure.exc_type, failure.exc_value or Exception(), failure.exc_traceback)


threading.excepthook = _told_by_the_next


@contextlib.contextmanager
def run_folder(path: Path, anew: bool, log: Callable[[str], None]) -> Iterator[None]:
    """Makes a run's folder, and keeps other runs out of it; `anew` moves an earlier run out of the way.

    Raises UserError where another run is at work in it.
    """
    with file_errors(path, "give another --save_path", done="written to"):
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    with lock:
        _lock(lock, path, log)
        sweep(path)  # what a killed run left unfinished
        if anew:
            _set_earlier_run_aside(path, log)
        yield


def _lock(file: TextIO, folder: Path, log: Callable[[str], None]) -> None:
    # a record lock: it ends with the process, however that ends, and loader workers do not inherit it
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise UserError(
            f"another training is at work in {folder}: wait for it, or give another --save_path"
        ) from None
    except (ImportError, OSError):  # Windows, or a network disk without locks
        log(f"warning: {folder} cannot be locked here: start no second run in it")


def _set_earlier_run_aside(folder: Path, log: Callable[[str], None]) -> None:
    """Moves what an earlier run left to the first free earlier-N: nothing written is lost."""
    patterns = (LATEST, BEST, "net_[0-9]*", LOG, "events.out.tfevents.*")
    if files := [path for pattern in patterns for path in folder.glob(pattern)]:
        aside = next(p for n in itertools.count(1) if not (p := folder / f"earlier-{n}").exists())
        aside.mkdir()
        for path in files:
            path.rename(aside / path.name)
        log(f"the earlier run in {folder} is now in {aside}")


class RunLog:
    """Writes `folder`/log.jsonl and TensorBoard's event files, each figure under one name; a context manager.

    One process of a run writes; the others are `silent`.

    From `step` on, `validated` being the last step that was: what a killed run logged beyond the checkpoint
    that it resumes from is taken back.
    """

    def __init__(self, folder: Path, step: int, validated: int, silent: bool = False) -> None:
        self.folder, self.silent = folder, silent
        self.watch(step)
        if silent:
            return
        path = folder / LOG
        kept = [
            line
            for line in logged(path)
            if line["step"] <= (validated if "validation/psnr" in line else step)
        ]
        text = "".join(f"{json.dumps(line)}\n" for line in kept)
        write_text(path, text)
        with file_errors(folder, done="written to"):
            self.lines = path.open("a")
            self.board = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.silent:
            with file_errors(self.folder, done="written to"):
                self.lines.close()
                self.board.close()

    def watch(self, step: int) -> None:
        """From here on the training's pace is measured: a validation, say, does not count."""
        self.watched_from, self.watched_since = step, time.perf_counter()

    def recipe(self, step: int, command: str, recipe: Mapping[str, Any], data: Sequence[str]) -> None:
        """The command, the data and every option as text, and as hyperparameters beside the final score."""
        if self.silent:
            return
        rows = "\n".join(f"| {name} | {value} |" for name, value in recipe.items())
        text = f"    {command}\n\n" + "\n".join(f"- {line}" for line in data)
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in recipe.items()
        }
        scores = dict.fromkeys(("validation/psnr", "validation/ssim"), 0.0)
        with file_errors(self.folder, done="written to"):
            self.board.add_text("recipe", f"{text}\n\n| option | value |\n|---|---|\n{rows}", step)
            for summary in hparams(plain, scores):
                self.board._get_file_writer().add_summary(summary)

    def terms(self, step: int, terms: Mapping[str, float], *, lr: float, batch_size: int) -> None:
        """A step's terms, with its learning rate and the images a second since it was last logged.

        Raises UserError where the loss is no number: such weights are not kept.
        """
        if not math.isfinite(terms["total"]):
            raise UserError(
                f"the loss is {terms['total']} at step {step}: {self.folder / LATEST} keeps an earlier step, "
                "if one was saved; try a lower --lr"
            )
        images = (step - self.watched_from) * batch_size
        pace = images / (time.perf_counter() - self.watched_since)
        self.watch(step)
        losses = {f"loss/{name}": terms[name] for name in ("total", *terms)}
        self.scalars(step, {**losses, "optimizer/lr": lr, "speed/images_per_second": pace})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line {"step": step, ...} and a TensorBoard point for each value."""
        if self.silent:
            return
        with file_errors(self.lines.name, done="written"):
            self.lines.write(json.dumps({"step": step, **values}) + "\n")
            self.lines.flush()
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def strip(
        self,
        step: int,
        name: str,
        derained: Callable[[Tensor], Tensor],
        rainy: np.ndarray,
        clean: np.ndarray | None,
    ) -> None:
        """A picture of one image's middle: rainy | derained | streaks times three | clean, if it is known."""
        if self.silent:
            return
        before = to_tensor(_middle(rainy))
        after = derained(before)
        images = [
            before,
            after,
            3 * (before - after),
            *([] if clean is None else [to_tensor(_middle(clean))]),
        ]
        gap = [F.pad(image.clamp(0, 1), (0, 4), value=1.0) for image in images]
        with file_errors(self.folder, done="written to"):
            self.board.add_image(name, torch.cat(gap, 2)[..., :-4], step)


def _middle(image: np.ndarray, most: int = 320) -> np.ndarray:
    top, left = (max(0, (side - most) // 2) for side in image.shape[:2])
    return image[top : top + most, left : left + most]


def logged(path: Path) -> list[dict[str, float]]:
    """The lines of a log.jsonl, none where there is no such file.

    One cut short by a kill, and whatever else does not give numbers at a step, is left out. Raises UserError
    where the file cannot be read.
    """
    lines = []
    for line in content_of(path).splitlines() if os.path.lexists(path) else ():
        with contextlib.suppress(ValueError, RecursionError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and _is_logged(line)]


def _is_logged(line: dict[str, Any]) -> bool:
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in line.values())
    return numbers and isinstance(line.get("step"), int)
