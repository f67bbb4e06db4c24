"""Time and memory of a call, as every program here measures them."""

import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of repeated measurements."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        several = f" ({self.least:.3g} to {self.greatest:.3g})" if self.least < self.greatest else ""
        return f"{self.median:.3g}{several}"


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    finished = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    finished()
    began = time.perf_counter()
    call()
    finished()
    return time.perf_counter() - began


def in_turn(
    calls: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each call, A B A B ..., so that a machine that slows down meanwhile slows all alike.

    A first round, which warms up, is not counted.
    """
    times: dict[str, list[float]] = {how: [] for how in calls}
    for number in range(rounds + 1):
        for how, call in calls.items():
            took = seconds(call, device)
            if number:
                times[how].append(took)
    return times


def peak_memory(device: torch.device) -> int:
    """Of this process so far, in bytes; on CUDA what was allocated on the card."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # not getrusage's ru_maxrss where it can be helped: a process inherits its parent's
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return 1024 * int(found[1])
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
