"""Random crops of rainy and clean images.

A crop depends on (seed, epoch, index) alone: not on the order in which crops are asked for, nor on who asks.
So a run can be taken up again at any step, by any number of processes. `machinery/loading.py` makes batches.
"""

from __future__ import annotations

import abc
import bisect
import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    merged,
    read_pair,
    read_side,
    refuse_unless_layers,
    sample,
    why_not_recombined,
)
from datasets.weather import Weather, turned, window
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
        self.roots, self.pairs, self.patch_size, self.seed = [found.root], found.pairs, patch_size, seed
        self.augment, self.mirror = augment, mirror
        self.read = cache or ImageCache("off")
        self.found_in_words = [found.describe()]
        self.notes: list[str] = []
        self.counts: dict[str, Any] = {"pairs": _count(self.pairs)}

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
    the clean side of another pair, or on an image of `backgrounds` (of pairs, their clean sides). Images
    without a clean side are streak layers themselves. The rain must be an exact grey addition
    (`refuse_unless_additive`). Then the background alone is rotated, for rain falls, and `weather` says how
    the layers vary.
    """

    tag = Draw.CROP

    def __init__(
        self,
        found: Found,
        patch_size: int,
        *,
        recombine: bool = False,
        weather: Weather | None = None,
        backgrounds: Sequence[Found] = (),
        **common: Any,
    ) -> None:
        super().__init__(found, patch_size, **common)
        self.recombine, self.weather = recombine, weather or Weather()
        own = [] if found.pairs[0].clean is None else [self.pairs]
        self.backgrounds = [*own, *(each.pairs for each in backgrounds)] if recombine else []
        self.notes = [*self.found_in_words, self.read.keep(_files(self.pairs, *self.backgrounds))]
        self.counts["backgrounds"] = [_count(each.pairs) for each in backgrounds]

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        rng = _generator(self.seed, epoch, index, Draw.CROP)
        turn = self._turn(rng)
        if self.recombine:
            clean = turned(self._background(_generator(self.seed, epoch, index, Draw.PARTNER)), turn)
            rain = self._layer(index, rng, _generator(self.seed, epoch, index, Draw.LAYER))
            more = _generator(self.seed, epoch, index, Draw.MORE_LAYERS)
            for _ in range(int(more.integers(self.weather.layers))):
                rain = rain + self._layer(int(more.integers(len(self.pairs))), more, more)
            rainy = np.clip(clean + rain, 0, 255).astype(np.uint8)
        else:
            sides = window(self._both(index), self.patch_size, rng)
            rainy, clean = (turned(side, turn) for side in sides)
        rainy, clean = self.weather.seen(rainy, clean, _generator(self.seed, epoch, index, Draw.WEATHER))
        return {"rainy": to_tensor(rainy), "clean": to_tensor(clean)}

    def _both(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rainy, clean = read_pair(self.pairs[index], self.read)
        if clean is None:
            raise UserError(f"{self.pairs[index].rainy.path} has no clean side to train with")
        return rainy, clean

    def _layer(self, index: int, place: np.random.Generator, rng: np.random.Generator) -> np.ndarray:
        rainy, clean = read_pair(self.pairs[index], self.read)
        dry = np.zeros_like(rainy) if clean is None else clean
        return self.weather.streaks(rainy, dry, self.patch_size, place, rng)

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        choice = int(rng.integers(sum(map(len, self.backgrounds))))
        for pairs in self.backgrounds:
            if choice < len(pairs):
                break
            choice -= len(pairs)
        side = pairs[choice].clean or pairs[choice].rainy
        return window((read_side(side, self.read),), self.patch_size, rng)[0]


class MixedCrops(Crops):
    """Crops of several sets: an epoch has each set's entries once, or as many as its share of all of them."""

    tag = Draw.CROP

    def __init__(self, sets: Sequence[Crops], shares: Sequence[float] = ()) -> None:
        self.sets = sets
        self.roots = [root for each in sets for root in each.roots]
        self.pairs = sets[0].pairs  # which are shown where none are held back
        self.found_in_words = [line for each in sets for line in each.found_in_words]
        self.notes = [line for each in sets for line in each.notes]
        self.counts = {what: [each.counts[what] for each in sets] for what in sets[0].counts}
        entries, of_one = sum(map(len, sets)), sum(shares)
        parts = [round(entries * share / of_one) for share in shares] or list(map(len, sets))
        self.ends = list(itertools.accumulate(parts, initial=0))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        which = bisect.bisect(self.ends, index) - 1
        crops, first, end = self.sets[which], self.ends[which], self.ends[which + 1]
        # a set's epochs are its own: all of it is drawn before any of it is drawn again
        return crops[divmod(epoch * (end - first) + index - first, len(crops))]


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
        if not any(path.exists() for path in folders):
            folders = tuple(filter(None, map(released_real_folder, recipe.data_path))) or folders
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
        crop = window((read_side(self.pairs[index].rainy, self.read),), self.patch_size, rng)[0]
        return {"real_rainy": to_tensor(turned(crop, self._turn(rng)))}


