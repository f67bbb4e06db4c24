"""Images kept in memory, and batches of crops that processes and workers share out.

The entries of a batch depend on (seed, step) alone, so neither the number of workers nor that of processes
changes what is trained on, and a run can be taken up again at any step.
"""

import atexit
import math
import mmap
import multiprocessing.util
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader, Sampler

from machinery.distributed import World
from utils import UserError, image_size, read_image

ORDER = 4  # keeps the shuffling's random numbers apart from others of one seed: RandomStream.ORDER
MOST_FILES = 50_000  # more are not even looked at: reading so many headers takes minutes on a network disk


# one core may well wait for several disks, and a test or a container may be pinned to it
warnings.filterwarnings("ignore", message="This DataLoader will create")


class Slot(NamedTuple):
    """Where an image lies in the cache's memory: `shape` (height, width) is 0, 0 until it is filled in."""

    memory: np.ndarray
    shape: np.ndarray


class ImageCache:
    """Decoded images in memory that forked workers share; who needs an image first fills it in.

    One cache serves all the crops of a run, and decides for each set of files that it is asked to `keep`.
    `mode` is "auto" (kept where all of the set fits into what is left of half the memory available), "on" or
    "off".
    """

    def __init__(self, mode: str = "auto") -> None:
        self.mode = mode
        self._slots: dict[Path, Slot] = {}
        told = os.environ.get("LOCAL_WORLD_SIZE", "")  # by torchrun
        processes = max(1, int(told)) if told.isdecimal() else 1
        self._budget = psutil.virtual_memory().available // 2 // processes  # bytes

    def keep(self, files: Iterable[Path] | None) -> str:
        """Keeps `files` (None: too many to list) if they fit, and says in a line what was decided."""
        if self.mode == "off":
            return "images are not cached: as asked"
        new = [path for path in dict.fromkeys(files or ()) if path not in self._slots]
        if files is None or (self.mode == "auto" and len(new) > MOST_FILES):
            return "images are not cached: too many files"
        sizes = [_decoded_bytes(path) for path in new]
        needed = f"{sum(sizes) / 1e9:.2f} GB decoded, {self._budget / 1e9:.2f} GB of memory may be used"
        if self.mode == "auto" and sum(sizes) > self._budget:
            return f"images are not cached: {needed}"
        self._budget -= sum(sizes)
        memory, shapes = _shared(sum(sizes), np.uint8), _shared(2 * len(sizes), np.int32).reshape(-1, 2)
        starts = np.append(0, np.cumsum(sizes, dtype=int))
        for i, path in enumerate(new):
            self._slots[path] = Slot(memory[starts[i] : starts[i + 1]], shapes[i])
        return f"images are cached in memory: {needed}"

    def __getstate__(self) -> dict[str, Any]:
        # a spawned worker would get a copy of its own: it decodes instead
        return {"mode": "off", "_slots": {}, "_budget": 0}

    def __call__(self, path: Path) -> np.ndarray:
        """The image, uint8 RGB (H, W, 3); not to be written to."""
        slot = self._slots.get(path)
        if slot is None:
            return read_image(path)
        height, width = map(int, slot.shape)
        if height:
            return slot.memory[: 3 * height * width].reshape(height, width, 3)
        image = read_image(path)
        if image.size <= len(slot.memory):
            slot.memory[: image.size] = image.ravel()
            slot.shape[1] = image.shape[1]
            slot.shape[0] = image.shape[0]  # last: from here on the slot counts as filled
        return image


def _shared(length: int, kind: type) -> np.ndarray:
    """Zeros, (length,), in memory that stays one and the same in forked processes."""
    size = np.dtype(kind).itemsize
    return np.frombuffer(mmap.mmap(-1, max(1, length) * size), kind)[:length]


def _decoded_bytes(path: Path) -> int:
    try:
        return 3 * math.prod(image_size(path))
    except UserError:  # whoever reads it will say what is wrong with it
        return 0


class IndexedDataset(Protocol):
    """What a loader draws from: entries by (epoch, index). `tag` keeps its order apart from another's."""

    @property
    def tag(self) -> int: ...

    def __len__(self) -> int: ...
    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]: ...


