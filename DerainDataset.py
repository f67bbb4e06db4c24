"""Random crops of rainy and clean images.

A crop is a function of (seed, epoch, index), independent of the order of requests and of the process, so a
run can resume at any step with any number of processes. `machinery/loading.py` makes batches.
"""

import bisect
import copy
import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Self

import cv2
import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset

from config import REAL, Student, Training
from datasets.layouts import find_backgrounds, find_images, find_layers, find_pairs
from datasets.pairs import (
    ListedPairs,
    Pair,
    PairSet,
    check_pairs,
    merged,
    read_pair,
    read_side,
    sample,
    show_scene_of,
    why_not_recombined,
)
from machinery.loading import MOST_FILES, ImageCache
from utils import UserError, is_file

# ----------------------------------------------------------------------------------------------- augmentation

HAZE, HAZE_LIGHT = (0.1, 0.5), (150, 240)  # weight of the haze, and its grey level
JPEG_QUALITY = (50, 96)  # of cameras and web pages
# unsharp mask, as cameras and web pages apply it: sigma in pixels, amount
SHARPENING = (0.5, 1.2), (0.3, 1.5)
LEVELS = np.arange(256)
# options of a recipe that vary crops; without them only flips and rotations are left
VARIATIONS = (
    *("max_streak_rotation", "streak_zoom", "streak_strength", "streak_blur", "streak_layers"),
    *("clear_prob", "haze_prob", "downscale", "sharpen_prob", "jpeg_prob"),
)


def streak_layer(
    recipe: Training,
    rainy: np.ndarray,
    clean: np.ndarray | None,
    size: int,
    place: np.random.Generator,
    rng: np.random.Generator,
) -> np.ndarray:
    """What rain adds to an image: a window at `place`, varied by `rng`, uint8 (size, size).

    `rainy`, `clean`: uint8 (H, W, 3). Without `clean`, `rainy` is a layer itself, grey on black.
    """
    angle = rng.triangular(-tilt, 0, tilt) if (tilt := recipe.max_streak_rotation) else 0.0
    zoom, strength = (most ** rng.uniform(-1, 1) for most in (recipe.streak_zoom, recipe.streak_strength))
    mirrored = (recipe.augment or recipe.mirror) and rng.integers(2)
    deviation = rng.uniform(0, recipe.streak_blur) if recipe.streak_blur else 0.0
    sides = [rainy] if clean is None else [rainy, clean]
    if angle or zoom != 1:
        warp, window = _random_warp(rainy.shape, size, angle, zoom, place)
        layer = _warped(_difference(*(side[window] for side in sides)), warp, size)
    else:
        layer = _difference(*random_crop(sides, size, place))
    if deviation:
        layer = cv2.GaussianBlur(layer.astype(np.int16), (0, 0), deviation).astype(np.uint8)
    if strength != 1:
        layer = cv2.LUT(layer, np.round(LEVELS * strength).clip(max=255).astype(np.uint8))
    return cv2.flip(layer, 1) if mirrored else layer


def augment_sides(
    recipe: Training, sides: list[np.ndarray], size: int, hazy: bool, jpeg: bool, rng: np.random.Generator
) -> list[np.ndarray]:
    """Haze, downscaling, sharpening, JPEG: uint8 (S, S, 3) to (size, size, 3).

    Each is applied to both sides alike, so the network learns to remove rain alone.
    """
    if hazy:
        share, light = rng.uniform(*HAZE), rng.uniform(*HAZE_LIGHT)
        levels = np.round(LEVELS * (1 - share) + light * share).astype(np.uint8)
        sides = [cv2.LUT(side, levels) for side in sides]
    if len(sides[0]) != size:
        # as uint16: the same levels as from uint8, a fifth faster
        wide = [
            cv2.resize(side.astype(np.uint16), (size, size), interpolation=cv2.INTER_AREA) for side in sides
        ]
        sides = [side.astype(np.uint8) for side in wide]
    if rng.random() < recipe.sharpen_prob:
        deviation, amount = (rng.uniform(*bounds) for bounds in SHARPENING)
        blurred = [cv2.GaussianBlur(side, (0, 0), deviation) for side in sides]
        sides = [cv2.addWeighted(a, 1 + amount, b, -amount, 0) for a, b in zip(sides, blurred, strict=True)]
    if jpeg:
        quality = int(rng.integers(*JPEG_QUALITY))
        sides = [_compressed(side, quality) for side in sides]
    return sides


