"""What a training run tells: lines of JSON for programs, TensorBoard for people."""

from __future__ import annotations

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
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            write_atomically(path, lambda temporary: temporary.write_text("".join(f"{x}\n" for x in kept)))
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


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut short by the end of a killed run
