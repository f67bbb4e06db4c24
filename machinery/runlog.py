"""What a training run tells: lines of JSON for programs, TensorBoard for people."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from utils import write_atomically

FILE = "log.jsonl"


class RunLog:
    """Writes `folder`/log.jsonl and TensorBoard's event files; a context manager.

    One process of a run writes; the others are `silent`.

    From `step` on: what a killed run logged beyond the checkpoint that it resumes from is taken back.
    """

    def __init__(self, folder: Path, step: int, silent: bool = False) -> None:
        self.silent = silent
        if silent:
            return
        path = folder / FILE
        kept = [line for line in logged(path) if line["step"] <= step]
        text = "".join(f"{json.dumps(line)}\n" for line in kept)
        write_atomically(path, lambda temporary: temporary.write_text(text))
        self.lines = path.open("a")
        self.board = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.silent:
            self.lines.close()
            self.board.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line {"step": step, ...} and a TensorBoard point for each value."""
        if self.silent:
            return
        self.lines.write(json.dumps({"step": step, **values}) + "\n")
        self.lines.flush()
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def strip(self, step: int, name: str, images: Sequence[Tensor]) -> None:
        """Images (3, H, W) in [0, 1] side by side, as one picture."""
        if self.silent:
            return
        gap = [F.pad(image.detach().cpu().clamp(0, 1), (0, 4), value=1.0) for image in images]
        self.board.add_image(name, torch.cat(gap, 2)[..., :-4], step)


def logged(path: Path) -> list[dict[str, float]]:
    """The lines of a log.jsonl, none where there is no such file. One cut short by a kill is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and "step" in line]
