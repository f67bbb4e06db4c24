"""Random crops of rainy and clean images, and their order.

A crop depends on (seed, epoch, index) alone, and the entries of a batch on (seed, step) alone, so neither
depends on the number of workers or processes, and a run can be taken up again at any step.
"""

from __future__ import annotations

import atexit
import mmap
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from datasets.pairs import Found, ListedPairs, Pair, read_pair, read_side, refuse_unless_additive
from utils import UserError, read_image, to_tensor

# What a random draw is for: two draws with one (seed, epoch, index) must not be the same.
_CROP, _PARTNER, _REAL, _ORDER = range(4)
_MOST_FILES = 50_000  # more are not even looked at: reading so many headers takes minutes on a network disk


class ImageCache:
    """Decoded images in one piece of memory that forked workers share; who needs an image first fills it in.

    `mode` is "auto" (cached where all of it takes at most half of the memory available, less the bytes that
    are `promised` to another cache, which may not have taken them yet), "on" or "off". `note` says in a line
    what was decided.
    """

    def __init__(self, files: Sequence[Path] | None, mode: str = "auto", promised: int = 0) -> None:
        self.size = 0  # bytes
        self._slots: dict[Path, int] = {}
        self._memory: np.ndarray | None = None
        if mode == "off" or files is None or (mode == "auto" and len(files) > _MOST_FILES):
            self.note = "images are not cached: " + ("as asked" if mode == "off" else "too many files")
            return
        sizes = [_decoded_bytes(path) for path in files]
        share = psutil.virtual_memory().available // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        share = max(0, share - promised)
        needed = f"{sum(sizes) / 1e9:.2f} GB decoded, {share / 1e9:.2f} GB of memory may be used"
        if mode == "auto" and sum(sizes) > share:
            self.note = f"images are not cached: {needed}"
            return
        self.note = f"images are cached in memory: {needed}"
        self._slots = {path: i for i, path in enumerate(files)}
        self._starts = np.append(0, np.cumsum(sizes))
        self.size = sum(sizes)
        self._memory = _shared(self.size, np.uint8)
        # height and width of what lies in each slot; height 0: nothing yet
        self._shapes = _shared(2 * len(sizes), np.int32).reshape(-1, 2)

    def __getstate__(self) -> dict[str, Any]:
        # a spawned worker would get a copy of its own: it decodes instead
        return {"_slots": {}, "_memory": None, "note": self.note, "size": 0}

    def __call__(self, path: Path) -> np.ndarray:
        """The image, uint8 RGB (H, W, 3); not to be written to."""
        slot = self._slots.get(path)
        if slot is None or self._memory is None:
            return read_image(path)
        start, end = self._starts[slot : slot + 2]
        height, width = self._shapes[slot]
        if height:
            return self._memory[start : start + 3 * int(height) * int(width)].reshape(height, width, 3)
        image = read_image(path)
        if image.size <= end - start:
            self._memory[start : start + image.size] = image.ravel()
            self._shapes[slot, 1] = image.shape[1]
            self._shapes[slot, 0] = image.shape[0]  # last: from here on the slot counts as filled
        return image


def _shared(length: int, kind: type) -> np.ndarray:
    """Zeros, (length,), in memory that stays one and the same in forked processes."""
    size = np.dtype(kind).itemsize
    return np.frombuffer(mmap.mmap(-1, max(1, length) * size), kind)[:length]


