"""Random crops of rainy and clean images.

A crop depends on (seed, epoch, index) alone: not on the order in which crops are asked for, nor on who asks.
So a run can be taken up again at any step, by any number of processes. `machinery/loading.py` makes batches.
"""

from __future__ import annotations

import abc
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from config import Student, Training
from datasets.layouts import find_images, find_pairs, released_real_folder
from datasets.pairs import (
    Found,
    ListedPairs,
    Pair,
    check_pairs,
    read_pair,
    read_side,
    refuse_unless_additive,
    sample,
)
from machinery.loading import MOST_FILES, Draw, ImageCache
from utils import UserError, to_tensor


class Crops(Dataset, abc.ABC):
    """Entries (epoch, index) -> {name: float32 (3, patch, patch) in [0, 1]}.

    `found_in_words` says what it is drawn from; `notes` are those lines and others for the user. `counts` is
    what of it a resumed run must find again: how many images, and a checksum of their names, wherever they
    lie. `held_back` are training pairs that no crop is drawn from, for validation.
    """

    tag: Draw
    held_back: Found | None = None

    def __init__(
        self,
        found: Found,
        patch_size: int,
        *,
        seed: int = 0,
        augment: bool = False,
        mirror: bool = False,
        cache: ImageCache | None = None,
    ) -> None:
        self.root, self.pairs, self.patch_size, self.seed = found.root, found.pairs, patch_size, seed
        self.augment, self.mirror = augment, mirror
        self.read = cache or ImageCache("off")
        self.found_in_words = [found.describe()]
        self.notes: list[str] = []
        self.counts = {"pairs": _count(self.pairs)}

    def __len__(self) -> int:
        return len(self.pairs)

    @abc.abstractmethod
    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]: ...

    def _turn(self, rng: np.random.Generator) -> int:
        turn = int(rng.integers(8))  # drawn in any case: the options must not shift each other's draws
        if self.augment:
            return turn
        return turn // 4 * 4 if self.mirror else 0


