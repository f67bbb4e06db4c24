"""What a training run writes to its folder: lines of JSON for programs, TensorBoard for people."""

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from utils import UserError, escape_unprintable, file_errors, to_tensor, to_uint8, write_text

LOG = "log.jsonl"
EVENTS = "events.out.tfevents.*"
SCORES = {"validation/psnr": "PSNR/validation", "validation/ssim": "SSIM/validation"}  # sorted before loss/
HYPERPARAMETERS = ("dataset", "stage", "preset", "lr", "steps", "batchSize")  # columns before the scores
PATIENCE = 5  # seconds to wait for the lock: a killed run's loader workers may still hold it


def _raised_by_the_next_write(failure: threading.ExceptHookArgs) -> None:
    """Silences TensorBoard's writer thread: the next write raises its error, such as a full disk, again."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


threading.excepthook = _raised_by_the_next_write


def locked(folder: Path) -> contextlib.AbstractContextManager:
    """Makes a run's folder and keeps other runs out of it. Raises UserError where one is at work there."""
    with file_errors(folder, "give another --save_path", done="written to", kinds=(UnicodeError,)):
        str(folder).encode()  # TensorBoard writes to folders with names in UTF-8 only
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return FileLock(folder / ".lock").acquire(timeout=PATIENCE)
        except Timeout:
            raise UserError(
                f"another training is running in {folder}: wait for it or give another --save_path"
            ) from None


def files_of_run(folder: Path) -> list[Path]:
    """The checkpoints, the log and TensorBoard's events in a folder."""
    return [path for pattern in ("net_*", LOG, EVENTS) for path in folder.glob(pattern)]


def set_earlier_run_aside(folder: Path) -> str:
    """Moves the files of an earlier run to the first free earlier-N; returns a line that says so, or ""."""
    with file_errors(folder, done="written to"):
        if not (files := files_of_run(folder)):
            return ""
        aside = next(p for n in itertools.count(1) if not (p := folder / f"earlier-{n}").exists())
        aside.mkdir()
        for path in files:
            path.rename(aside / path.name)
    return f"the earlier run in {folder} is now in {aside}"


class RunLog:
    """Writes `folder`/log.jsonl and TensorBoard's event files, in one process of a run.

    What a killed run has logged after `step`, the step of the checkpoint that is resumed, is dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self.watch(step)
        with file_errors(folder, done="written to"):
            log = folder / LOG
            old = log.read_text().splitlines(keepends=True) if log.exists() else []
            # a kill may have cut the last one short
            kept = [line for line in old if line.endswith("}\n") and json.loads(line)["step"] <= step]
            write_text(log, "".join(kept))
            self.lines = log.open("a")
            _date_back(sorted(folder.glob(EVENTS)))
            self.board = SummaryWriter(str(folder), purge_step=step + 1)

    def close(self) -> None:
        with file_errors(self.folder, done="written to"):
            self.lines.close()
            self.board.close()

    def watch(self, step: int) -> None:
        """Measures the training's pace from here on, so that a validation does not count."""
        self.watched_from, self.watched_since = step, time.perf_counter()

    def recipe(self, step: int, command: str, recipe: Mapping[str, Any], data: Sequence[str]) -> None:
        """The command, the data and every option as text; a few options and the scores as hparams."""
        lines = [f"    {command}", "", *(f"- {line}" for line in data), "", "| option | value |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in recipe.items()]
        few, scores = {name: recipe[name] for name in HYPERPARAMETERS}, dict.fromkeys(SCORES.values(), 0.0)
        with file_errors(self.folder, done="written to"):
            # protocol buffers take valid UTF-8 only, and names of folders may be something else
            self.board.add_text("recipe", "\n".join(map(escape_unprintable, lines)), step)
            for summary in hparams(few, scores):
                self.board._get_file_writer().add_summary(summary)

    def terms(
        self, step: int, terms: Mapping[str, float], rates: Mapping[str, float], batch_size: int
    ) -> None:
        """The terms of a step, its learning rates, and the images a second since the last logged step."""
        images = (step - self.watched_from) * batch_size
        pace = images / (time.perf_counter() - self.watched_since)
        self.watch(step)
        losses = {f"loss/{name}": terms[name] for name in ("total", *terms)}
        self.scalars(step, {**losses, **rates, "speed/images_per_second": pace})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line {"step": step, ...} and a TensorBoard point for each value."""
        with file_errors(self.lines.name, done="written"):
            self.lines.write(json.dumps({"step": step, **values}) + "\n")
            self.lines.flush()
            for name, value in values.items():
                self.board.add_scalar(SCORES.get(name, name), value, step)

    def strip(
        self,
        step: int,
        name: str,
        derained: Callable[[Tensor], Tensor],
        rainy: np.ndarray,
        clean: np.ndarray | None,
    ) -> None:
        """The middle of an image, captioned: rainy | derained | streaks, brightened | clean if known."""
        before = to_tensor(_middle(rainy))
        after = derained(before)
        streaks = before - after
        gain = round(max(3.0, 1 / max(1 / 255, float(streaks.max()))))
        panels = {"rainy": before, "derained": after, f"streaks x{gain}": gain * streaks}
        if clean is not None:
            panels["clean"] = to_tensor(_middle(clean))
        row = np.hstack([_captioned(to_uint8(image), text) for text, image in panels.items()])
        with file_errors(self.folder, done="written to"):
            self.board.add_image(escape_unprintable(name), row, step, dataformats="HWC")


def _middle(image: np.ndarray, size: int = 320) -> np.ndarray:
    top, left = (max(0, (side - size) // 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def _captioned(image: np.ndarray, text: str) -> np.ndarray:
    """The image, uint8 (H, W, 3), below its caption, on white; wide enough for the text.

    TensorBoard shows a strip of four at a quarter of its size: hence the large letters.
    """
    letters: dict[str, Any] = {"fontFace": cv2.FONT_HERSHEY_SIMPLEX, "fontScale": 1.5, "thickness": 3}
    (width, _), _ = cv2.getTextSize(text, **letters)
    right, white = max(4, width + 8 - image.shape[1]), (255, 255, 255)
    image = cv2.copyMakeBorder(image, 56, 0, 0, right, cv2.BORDER_CONSTANT, value=white)
    return cv2.putText(image, text, (2, 42), color=(0, 0, 0), lineType=cv2.LINE_AA, **letters)


def _date_back(events: Sequence[Path]) -> None:
    """TensorBoard reads event files in the order of the times in their names; the clock may be set back."""
    if events and int(events[-1].name.split(".")[3]) >= time.time():
        for n, path in enumerate(events):
            parts = path.name.split(".")
            path.rename(path.with_name(".".join([*parts[:3], f"{n:010d}", *parts[4:]])))
