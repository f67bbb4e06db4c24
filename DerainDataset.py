"""Random crops of rainy and clean images.

A crop depends on (seed, epoch, index) alone: not on the order in which crops are asked for, nor on who asks.
So a run can be taken up again at any step, by any number of processes. `machinery/loading.py` makes batches.
"""

from __future__ import annotations

import abc
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from config import Student, Training
from datasets.layouts import find_images, find_pairs, released_real_folder
from datasets.pairs import Found, ListedPairs, Pair, check_pairs, read_pair, read_side, refuse_unless_additive
from machinery.loading import MOST_FILES, ImageCache
from utils import UserError, to_tensor

# What a random draw is for: two draws with one (seed, epoch, index) must not be the same.
CROP, PARTNER, REAL, SLANT = range(4)


class Crops(Dataset, abc.ABC):
    """Entries (epoch, index) -> {name: float32 (3, patch, patch) in [0, 1]}.

    `notes` are lines for the user: what was found, and what is odd about it. `counts` is what of it a resumed
    run must find again: how many images, and a checksum of their names, wherever they lie.
    """

    tag: int
    root: Path
    pairs: Sequence[Pair]
    notes: list[str]
    counts: dict[str, list[int]]

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]: ...


class PairCrops(Crops):
    """Crops of pairs: {"rainy", "clean"}.

    `augment` flips and rotates. `recombine` lays the streaks of pair `index` on the clean side of another
    pair, or on one of the images `backgrounds`; raises UserError unless the rain is an exact grey addition.
    `slant`: these streaks are turned by as many degrees at most, small turns more often than large ones.
    """

    tag = CROP

    def __init__(
        self,
        found: Found,
        patch_size: int,
        *,
        seed: int = 0,
        augment: bool = False,
        recombine: bool = False,
        slant: float = 0.0,
        backgrounds: Found | None = None,
        cache: ImageCache | None = None,
    ) -> None:
        self.root, self.pairs, self.patch_size, self.seed = found.root, found.pairs, patch_size, seed
        self.augment, self.recombine, self.slant = augment, recombine, slant
        self.backgrounds: Sequence[Pair] = backgrounds.pairs if backgrounds else ()
        if recombine:
            refuse_unless_additive(found)
        self.read = cache or ImageCache("off")
        self.notes = [found.describe(), self.read.keep(_files(self.pairs, self.backgrounds))]
        self.counts = {"pairs": _count(self.pairs), "backgrounds": _count(self.backgrounds)}

    @classmethod
    def of(cls, recipe: Training, cache: ImageCache) -> PairCrops:
        """The training pairs of a recipe's dataset, looked over for what cannot be right."""
        found = find_pairs(recipe.data_path, "train", recipe.dataset, recipe.rainy_side)
        crops = cls(
            found,
            recipe.patch_size,
            seed=recipe.seed,
            augment=recipe.augment,
            recombine=recipe.recombine,
            slant=recipe.slant,
            backgrounds=find_images(recipe.backgrounds, option="--backgrounds")
            if recipe.backgrounds
            else None,
            cache=cache,
        )
        crops.notes[1:1] = [f"warning: {each}" for each in check_pairs(found)]
        return crops

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        rng = _generator(self.seed, epoch, index, self.tag)
        rainy, clean = read_pair(self.pairs[index], self.read)
        if clean is None:
            raise UserError(f"{self.pairs[index].rainy.path} has no clean side to train with")
        whole = rainy, clean
        rainy, clean = _crop(whole, self.patch_size, rng)
        turn = int(rng.integers(8))  # drawn in any case: the options must not shift each other's draws
        if self.recombine:
            background = self._background(_generator(self.seed, epoch, index, PARTNER))
            if self.slant:
                layer = self._slanted(*whole, _generator(self.seed, epoch, index, SLANT))
            else:
                layer = rainy.astype(np.int16) - clean
            rainy, clean = np.clip(background + layer, 0, 255).astype(np.uint8), background
        if self.augment:
            rainy, clean = _turn(rainy, turn), _turn(clean, turn)
        return {"rainy": to_tensor(rainy), "clean": to_tensor(clean)}

    def _slanted(self, rainy: np.ndarray, clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A window of a pair's streaks, int16 (patch, patch, 1), turned about its centre."""
        layer = (rainy.astype(np.int16) - clean)[..., :1]  # grey
        size = self.patch_size
        x, y = (rng.uniform(min(size, side), max(size, 2 * side - size)) / 2 for side in layer.shape[1::-1])
        turn = cv2.getRotationMatrix2D((x, y), rng.triangular(-self.slant, 0, self.slant), 1)
        turn[:, 2] += size / 2 - x, size / 2 - y
        # what lies outside the layer is mirrored, as `_extend` does
        return cv2.warpAffine(layer, turn, (size, size), borderMode=cv2.BORDER_REFLECT_101)[..., None]

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        choice = int(rng.integers(len(self.pairs) + len(self.backgrounds)))
        if choice < len(self.pairs):
            side = self.pairs[choice].clean
        else:
            side = self.backgrounds[choice - len(self.pairs)].rainy  # an unlabelled image: its only side
        assert side is not None
        return _crop((read_side(side, self.read),), self.patch_size, rng)[0]


class RealCrops(Crops):
    """Crops of unlabelled images: {"real_rainy"}."""

    tag = REAL

    def __init__(
        self,
        found: Found,
        patch_size: int,
        *,
        seed: int = 0,
        augment: bool = False,
        cache: ImageCache | None = None,
    ) -> None:
        self.root, self.pairs, self.patch_size, self.seed = found.root, found.pairs, patch_size, seed
        self.augment = augment
        self.read = cache or ImageCache("off")
        self.notes = [found.describe(), f"real {self.read.keep(_files(self.pairs))}"]
        self.counts = {"real images": _count(self.pairs)}

    @classmethod
    def of(cls, recipe: Student, cache: ImageCache) -> RealCrops:
        """The unlabelled images of a student's recipe; where there are none, those of the released layout."""
        folders = recipe.real_path
        if not any(path.exists() for path in folders) and (real := released_real_folder(recipe.data_path)):
            folders = (real,)
        found = find_images(folders)
        return cls(found, recipe.patch_size, seed=recipe.seed, augment=recipe.augment, cache=cache)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        rng = _generator(self.seed, epoch, index, self.tag)
        crop = _crop((read_side(self.pairs[index].rainy, self.read),), self.patch_size, rng)[0]
        turn = int(rng.integers(8))
        return {"real_rainy": to_tensor(_turn(crop, turn) if self.augment else crop)}


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


def _files(*sets: Sequence[Pair]) -> Iterator[Path] | None:
    """Every file of the sets; None for a list that must not be walked through."""
    if any(_is_long_list(pairs) for pairs in sets):
        return None
    return (side.path for pairs in sets for pair in pairs for side in (pair.rainy, pair.clean) if side)


def _count(pairs: Sequence[Pair]) -> list[int]:
    """How many, and a checksum of their names; of a long list only how many."""
    names = () if _is_long_list(pairs) else sorted(pair.name for pair in pairs)
    return [len(pairs), zlib.crc32("\n".join(names).encode("utf-8", "surrogateescape"))]


def _is_long_list(pairs: Sequence[Pair]) -> bool:
    return isinstance(pairs, ListedPairs) and len(pairs) > MOST_FILES