class BatchStream(Sampler[list[tuple[int, int]]]):
    """The batches of `steps`, as lists of (epoch, index).

    Step s draws the positions from `offset` + s * batch_size of an endless stream; position q is entry
    q % count of the permutation of epoch q // count. A set smaller than a batch repeats with another epoch's
    crops. A batch is split into `parts` of equal size; this process takes `mine`, in order.
    Raises UserError if the batch does not split.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int = 0,
        tag: int = 0,
        steps: range = range(0),
        parts: int = 1,
        mine: range = range(1),
        offset: int = 0,
    ) -> None:
        if batch_size % parts:
            raise UserError(
                f"a batch of {batch_size} does not split over {parts} processes or accumulation steps: give "
                f"multiples of {parts} as --batchSize and --late_batchSize"
            )
        self.count, self.batch_size, self.seed, self.tag = count, batch_size, seed, tag
        self.steps, self.mine, self.share, self.offset = steps, mine, batch_size // parts, offset

    def __len__(self) -> int:
        return len(self.steps) * len(self.mine)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shuffled, order = -1, np.empty(0, int)
        for step in self.steps:
            for part in self.mine:
                batch = []
                first = self.offset + step * self.batch_size + part * self.share
                for position in range(first, first + self.share):
                    epoch, entry = divmod(position, self.count)
                    if epoch != shuffled:
                        shuffled = epoch
                        key = (self.seed, epoch, self.tag, ORDER)
                        order = np.random.default_rng(key).permutation(self.count)
                    batch.append((epoch, int(order[entry])))
                yield batch


class Loader(DataLoader):
    """torch's DataLoader, which reports a dead worker only where a batch is requested."""

    def __iter__(self) -> Any:
        batches = super().__iter__()
        if self.num_workers and threading.current_thread() is threading.main_thread():
            # torch's signal handler would raise in any line of the process
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return batches


def _kill_workers() -> None:
    """Workers ignore SIGTERM, and the interpreter would wait for them."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


atexit.register(_kill_workers)  # after multiprocessing's own, so it runs before


def begin_worker(_: int) -> None:
    """For workers: they live as long as the process that they read for, and no longer.

    A terminal, torchrun and Slurm signal them too, and the training ends its step first. If it is killed, a
    worker may be at a pipe that nobody empties, where torch's own watch over the parent does not reach it.
    """
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def loader(
    source: IndexedDataset, stream: BatchStream, *, workers: int = 0, pin_memory: bool = False
) -> DataLoader:
    """The batches of `stream` out of `source`, read ahead by `workers` processes."""
    return Loader(
        source,  # type: ignore[arg-type]
        batch_sampler=stream,
        num_workers=workers,
        worker_init_fn=begin_worker,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # the loader's own: torch's global one is left to the training
        # forked workers share the cache; elsewhere they are spawned, and decode for themselves
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )


class Batches:
    """The batches of `steps`: `accumulate` micro-batches a step, each with every source's crops by name.

    Each process of the `world` loads its own part of a batch. Crops travel to its device as bytes, and become
    float32 (N, 3, P, P) in [0, 1] there. `offset`: see BatchStream. Raises UserError if it does not split.
    """

    def __init__(
        self,
        sources: Sequence[IndexedDataset],
        world: World,
        steps: range,
        *,
        batch_size: int,
        accumulate: int,
        seed: int,
        workers: int,
        offset: int = 0,
    ) -> None:
        self.sources, self.device, self.accumulate, self.workers = sources, world.device, accumulate, workers
        mine = range(world.rank * accumulate, (world.rank + 1) * accumulate)
        split: dict[str, Any] = {"steps": steps, "parts": world.size * accumulate, "mine": mine}
        split["offset"] = offset
        self.streams = [
            BatchStream(len(source), batch_size, seed=seed, tag=source.tag, **split) for source in sources
        ]

    def __iter__(self) -> Iterator[list[dict[str, torch.Tensor]]]:
        loaders = [
            loader(source, stream, workers=self.workers, pin_memory=self.device.type == "cuda")
            for source, stream in zip(self.sources, self.streams, strict=True)
        ]
        # a tensor: instead of dividing by a Python number CUDA multiplies by its inverse, which rounds twice
        white = torch.full((), 255.0, device=self.device)
        parts: list[dict[str, torch.Tensor]] = []
        for each in zip(*loaders, strict=True):
            merged = {name: images for crops in each for name, images in crops.items()}
            moved = {name: crop.to(self.device, non_blocking=True) for name, crop in merged.items()}
            parts.append({name: crop / white for name, crop in moved.items()})
            if len(parts) == self.accumulate:
                yield parts
                parts = []