class PairCrops(Crops):
    """Crops of pairs: {"rainy", "clean"}.

    `augment` flips and rotates, `mirror` flips left to right. `recombine` lays the streaks of pair `index` on
    the clean side of another pair, or on one of the images `backgrounds`; raises UserError unless the rain is
    an exact grey addition. Then the background alone is rotated, for rain falls, and the layer is turned by
    `rotation` degrees at most, enlarged or shrunk `zoom` times, strengthened or weakened `strength` times,
    and mirrored.
    """

    tag = Draw.CROP

    def __init__(
        self,
        found: Found,
        patch_size: int,
        *,
        recombine: bool = False,
        rotation: float = 0.0,
        zoom: float = 1.0,
        strength: float = 1.0,
        backgrounds: Found | None = None,
        **common: Any,
    ) -> None:
        super().__init__(found, patch_size, **common)
        self.recombine, self.rotation, self.zoom, self.strength = recombine, rotation, zoom, strength
        self.backgrounds: Sequence[Pair] = backgrounds.pairs if backgrounds else ()
        if recombine:
            refuse_unless_additive(found)
        if backgrounds:
            self.found_in_words.append(f"backgrounds: {backgrounds.describe()}")
        self.notes = [*self.found_in_words, self.read.keep(_files(self.pairs, self.backgrounds))]
        self.counts["backgrounds"] = _count(self.backgrounds)

    @classmethod
    def of(cls, recipe: Training, cache: ImageCache) -> PairCrops:
        """The training pairs of a recipe's dataset, looked over for what cannot be right."""
        found = find_pairs(recipe.data_path, "train", recipe.dataset, recipe.rainy_side)
        suspicions = [f"warning: {each}" for each in check_pairs(found)]
        found, held_back = split(found, recipe.hold_back)
        crops = cls(
            found,
            recipe.patch_size,
            seed=recipe.seed,
            augment=recipe.augment,
            mirror=recipe.mirror,
            recombine=recipe.recombine,
            rotation=recipe.max_streak_rotation,
            zoom=recipe.streak_zoom,
            strength=recipe.streak_strength,
            backgrounds=find_images(recipe.backgrounds, option="--backgrounds")
            if recipe.backgrounds
            else None,
            cache=cache,
        )
        crops.notes[1:1], crops.held_back = suspicions, held_back
        return crops

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        rng = _generator(self.seed, epoch, index, Draw.CROP)
        rainy, clean = read_pair(self.pairs[index], self.read)
        if clean is None:
            raise UserError(f"{self.pairs[index].rainy.path} has no clean side to train with")
        turn = self._turn(rng)
        if self.recombine:
            background = turned(self._background(_generator(self.seed, epoch, index, Draw.PARTNER)), turn)
            layer = self._layer(rainy, clean, rng, _generator(self.seed, epoch, index, Draw.LAYER))
            rainy, clean = np.clip(background + layer, 0, 255).astype(np.uint8), background
        else:
            rainy, clean = (turned(each, turn) for each in _crop((rainy, clean), self.patch_size, rng))
        return {"rainy": to_tensor(rainy), "clean": to_tensor(clean)}

    def _layer(
        self, rainy: np.ndarray, clean: np.ndarray, place: np.random.Generator, rng: np.random.Generator
    ) -> np.ndarray:
        """A window of a pair's streaks, int16 (patch, patch, 1), at a `place`, and what `rng` does to it."""
        angle = rng.triangular(-self.rotation, 0, self.rotation) if self.rotation else 0.0
        zoom, strength = (most ** rng.uniform(-1, 1) for most in (self.zoom, self.strength))
        mirrored = (self.augment or self.mirror) and rng.integers(2)
        warped = angle or zoom != 1
        if not warped:
            rainy, clean = _crop((rainy, clean), self.patch_size, place)
        # one grey layer for the three channels, of which the darkest is clipped the least
        layer = (rainy.astype(np.int16) - clean).max(axis=2, keepdims=True)
        if warped:
            layer = _window(layer, self.patch_size, angle, zoom, place)
        if strength != 1:
            layer = np.round(layer * strength).astype(np.int16)
        return layer[:, ::-1] if mirrored else layer

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

    tag = Draw.REAL

    def __init__(self, found: Found, patch_size: int, **common: Any) -> None:
        super().__init__(found, patch_size, **common)
        self.notes = [*self.found_in_words, f"real {self.read.keep(_files(self.pairs))}"]
        self.counts = {"real images": self.counts["pairs"]}

    @classmethod
    def of(cls, recipe: Student, cache: ImageCache) -> RealCrops:
        """The unlabelled images of a student's recipe; where there are none, those of the released layout."""
        folders = recipe.real_path
        if not any(path.exists() for path in folders) and (real := released_real_folder(recipe.data_path)):
            folders = (real,)
        return cls(
            find_images(folders),
            recipe.patch_size,
            seed=recipe.seed,
            augment=recipe.augment and not recipe.recombine,  # which keeps the rain of pairs upright, too
            mirror=recipe.mirror or recipe.augment,
            cache=cache,
        )

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        rng = _generator(self.seed, epoch, index, Draw.REAL)
        crop = _crop((read_side(self.pairs[index].rainy, self.read),), self.patch_size, rng)[0]
        return {"real_rainy": to_tensor(turned(crop, self._turn(rng)))}


def split(found: Found, hold_back: int) -> tuple[Found, Found | None]:
    """A set without `hold_back` of its pairs, spread evenly, and these. Raises UserError if none is left."""
    if not hold_back:
        return found, None
    if hold_back >= len(found.pairs):
        raise UserError(f"--hold_back {hold_back} leaves none of {found.root}'s {len(found.pairs)} pairs")
    held = {found.pairs[index].clean for index in sample(len(found.pairs), hold_back)}
    kept = [pair for pair in found.pairs if pair.clean not in held]  # of a scene all of its rains are held
    if not kept:
        raise UserError(f"--hold_back {hold_back} leaves none of {found.root}'s {len(found.pairs)} pairs")
    back = [found.pairs[index] for index in sample(len(found.pairs), hold_back)]
    return replace(found, pairs=kept), replace(found, pairs=back)


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


def _window(layer: np.ndarray, size: int, angle: float, zoom: float, rng: np.random.Generator) -> np.ndarray:
    """A random window of a layer (H, W, 1), turned by `angle` degrees and enlarged `zoom` times.

    What lies outside the layer is mirrored, as `_extend` does. (size, size, 1), of the layer's type.
    """
    reach = size / zoom  # of the layer's own pixels
    x, y = (rng.uniform(min(reach, side) / 2, side - min(reach, side) / 2) for side in layer.shape[1::-1])
    turn = cv2.getRotationMatrix2D((x, y), angle, zoom)
    turn[:, 2] += size / 2 - x, size / 2 - y
    return cv2.warpAffine(layer, turn, (size, size), borderMode=cv2.BORDER_REFLECT_101)[..., None]


def turned(image: np.ndarray, which: int) -> np.ndarray:
    """One of the eight flips and rotations of a square; 0 is the image itself, 4 its mirror image."""
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