def pair_crops(recipe: Training, cache: ImageCache) -> Crops:
    """The training pairs of a recipe's datasets, looked over for what cannot be right.

    Raises UserError that names the file: nothing recognised, nothing left to train on, `--recombine` where no
    rain is an exact grey addition.
    """
    sets, swapped, held_back, warnings, refusals = [], [], [], [], []
    for path in recipe.data_path:
        found = find_pairs(path, "train", recipe.asked_for, recipe.rainy_side)
        warnings += [f"warning: {each}" for each in check_pairs(found)]
        refusal = why_not_recombined(found) if recipe.recombine else ""
        refusals += [refusal] if refusal else []
        found, held = split(found, recipe.hold_back)
        held_back += [held] if held else []
        sets.append(found)
        swapped.append(recipe.recombine and not refusal)
    folders = [find_images(recipe.backgrounds, option="--backgrounds")] if recipe.backgrounds else []
    if recipe.streaks:
        layers = find_images(recipe.streaks, option="--streaks")
        refuse_unless_layers(layers)
        sets.append(layers)
        swapped.append(True)
    if recipe.recombine and not any(swapped):
        raise UserError(refusals[0])
    parts = []
    for number, (found, swaps) in enumerate(zip(sets, swapped, strict=True)):
        others = [each for each in sets if each is not found and each.pairs[0].clean]
        crops = PairCrops(
            found,
            recipe.patch_size,
            recombine=swaps,
            weather=weather_of(recipe),
            backgrounds=[*others, *folders] if swaps else (),
            seed=recipe.seed + (number << 64),  # each set draws for itself
            augment=recipe.augment and swaps == recipe.recombine,  # else its rain would rise
            mirror=recipe.augment or recipe.mirror,
            cache=cache,
        )
        parts.append(crops)
    mixed = MixedCrops(parts, recipe.shares) if len(parts) > 1 else parts[0]
    mixed.found_in_words += [f"backgrounds: {each.describe()}" for each in folders]
    warnings += [f"note: the rain stays on its own images: {refusal}" for refusal in refusals]
    cached = dict.fromkeys(each.notes[-1] for each in parts)
    mixed.notes = [*mixed.found_in_words, *warnings, *cached]
    mixed.held_back = merged(held_back) if held_back else None
    return mixed


def weather_of(recipe: Training) -> Weather:
    return Weather(
        rotation=recipe.max_streak_rotation,
        zoom=recipe.streak_zoom,
        strength=recipe.streak_strength,
        blur=recipe.streak_blur,
        layers=recipe.streak_layers,
        mirrored=recipe.augment or recipe.mirror,
        clear=recipe.clear_share,
        veil=recipe.veil_share,
        jpeg=recipe.jpeg_share,
    )


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
