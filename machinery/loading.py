"""An image cache, and batches of crops, split over processes and loader workers.

The entries of a batch depend on (seed, step) alone: the number of workers and processes does not change what
is trained on, and a run can resume at any step.
"""

import atexit
import ctypes
import math
import multiprocessing.util
import os
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling
from tqdm import tqdm

from machinery.distributed import World
from utils import UserError, image_size, read_image

ORDER = 4  # keeps the shuffling's random numbers apart from others of one seed: RandomStream.ORDER
MOST_FILES = 50_000  # of more, not even the headers are read: minutes on a network disk

# no SIGCHLD handler, which raises in any line of this process: a request for a batch reports a dead worker
signal_handling._SIGCHLD_handler_set = True
# workers often wait for a disk, so more of them than cores are useful
warnings.filterwarnings("ignore", message="This DataLoader will create")


class ImageCache:
    """Images decoded once, before the workers are forked, which then share their memory.

    One cache serves all the crops of a run. `mode` is "auto" (a set of files is kept if it fits into what is
    left of half the available memory), "on" or "off".
    """

    def __init__(self, mode: str = "auto") -> None:
        self.mode = mode
        self._images: dict[Path, np.ndarray] = {}
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
        self._budget = psutil.virtual_memory().available // 2 // processes  # bytes

    def keep(self, files: Iterable[Path] | None) -> str:
        """Decodes `files` (None: too many to list) if they fit; returns a line that says so.

        Raises UserError for an image that cannot be read.
        """
        if self.mode == "off":
            return "images are not cached: as asked"
        new = [path for path in dict.fromkeys(files or ()) if path not in self._images]
        if files is None or (self.mode == "auto" and len(new) > MOST_FILES):
            return "images are not cached: too many files"
        size = 3 * sum(math.prod(image_size(path)) for path in new)
        needed = f"{size / 1e9:.2f} GB decoded, {self._budget / 1e9:.2f} GB of memory may be used"
        if self.mode == "auto" and size > self._budget:
            return f"images are not cached: {needed}"
        self._budget -= size
        with ThreadPoolExecutor() as threads:
            decoded = tqdm(threads.map(read_image, new), "decoding", len(new), leave=False, disable=None)
            self._images.update(zip(new, decoded, strict=True))
        return f"images are cached in memory: {needed}"

    def __getstate__(self) -> dict[str, Any]:
        # a spawned worker would get a copy of its own: it decodes instead
        return {"mode": "off", "_images": {}, "_budget": 0}

    def __call__(self, path: Path) -> np.ndarray:
        """The image, uint8 RGB (H, W, 3); not to be written to."""
        return self._images[path] if path in self._images else read_image(path)


@atexit.register  # after multiprocessing's own, so it runs before
def _kill_workers() -> None:
    """Workers ignore SIGTERM, and the interpreter would wait for them."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def begin_worker(_: int) -> None:
    """For loader workers: they live as long as the process that they read for, and no longer.

    A terminal, torchrun and Slurm signal them too, while the training first ends its step. When it is killed,
    Linux kills them; elsewhere torch's own watch over the parent ends them.
    """
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@dataclass
class Batches:
    """The batches of `steps`: `accumulate` micro-batches a step, each with every source's crops by name.

    `sources`: crops by (epoch, index); a `tag` each keeps its order apart from another's. Each process of the
    `world` loads its own part of a batch. Crops travel to its device as bytes, and become float32
    (N, 3, P, P) in [0, 1] there. Raises UserError if a batch does not split evenly.
    """

    sources: Sequence[Any]
    world: World
    steps: range
    batch_size: int
    accumulate: int = 1
    seed: int = 0
    workers: int = 0
    offset: int = 0

    def __post_init__(self) -> None:
        self.part_size, rest = divmod(self.batch_size, parts := self.world.size * self.accumulate)
        if rest:
            raise UserError(
                f"a batch of {self.batch_size} does not split over {parts} processes or accumulation steps: "
                f"give multiples of {parts} as --batchSize and --late_batchSize"
            )

    def keys(self, count: int, tag: int) -> Iterator[list[tuple[int, int]]]:
        """(epoch, index) of the crops in this process's micro-batches, of a source with `count` entries.

        Step s draws the positions from `offset` + s * batch_size of an endless stream; position q is entry
        q % count of the permutation of epoch q // count. A set smaller than a batch repeats with another
        epoch's crops.
        """
        shuffled, order = -1, np.empty(0, int)
        for step in self.steps:
            for part in range(self.world.rank * self.accumulate, (self.world.rank + 1) * self.accumulate):
                first = self.offset + step * self.batch_size + part * self.part_size
                batch = []
                for position in range(first, first + self.part_size):
                    epoch, entry = divmod(position, count)
                    if epoch != shuffled:
                        rng = np.random.default_rng((self.seed, epoch, tag, ORDER))
                        shuffled, order = epoch, rng.permutation(count)
                    batch.append((epoch, int(order[entry])))
                yield batch

    def __iter__(self) -> Iterator[list[dict[str, torch.Tensor]]]:
        device, linux = self.world.device, sys.platform == "linux"
        loaders = [
            DataLoader(
                source,
                batch_sampler=self.keys(len(source), source.tag),
                num_workers=self.workers,
                worker_init_fn=begin_worker,
                prefetch_factor=4 if self.workers else None,
                pin_memory=device.type == "cuda",
                generator=torch.Generator(),  # the loader's own: torch's global one is left to the training
                # forked workers share the cache; elsewhere they are spawned, and decode for themselves
                multiprocessing_context="fork" if self.workers and linux else None,
            )
            for source in self.sources
        ]
        # a tensor: instead of dividing by a Python number CUDA multiplies by its inverse, which rounds twice
        white = torch.full((), 255.0, device=device)
        parts: list[dict[str, torch.Tensor]] = []
        for each in zip(*loaders, strict=True):
            merged = {name: images for crops in each for name, images in crops.items()}
            moved = {name: crop.to(device, non_blocking=True) for name, crop in merged.items()}
            parts.append({name: crop / white for name, crop in moved.items()})
            if len(parts) == self.accumulate:
                yield parts
                parts = []