def _decoded_bytes(path: Path) -> int:
    try:
        with Image.open(path) as image:  # reads the header only
            return 3 * image.width * image.height
    except (OSError, Image.DecompressionBombError):
        return 0  # whoever reads it will say what is wrong with it


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def _crop(images: Sequence[np.ndarray], size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """One random (size, size, 3) window of images of one size; what is smaller is reflected."""
    height, width = images[0].shape[:2]
    top, left = (int(rng.integers(max(1, length - size + 1))) for length in (height, width))
    return [_extend(image[top : top + size, left : left + size], size) for image in images]


def _extend(image: np.ndarray, size: int) -> np.ndarray:
    for axis in (0, 1):
        if missing := size - image.shape[axis]:
            widths = [(0, missing if axis == i else 0) for i in range(3)]
            image = np.pad(image, widths, mode="reflect" if image.shape[axis] > 1 else "edge")
    return image


def _turn(image: np.ndarray, which: int) -> np.ndarray:
    """One of the eight flips and rotations of a square."""
    image = np.rot90(image, which % 4)
    return image[:, ::-1] if which >= 4 else image


class _Crops(Dataset):
    def __getitems__(self, keys: list[tuple[int, int]]) -> list[dict[str, torch.Tensor]] | UserError:
        # raised in a worker, it would reach the user as a traceback of many lines
        try:
            return [self[key] for key in keys]
        except UserError as error:
            return error


class PairCrops(_Crops):
    """Random crops of pairs: (epoch, index) -> {"rainy", "clean"}, float32 (3, patch, patch) in [0, 1].

    `augment` flips and rotates. `recombine` lays the streaks of pair `index` on the clean side of another
    pair, or on one of the images `backgrounds`; raises UserError unless the rain is an exact grey addition.
    """

    tag = _CROP

    def __init__(
        self,
        found: Found,
        patch_size: int,
        seed: int,
        augment: bool = False,
        recombine: bool = False,
        backgrounds: Found | None = None,
        cache: str = "auto",
    ) -> None:
        self.pairs, self.patch_size, self.seed = found.pairs, patch_size, seed
        self.augment, self.recombine = augment, recombine
        self.backgrounds: Sequence[Pair] = backgrounds.pairs if backgrounds else ()
        if recombine:
            refuse_unless_additive(found)
        self.read = ImageCache(_files(self.pairs, self.backgrounds), cache)
        self.note = self.read.note

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        rng = _generator(self.seed, epoch, index, self.tag)
        rainy, clean = read_pair(self.pairs[index], self.read)
        if clean is None:
            raise UserError(f"{self.pairs[index].rainy.path} has no clean side to train with")
        rainy, clean = _crop((rainy, clean), self.patch_size, rng)
        turn = int(rng.integers(8))  # drawn in any case: the options must not shift each other's draws
        if self.recombine:
            background = self._background(_generator(self.seed, epoch, index, _PARTNER))
            layer = rainy.astype(np.int16) - clean
            rainy, clean = np.clip(background + layer, 0, 255).astype(np.uint8), background
        if self.augment:
            rainy, clean = _turn(rainy, turn), _turn(clean, turn)
        return {"rainy": to_tensor(rainy), "clean": to_tensor(clean)}

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        choice = int(rng.integers(len(self.pairs) + len(self.backgrounds)))
        if choice < len(self.pairs):
            side = self.pairs[choice].clean
        else:
            side = self.backgrounds[choice - len(self.pairs)].rainy  # an unlabelled image: its only side
        assert side is not None
        return _crop((read_side(side, self.read),), self.patch_size, rng)[0]


class RealCrops(_Crops):
    """Random crops of unlabelled images: (epoch, index) -> {"real_rainy"}, float32 (3, patch, patch).

    `promised` bytes of memory are the other crops' cache's.
    """

    tag = _REAL

    def __init__(
        self,
        found: Found,
        patch_size: int,
        seed: int,
        augment: bool = False,
        cache: str = "auto",
        promised: int = 0,
    ) -> None:
        self.images, self.patch_size, self.seed, self.augment = found.pairs, patch_size, seed, augment
        self.read = ImageCache(_files(self.images), cache, promised)
        self.note = self.read.note

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        rng = _generator(self.seed, epoch, index, self.tag)
        crop = _crop((read_side(self.images[index].rainy, self.read),), self.patch_size, rng)[0]
        turn = int(rng.integers(8))
        return {"real_rainy": to_tensor(_turn(crop, turn) if self.augment else crop)}


def _files(*sets: Sequence[Pair]) -> list[Path] | None:
    """Every file of the sets once; None for a list that must not be walked through."""
    if any(isinstance(pairs, ListedPairs) and len(pairs) > _MOST_FILES for pairs in sets):
        return None
    sides = (side for pairs in sets for pair in pairs for side in (pair.rainy, pair.clean) if side)
    return list(dict.fromkeys(side.path for side in sides))


# ------------------------------------------------------------------------------------------------------ order


class BatchStream(Sampler[list[tuple[int, int]]]):
    """The batches of steps `start` to `stop` - 1, as lists of (epoch, index).

    Step s draws positions s * batch_size and on of an endless stream; position q is entry q % count of epoch
    q // count's own permutation. So a set smaller than a batch repeats with another epoch's crops. Process
    `rank` of `world_size` takes its even share of each batch, in order.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        stop: int = 0,
        rank: int = 0,
        world_size: int = 1,
        tag: int = 0,
    ) -> None:
        if batch_size % world_size:
            fewer = batch_size // world_size * world_size
            works = f"{fewer} or {fewer + world_size}" if fewer else str(world_size)
            raise UserError(
                f"--batchSize {batch_size} does not split over {world_size} processes: use {works}"
            )
        self.count, self.batch_size, self.seed, self.tag = count, batch_size, seed, tag
        self.steps = range(start, stop)
        share = batch_size // world_size
        self.mine = range(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shuffled, order = -1, np.empty(0, int)
        for step in self.steps:
            batch = []
            for position in self.mine:
                epoch, entry = divmod(step * self.batch_size + position, self.count)
                if epoch != shuffled:
                    shuffled = epoch
                    order = _generator(self.seed, epoch, self.tag, _ORDER).permutation(self.count)
                batch.append((epoch, int(order[entry])))
            yield batch


class _Loader(DataLoader):
    def __iter__(self) -> Any:
        batches = super().__iter__()
        atexit.register(_end_workers)  # after, so it runs before, torch's own, which waits for each of them
        for batch in batches:
            if isinstance(batch, UserError):
                # a new one: `batch`, raised, would hold this frame and be held by it, and a loader that is
                # left to the cycle collector waits five seconds for each worker
                raise UserError(str(batch))
            yield batch


def _outlive_signals(_: int) -> None:
    """For workers: a terminal, torchrun and Slurm signal them too, and the training ends its step first."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)


def _end_workers() -> None:
    if left := [child for child in multiprocessing.active_children() if child.daemon]:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises where a worker is killed
        for child in left:
            child.kill()


def _collate(items: list[dict[str, torch.Tensor]] | UserError) -> Any:
    return items if isinstance(items, UserError) else default_collate(items)


def loader(
    dataset: PairCrops | RealCrops,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> DataLoader:
    """Batches of steps `start` to `stop` - 1 for one process; `batch_size` is that of all together."""
    stream = BatchStream(len(dataset), batch_size, seed, start, stop, rank, world_size, dataset.tag)
    return _Loader(
        dataset,
        batch_sampler=stream,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_outlive_signals,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # the loader's own: torch's global one is left to the training
        # forked workers share the cache; elsewhere they are spawned, and decode for themselves
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