def _difference(rainy: np.ndarray, clean: np.ndarray | None = None) -> np.ndarray:
    """One layer for all channels: the largest difference is the one that was clipped least."""
    red, green, blue = cv2.split(rainy if clean is None else cv2.subtract(rainy, clean))
    return cv2.max(cv2.max(red, green), blue)


def _compressed(image: np.ndarray, quality: int) -> np.ndarray:
    swapped = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, code = cv2.imencode(".jpg", swapped, (cv2.IMWRITE_JPEG_QUALITY, quality))
    decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
    assert decoded is not None
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


# -------------------------------------------------------------------------------------------------- windows


def random_crop(images: Sequence[np.ndarray], size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The same random (size, size, C) window of images of equal size; smaller images are reflected."""
    height, width = images[0].shape[:2]
    top, left = (int(rng.integers(max(1, length - size + 1))) for length in (height, width))
    windows = [image[top : top + size, left : left + size] for image in images]
    if min(height, width) < size:
        missing = ((0, max(0, size - height)), (0, max(0, size - width)), (0, 0))
        windows = [np.pad(window, missing, "reflect") for window in windows]
    return windows


def _random_warp(
    shape: Sequence[int], size: int, angle: float, zoom: float, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[slice, slice]]:
    """A random window of an image, rotated by `angle` degrees and enlarged `zoom` times to `size`.

    Returns the matrix (2, 3) for cv2.warpAffine, and the rows and columns that it reads: the rest of a layer
    need not be computed.
    """
    lengths = shape[1::-1]  # width, height
    reach = size / zoom  # in pixels of the image
    centre = [rng.uniform(min(reach, length) / 2, length - min(reach, length) / 2) for length in lengths]
    warp = cv2.getRotationMatrix2D(centre, angle, zoom)
    warp[:, 2] += np.subtract(size / 2, centre)
    half = reach / 2 * (abs(math.cos(math.radians(angle))) + abs(math.sin(math.radians(angle))))
    columns, rows = (_reflected(c - half, c + half, side) for c, side in zip(centre, lengths, strict=True))
    warp[:, 2] += warp[:, :2] @ (columns.start, rows.start)
    return warp, (rows, columns)


def _reflected(low: float, high: float, length: int) -> slice:
    """The pixels of [0, length) that [low, high] covers, with those that are reflected into it."""
    start, stop = int(low) - 2, int(high) + 3
    if start < 0:
        start, stop = 0, max(stop, 1 - start)
    if stop > length:
        start, stop = max(0, min(start, 2 * length - 1 - stop)), length
    return slice(start, stop)


def _warped(layer: np.ndarray, warp: np.ndarray, size: int) -> np.ndarray:
    """(H, W) to (size, size). The border is reflected, as in `random_crop`."""
    wide = layer.astype(np.int16)
    warped = cv2.warpAffine(wide, warp, (size, size), borderMode=cv2.BORDER_REFLECT_101)
    return warped.astype(layer.dtype)


def dihedral(image: np.ndarray, which: int) -> np.ndarray:
    """One of the eight flips and rotations of a square; 0 is the image itself, 4 its mirror image."""
    if turn := which % 4:  # to the left; OpenCV counts to the right
        image = cv2.rotate(image, 3 - turn)
    return cv2.flip(image, 1) if which >= 4 else image


def _channels_first(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


class RandomStream(IntEnum):
    """What a random draw is for: no two draws have one (seed, epoch, index)."""

    CROP, PARTNER, REAL, LAYER, ORDER, MORE_LAYERS = range(6)
    AUGMENTATION, SHARE, DOWNSCALE, UNVARIED, RECOMBINE = range(6, 11)


class Crops(Dataset[dict[str, torch.Tensor]]):
    """Crops of one set, an entry per pair: (epoch, index) -> {name: uint8 (3, patch, patch)}.

    `number`: which of the recipe's sets this is; each has random draws of its own. `recombine`: whether its
    streaks are added to other clean images, its own or those of `backgrounds`.

    `summary`: one line per source; `messages`: everything to print. `roots`: folders of the sources.
    `counts`: number of images and a checksum of their names, which a resumed run must match. `pairs`: some of
    them, to display. `held_back`: validation pairs, of which no crop is drawn.
    """

    tag = RandomStream.CROP
    sets: Sequence["Crops"] = ()
    held_back: PairSet | None = None

    def __init__(
        self,
        found: PairSet,
        recipe: Training,
        cache: ImageCache,
        *,
        number: int = 0,
        recombine: bool = False,
        backgrounds: Sequence[PairSet] = (),
    ) -> None:
        self.roots, self.pairs, self.recipe, self.read = [found.root], found.pairs, recipe, cache
        self.patch_size, self.seed = recipe.patch_size, recipe.seed + (number << 64)
        self.recombine = recombine
        self.unvaried = replace(recipe, **{name: getattr(Training, name) for name in VARIATIONS})
        sources = [each.pairs for each in (found, *backgrounds) if each is not found or each.pairs[0].clean]
        self.backgrounds = ConcatDataset[Pair](sources) if recombine else None  # type: ignore[arg-type]
        self.summary = [found.describe()]
        self.messages = [*self.summary, f"{found.root}: {cache.keep(_files(found.pairs))}"]
        self.counts = {"pairs": _count(found.pairs)}

    def larger(self, patch_size: int) -> Self:
        """The same crops, of another size."""
        other = copy.copy(self)
        other.patch_size, other.sets = patch_size, [each.larger(patch_size) for each in self.sets]
        return other

    def __len__(self) -> int:
        return len(self.pairs)

    def _turn(self, rng: np.random.Generator, recombined: bool = False) -> int:
        """The recipe's flip or rotation of a crop, see `dihedral`. With recombination, rain stays upright."""
        turn = int(rng.integers(8))  # always drawn, so that options do not shift each other's draws
        if self.recipe.augment and recombined == self.recipe.recombine:
            return turn
        return turn // 4 * 4 if self.recipe.augment or self.recipe.mirror else 0


class PairCrops(Crops):
    """Crops of pairs: {"rainy", "clean"}.

    With `recombine`, adds the streaks of pair `index` to the clean side of another pair or of `backgrounds`,
    in the recipe's fraction of the crops. Images without a clean side are streak layers. The rain must be an
    exact grey addition (`why_not_recombined`). Only the background is rotated, so rain still falls.
    """

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        draw = partial(_generator, self.seed, *key)
        rng, augment = draw(RandomStream.CROP), draw(RandomStream.AUGMENTATION)
        unvaried = draw(RandomStream.UNVARIED).random() < self.recipe.unvaried_prob
        recipe = self.unvaried if unvaried else self.recipe
        clear, hazy, jpeg = augment.random(3) < (recipe.clear_prob, recipe.haze_prob, recipe.jpeg_prob)
        recombined = self.recombine and (
            self.pairs[key[1]].clean is None or draw(RandomStream.RECOMBINE).random() < recipe.recombine_prob
        )
        turn = self._turn(rng, recombined)
        size = round(self.patch_size * recipe.downscale ** draw(RandomStream.DOWNSCALE).uniform())
        if recombined:
            clean = dihedral(self._background(size, draw(RandomStream.PARTNER)), turn)
            sides = [clean] if clear else [self._rained_on(recipe, clean, key[1], rng, draw), clean]
        else:
            pair = [side for side in read_pair(self.pairs[key[1]], self.read) if side is not None]
            sides = [dihedral(side, turn) for side in random_crop(pair, size, rng)]
            sides = sides[1:] if clear else sides
        sides = augment_sides(recipe, sides, self.patch_size, hazy, jpeg, augment)
        return {"rainy": _channels_first(sides[0]), "clean": _channels_first(sides[-1])}

    def _rained_on(
        self,
        recipe: Training,
        clean: np.ndarray,
        index: int,
        place: np.random.Generator,
        draw: Callable[[RandomStream], np.random.Generator],
    ) -> np.ndarray:
        """`clean` with the streaks of pair `index`, and with more layers if the recipe draws any."""

        def layer(index: int, place: np.random.Generator, rng: np.random.Generator) -> np.ndarray:
            pair = read_pair(self.pairs[index], self.read)
            return streak_layer(recipe, *pair, len(clean), place, rng)

        rain, more = layer(index, place, draw(RandomStream.LAYER)), draw(RandomStream.MORE_LAYERS)
        for _ in range(int(more.integers(recipe.streak_layers))):
            rain = cv2.add(rain, layer(int(more.integers(len(self.pairs))), more, more))
        return cv2.add(clean, cv2.merge([rain] * 3))

    def _background(self, size: int, rng: np.random.Generator) -> np.ndarray:
        assert self.backgrounds
        pair = self.backgrounds[int(rng.integers(len(self.backgrounds)))]
        return random_crop((read_side(pair.clean or pair.rainy, self.read),), size, rng)[0]


class MixedCrops(Crops):
    """Crops of several sets: an epoch has each set's entries once, or in proportion to the recipe's `shares`.

    Raises UserError if a share is less than one entry.
    """

    def __init__(self, sets: Sequence[PairCrops], recipe: Training) -> None:
        self.sets, self.pairs, shares = sets, sets[0].pairs, recipe.shares
        self.roots = [root for each in sets for root in each.roots]
        self.summary = [line for each in sets for line in each.summary]
        self.counts = {f"{what} {n}": c for n, each in enumerate(sets, 1) for what, c in each.counts.items()}
        entries, of_one = sum(map(len, sets)), sum(shares)
        parts = [round(entries * share / of_one) for share in shares] or list(map(len, sets))
        for crops, part in zip(sets, parts, strict=True):
            if not part:
                raise UserError(f"--shares leaves {crops.roots[0]} none of {entries} crops: give it more")
        self.ends = list(itertools.accumulate(parts, initial=0))
        # a share may be smaller than the set: draw from all of it, not from its first files
        orders = (_generator(recipe.seed, number, RandomStream.SHARE) for number in range(len(sets)))
        self.orders = [rng.permutation(len(each)) for rng, each in zip(orders, sets, strict=True)]

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        which = bisect.bisect(self.ends, index) - 1
        crops, first, end = self.sets[which], self.ends[which], self.ends[which + 1]
        # each set has its own epochs: every entry is drawn once before any is repeated
        round_, place = divmod(epoch * (end - first) + index - first, len(crops))
        return crops[round_, int(self.orders[which][place])]


class RealCrops(Crops):
    """Crops of unlabelled images: {"real_rainy"}."""

    tag = RandomStream.REAL

    def __init__(self, found: PairSet, recipe: Training, cache: ImageCache) -> None:
        super().__init__(found, recipe, cache)
        self.messages[1:1] = [f"note: {each}" for each in found.warnings]
        self.counts = {"real images": self.counts["pairs"]}

    @classmethod
    def of(cls, recipe: Student, cache: ImageCache) -> Self:
        """Unlabelled images of a student's recipe; by default also `Real/` of the released layout."""
        folders = recipe.real_path
        if folders == REAL and not any(path.exists() for path in folders):
            beside = (path / "Real" for each in recipe.data_path for path in (each, each.parent))
            folders = tuple(path for path in beside if path.is_dir()) or folders
        return cls(find_images(folders), recipe, cache)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        rng = _generator(self.seed, *key, RandomStream.REAL)
        crop = random_crop((read_side(self.pairs[key[1]].rainy, self.read),), self.patch_size, rng)[0]
        return {"real_rainy": _channels_first(dihedral(crop, self._turn(rng)))}


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def _files(pairs: Sequence[Pair]) -> Iterator[Path] | None:
    """Every file of a set; None for a list that is too long to walk."""
    if _is_long_list(pairs):
        return None
    return (side.path for pair in pairs for side in (pair.rainy, pair.clean) if side)


def _count(pairs: Sequence[Pair]) -> list[int]:
    """Number of pairs, and a checksum of their names in order and of the first file's size.

    The size tells apart sets with the same names. Names of a long list are left out.
    """
    names = () if _is_long_list(pairs) else (f"{p.name}{'' if p.clean else p.rainy.half}" for p in pairs)
    first = pairs[0].rainy.path
    size = str(first.stat().st_size) if is_file(first) else ""
    return [len(pairs), zlib.crc32("\n".join([size, *names]).encode("utf-8", "surrogateescape"))]


def _is_long_list(pairs: Sequence[Pair]) -> bool:
    return isinstance(pairs, ListedPairs) and len(pairs) > MOST_FILES


# ------------------------------------------------------------------------------------------ a recipe's pairs


def pair_crops(recipe: Training, cache: ImageCache) -> Crops:
    """Crops of a recipe's datasets, after sanity checks.

    Raises UserError naming the file: layout not recognised, no pairs left, `--recombine` without exact grey
    rain.
    """
    sets, swaps, messages, why_not = [], [], [], ""
    for path in recipe.data_path:
        found = find_set(recipe, path, "train")
        messages += [f"warning: {each}" for each in check_pairs(found)]
        if recipe.recombine and (why_not := why_not_recombined(found)):
            messages.append(f"note: no layers are swapped in this set: {why_not}")
        sets.append(found)
        swaps.append(recipe.recombine and not why_not)
    grounds, held_back = [find_backgrounds(path) for path in recipe.backgrounds], None
    if recipe.hold_back:
        sets, grounds, held_back, message = hold_back_scenes(sets, grounds, recipe.hold_back)
        messages.append(message)
    if recipe.streaks:
        sets.append(find_layers(recipe.streaks))
        swaps.append(True)
    if recipe.recombine and not any(swaps):
        raise UserError(why_not)
    parts = []
    for number, (found, swapped) in enumerate(zip(sets, swaps, strict=True)):
        others = [each for each in sets if each is not found and each.pairs[0].clean]
        parts.append(
            PairCrops(found, recipe, cache, number=number, recombine=swapped, backgrounds=[*others, *grounds])
        )
    crops = MixedCrops(parts, recipe) if len(parts) > 1 else parts[0]
    crops.summary += [each.describe() for each in grounds]
    crops.messages = [*crops.summary, *messages, *(each.messages[-1] for each in parts)]
    crops.messages += [f"{each.root}: {cache.keep(_files(each.pairs))}" for each in grounds]
    crops.counts |= {f"backgrounds {n}": _count(each.pairs) for n, each in enumerate(grounds, 1)}
    crops.held_back = held_back
    return crops


def find_set(recipe: Training, path: Path, split: str) -> PairSet:
    """One set of a recipe; if there are several, each is identified by its folders."""
    dataset = recipe.dataset if len(recipe.data_path) == 1 else ""
    return find_pairs(path, split, dataset, recipe.rainy_side)


def hold_back_scenes(
    sets: Sequence[PairSet], backgrounds: Sequence[PairSet], count: int
) -> tuple[list[PairSet], list[PairSet], PairSet, str]:
    """Hold out `count` evenly spaced pairs of each set, with every image that shows one of their scenes.

    Returns the sets and the backgrounds that are left, the held-out pairs, and a message. A list too long to
    be read (SPA-Data) only loses the held-out pairs themselves. Raises UserError if nothing is left of a set.
    """
    held = [replace(each, pairs=[each.pairs[i] for i in sample(len(each.pairs), count)]) for each in sets]
    scenes = [pair.clean for each in held for pair in each.pairs if pair.clean]

    def kept(found: PairSet) -> PairSet:
        pairs = found.pairs
        if isinstance(pairs, ListedPairs) and _is_long_list(pairs):
            return replace(found, pairs=pairs.without(sample(len(pairs), count)))
        shown = show_scene_of([pair.clean or pair.rainy for pair in pairs], scenes)
        left = [pair for pair, gone in zip(pairs, shown, strict=True) if not gone]
        if not left:
            raise UserError(f"--hold_back {count} leaves none of {found.root}'s {len(pairs)} pairs")
        return replace(found, pairs=left)

    left, grounds = [kept(each) for each in sets], [kept(each) for each in backgrounds]
    both = zip((*sets, *backgrounds), (*left, *grounds), strict=True)
    gone = sum(len(before.pairs) - len(after.pairs) for before, after in both) - len(scenes)
    message = f"held back: {len(scenes)} pairs; {gone} other images show their scenes, and are not trained on"
    return left, grounds, merged(held), message
