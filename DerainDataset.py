"""Random crops of rainy and clean images.

A crop is a function of (seed, epoch, index), independent of the order of requests and of the process, so a
run can resume at any step with any number of processes. `machinery/loading.py` makes batches.
"""

import abc
import bisect
import copy
import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from config import REAL, Student, Training
from datasets.layouts import (
    find_backgrounds,
    find_images,
    find_layers,
    find_pairs,
    recognised,
    released_real_folder,
)
from datasets.pairs import (
    ListedPairs,
    Pair,
    PairSet,
    check_pairs,
    merged,
    read_pair,
    read_side,
    sample,
    why_not_recombined,
)
from datasets.scenes import show_scene_of
from machinery.loading import MOST_FILES, ImageCache
from utils import UserError, is_file

# ----------------------------------------------------------------------------------------------- augmentation

HAZE, HAZE_LIGHT = (0.1, 0.5), (150, 240)  # weight of the haze, and its grey level
JPEG_QUALITY = (50, 96)  # of cameras and web pages
# unsharp mask, as cameras and web pages apply it: sigma in pixels, amount
SHARPENING = (0.5, 1.2), (0.3, 1.5)


@dataclass(frozen=True)
class RainAugmentation:
    """Augmentation of training crops: streak layers, haze, rescaling, sharpening, JPEG.

    Its fields are the recipe's options. A streak layer is what rain adds to an image: uint8 (H, W).
    Crops are uint8 RGB (P, P, 3). All random draws come from the generator that is given.
    """

    max_streak_rotation: float = 0.0  # degrees, to either side
    streak_zoom: float = 1.0  # largest factor, or its inverse
    streak_strength: float = 1.0  # likewise
    streak_blur: float = 0.0  # largest sigma of a Gaussian, in pixels
    streak_layers: int = 1  # at most
    augment: bool = False
    mirror: bool = False
    unvaried_prob: float = 0.0
    clear_prob: float = 0.0
    haze_prob: float = 0.0
    downscale: float = 1.0  # largest factor
    sharpen_prob: float = 0.0
    jpeg_prob: float = 0.0

    @classmethod
    def of(cls, recipe: Training) -> Self:
        return cls(**{each.name: getattr(recipe, each.name) for each in fields(cls)})

    def drawn(self, rng: np.random.Generator) -> Self:
        """These, or for a fraction `unvaried_prob` of the crops, flips and rotations alone."""
        if rng.random() >= self.unvaried_prob:
            return self
        return type(self)(augment=self.augment, mirror=self.mirror)

    def source_size(self, size: int, rng: np.random.Generator) -> int:
        """Side of the window that `augment_pair` downscales to a crop of `size`."""
        return round(size * self.downscale ** rng.uniform())

    def streaks(
        self,
        rainy: np.ndarray,
        clean: np.ndarray,
        size: int,
        place: np.random.Generator,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """A window of the layer between two images, (size, size), at `place`, varied by `rng`."""
        angle = rng.triangular(-tilt, 0, tilt) if (tilt := self.max_streak_rotation) else 0.0
        zoom, strength = (most ** rng.uniform(-1, 1) for most in (self.streak_zoom, self.streak_strength))
        mirrored = (self.augment or self.mirror) and rng.integers(2)
        deviation = rng.uniform(0, self.streak_blur) if self.streak_blur else 0.0
        if angle or zoom != 1:
            warp, window = _random_warp(rainy.shape, size, angle, zoom, place)
            layer = _warped(_difference(rainy[window], clean[window]), warp, size)
        else:
            layer = _difference(*random_crop((rainy, clean), size, place))
        if deviation:
            layer = cv2.GaussianBlur(layer.astype(np.int16), (0, 0), deviation).astype(np.uint8)
        if strength != 1:
            layer = cv2.LUT(layer, np.round(np.arange(256) * strength).clip(max=255).astype(np.uint8))
        return cv2.flip(layer, 1) if mirrored else layer

    def augment_pair(
        self, rainy: np.ndarray, clean: np.ndarray, size: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Windows to crops of `size`: no rain, haze, sharpening, JPEG, each with its own probability.

        Everything but rain is applied to both sides, so the network learns to remove rain alone.
        """
        clear, haze, jpeg = rng.random(3) < (self.clear_prob, self.haze_prob, self.jpeg_prob)
        sides = [clean] if clear else [rainy, clean]
        if haze:
            share, light = rng.uniform(*HAZE), rng.uniform(*HAZE_LIGHT)
            levels = np.round(np.arange(256) * (1 - share) + light * share).astype(np.uint8)
            sides = [cv2.LUT(side, levels) for side in sides]
        if len(clean) != size:
            sides = [cv2.resize(side, (size, size), interpolation=cv2.INTER_AREA) for side in sides]
        if rng.random() < self.sharpen_prob:
            deviation, amount = (rng.uniform(*bounds) for bounds in SHARPENING)
            sides = [_sharpened(side, deviation, amount) for side in sides]
        if jpeg:
            quality = int(rng.integers(*JPEG_QUALITY))
            sides = [_compressed(side, quality) for side in sides]
        return sides[0], sides[-1]


def _difference(rainy: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """One layer for all channels: the largest difference is the one that was clipped least."""
    red, green, blue = cv2.split(cv2.subtract(rainy, clean))
    return cv2.max(cv2.max(red, green), blue)


def _sharpened(image: np.ndarray, deviation: float, amount: float) -> np.ndarray:
    return cv2.addWeighted(image, 1 + amount, cv2.GaussianBlur(image, (0, 0), deviation), -amount, 0)


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
    return [_extended(image[top : top + size, left : left + size], size) for image in images]


def _extended(image: np.ndarray, size: int) -> np.ndarray:
    for axis in (0, 1):
        if missing := size - image.shape[axis]:
            widths = [(0, missing if axis == i else 0) for i in range(3)]
            image = np.pad(image, widths, mode="reflect" if image.shape[axis] > 1 else "edge")
    return image


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
    """(H, W) to (size, size). The border is reflected, as in `_extended`."""
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

    CROP, PARTNER, REAL, LAYER, ORDER, MORE_LAYERS, AUGMENTATION, SHARE, DOWNSCALE, UNVARIED = range(10)


class Crops(Dataset, abc.ABC):
    """Entries (epoch, index) -> {name: uint8 (3, patch, patch)}.

    `summary`: one line per source; `messages`: everything to print. `roots`: folders of the sources.
    `counts`: number of images and a checksum of their names, which a resumed run must match. `pairs`: some of
    them, to display. `held_back`: validation pairs, of which no crop is drawn.
    """

    tag: RandomStream
    roots: list[Path]
    patch_size: int
    pairs: Sequence[Pair]
    summary: list[str]
    messages: list[str]
    counts: dict[str, list[int]]
    held_back: PairSet | None = None

    def larger(self, patch_size: int) -> Self:
        """The same crops, of another size."""
        other = copy.copy(self)
        other.patch_size = patch_size
        return other

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]: ...


class SetCrops(Crops):
    """Crops of one set, one entry per pair. `augment` flips and rotates, `mirror` flips left to right."""

    def __init__(
        self,
        found: PairSet,
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
        self.summary = [found.describe()]
        self.cached = self.read.keep(_files(self.pairs))
        self.messages = [*self.summary, self.cached]
        self.counts = {"pairs": _count(self.pairs)}

    def __len__(self) -> int:
        return len(self.pairs)

    def _turn(self, rng: np.random.Generator) -> int:
        turn = int(rng.integers(8))  # always drawn, so that options do not shift each other's draws
        if self.augment:
            return turn
        return turn // 4 * 4 if self.mirror else 0


class PairCrops(SetCrops):
    """Crops of pairs: {"rainy", "clean"}.

    `recombine` adds the streaks of pair `index` to the clean side of another pair or of `backgrounds`. Images
    without a clean side are streak layers. The rain must be an exact grey addition (`why_not_recombined`).
    Only the background is rotated, so rain still falls; `augmentation` varies the layers.
    """

    tag = RandomStream.CROP

    def __init__(
        self,
        found: PairSet,
        patch_size: int,
        *,
        recombine: bool = False,
        augmentation: RainAugmentation | None = None,
        backgrounds: Sequence[PairSet] = (),
        **common: Any,
    ) -> None:
        super().__init__(found, patch_size, **common)
        self.recombine, self.augmentation = recombine, augmentation or RainAugmentation()
        own = [] if found.pairs[0].clean is None else [self.pairs]
        self.backgrounds = [*own, *(each.pairs for each in backgrounds)] if recombine else []

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        draw = partial(_generator, self.seed, *key)
        index, rng = key[1], draw(RandomStream.CROP)
        turn = self._turn(rng)
        varied = self.augmentation.drawn(draw(RandomStream.UNVARIED))
        size = varied.source_size(self.patch_size, draw(RandomStream.DOWNSCALE))
        if self.recombine:
            clean = dihedral(self._background(size, draw(RandomStream.PARTNER)), turn)
            rain = self._layer(varied, index, size, rng, draw(RandomStream.LAYER))
            more = draw(RandomStream.MORE_LAYERS)
            for _ in range(int(more.integers(varied.streak_layers))):
                rain = cv2.add(
                    rain, self._layer(varied, int(more.integers(len(self.pairs))), size, more, more)
                )
            rainy = cv2.add(clean, cv2.merge([rain] * 3))
        else:
            sides = random_crop(self._both(index), size, rng)
            rainy, clean = (dihedral(side, turn) for side in sides)
        rainy, clean = varied.augment_pair(rainy, clean, self.patch_size, draw(RandomStream.AUGMENTATION))
        return {"rainy": _channels_first(rainy), "clean": _channels_first(clean)}

    def _both(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rainy, clean = read_pair(self.pairs[index], self.read)
        if clean is None:
            raise UserError(f"{self.pairs[index].rainy.path} has no clean side to train with")
        return rainy, clean

    def _layer(
        self,
        varied: RainAugmentation,
        index: int,
        size: int,
        place: np.random.Generator,
        rng: np.random.Generator,
    ) -> np.ndarray:
        rainy, clean = read_pair(self.pairs[index], self.read)
        dry = np.zeros_like(rainy) if clean is None else clean
        return varied.streaks(rainy, dry, size, place, rng)

    def _background(self, size: int, rng: np.random.Generator) -> np.ndarray:
        choice = int(rng.integers(sum(map(len, self.backgrounds))))
        for pairs in self.backgrounds:
            if choice < len(pairs):
                break
            choice -= len(pairs)
        side = pairs[choice].clean or pairs[choice].rainy
        return random_crop((read_side(side, self.read),), size, rng)[0]


class MixedCrops(Crops):
    """Crops of several sets: an epoch has each set's entries once, or in proportion to `shares`.

    Raises UserError if a share is less than one entry.
    """

    tag = RandomStream.CROP

    def __init__(self, sets: Sequence[SetCrops], shares: Sequence[float] = (), seed: int = 0) -> None:
        self.sets, self.pairs, self.patch_size = sets, sets[0].pairs, sets[0].patch_size
        self.roots = [root for each in sets for root in each.roots]
        self.summary = [line for each in sets for line in each.summary]
        self.messages = []
        self.counts = {f"{what} {n}": c for n, each in enumerate(sets, 1) for what, c in each.counts.items()}
        entries, of_one = sum(map(len, sets)), sum(shares)
        parts = [round(entries * share / of_one) for share in shares] or list(map(len, sets))
        for crops, part in zip(sets, parts, strict=True):
            if not part:
                raise UserError(f"--shares leaves {crops.roots[0]} none of {entries} crops: give it more")
        self.ends = list(itertools.accumulate(parts, initial=0))
        # a share may be smaller than the set: draw from all of it, not from its first files
        orders = (_generator(seed, number, RandomStream.SHARE) for number in range(len(sets)))
        self.orders = [rng.permutation(len(each)) for rng, each in zip(orders, sets, strict=True)]

    def larger(self, patch_size: int) -> Self:
        other = copy.copy(self)
        other.sets = [each.larger(patch_size) for each in self.sets]
        return other

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        which = bisect.bisect(self.ends, index) - 1
        crops, first, end = self.sets[which], self.ends[which], self.ends[which + 1]
        # each set has its own epochs: every entry is drawn once before any is repeated
        round_, place = divmod(epoch * (end - first) + index - first, len(crops))
        return crops[round_, int(self.orders[which][place])]


class RealCrops(SetCrops):
    """Crops of unlabelled images: {"real_rainy"}."""

    tag = RandomStream.REAL

    def __init__(self, found: PairSet, patch_size: int, **common: Any) -> None:
        super().__init__(found, patch_size, **common)
        self.messages = [*self.summary, *(f"note: {each}" for each in found.warnings), f"real {self.cached}"]
        self.counts = {"real images": self.counts["pairs"]}

    @classmethod
    def of(cls, recipe: Student, cache: ImageCache) -> Self:
        """Unlabelled images of a student's recipe; by default also those of the released layout."""
        folders = recipe.real_path
        if folders == REAL and not any(path.exists() for path in folders):
            folders = tuple(filter(None, map(released_real_folder, recipe.data_path))) or folders
        return cls(
            find_images(folders),
            recipe.patch_size,
            seed=recipe.seed,
            augment=recipe.augment and not recipe.recombine,  # with recombine, rain stays upright
            mirror=recipe.mirror or recipe.augment,
            cache=cache,
        )

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        rng = _generator(self.seed, *key, RandomStream.REAL)
        crop = random_crop((read_side(self.pairs[key[1]].rainy, self.read),), self.patch_size, rng)[0]
        return {"real_rainy": _channels_first(dihedral(crop, self._turn(rng)))}


class Source(NamedTuple):
    """A set, and whether its streaks are added to other backgrounds."""

    found: PairSet
    swaps: bool


def pair_crops(recipe: Training, cache: ImageCache) -> Crops:
    """Crops of a recipe's datasets, after sanity checks.

    Raises UserError naming the file: layout not recognised, no pairs left, `--recombine` without exact grey
    rain.
    """
    sets, swaps, warnings, why_not = [], [], [], ""
    for path in recipe.data_path:
        found = find_set(recipe, path, "train")
        warnings += [f"warning: {each}" for each in check_pairs(found)]
        if recipe.recombine and (why_not := why_not_recombined(found)):
            warnings.append(f"note: no layers are swapped in this set: {why_not}")
        sets.append(found)
        swaps.append(recipe.recombine and not why_not)
    grounds = [find_backgrounds(path) for path in recipe.backgrounds]
    sets, grounds, held_back, held_messages = hold_back_scenes(sets, grounds, recipe.hold_back)
    sources = [Source(found, swap) for found, swap in zip(sets, swaps, strict=True)]
    if recipe.streaks:
        sources.append(Source(find_layers(recipe.streaks), True))
    if recipe.recombine and not any(source.swaps for source in sources):
        raise UserError(why_not)
    parts = [_part(recipe, number, sources, grounds, cache) for number in range(len(sources))]
    crops = MixedCrops(parts, recipe.shares, recipe.seed) if len(parts) > 1 else parts[0]
    crops.summary += [each.describe() for each in grounds]
    kept_in_memory = [f"{each.roots[0]}: {each.cached}" for each in parts]
    kept_in_memory += [f"{each.root}: {cache.keep(_files(each.pairs))}" for each in grounds]
    crops.messages = [*crops.summary, *held_messages, *warnings, *kept_in_memory]
    crops.counts |= {f"backgrounds {n}": _count(each.pairs) for n, each in enumerate(grounds, 1)}
    crops.held_back = held_back
    return crops


def find_set(recipe: Training, path: Path, split: str) -> PairSet:
    """One set of a recipe; if there are several, each is identified by its folders."""
    if len(recipe.data_path) == 1:
        return find_pairs(path, split, recipe.dataset, recipe.rainy_side)
    found = find_pairs(path, split, "", recipe.rainy_side)
    told = recognised(found)
    return find_pairs(path, split, told, recipe.rainy_side) if told else found


def _part(
    recipe: Training, number: int, sources: Sequence[Source], grounds: Sequence[PairSet], cache: ImageCache
) -> PairCrops:
    found, swaps = sources[number]
    others = [each.found for each in sources if each.found is not found and each.found.pairs[0].clean]
    return PairCrops(
        found,
        recipe.patch_size,
        recombine=swaps,
        augmentation=RainAugmentation.of(recipe),
        backgrounds=[*others, *grounds],
        seed=recipe.seed + (number << 64),  # independent draws for each set
        augment=recipe.augment and swaps == recipe.recombine,  # else rain would fall upwards
        mirror=recipe.augment or recipe.mirror,
        cache=cache,
    )


def hold_back_scenes(
    sets: Sequence[PairSet], backgrounds: Sequence[PairSet], count: int
) -> tuple[list[PairSet], list[PairSet], PairSet | None, list[str]]:
    """Hold out `count` evenly spaced pairs of each set, with every image that shows one of their scenes.

    Returns the sets and the backgrounds that are left, the held-out pairs, and messages. Lists too long to be
    read (SPA-Data) only lose the held-out pairs themselves. Raises UserError if nothing is left of a set.
    """
    if not count:
        return list(sets), list(backgrounds), None, []
    held = [replace(each, pairs=[each.pairs[i] for i in sample(len(each.pairs), count)]) for each in sets]
    scenes = [pair.clean for each in held for pair in each.pairs if pair.clean]
    everything = [each for each in (*sets, *backgrounds) if not _is_long_list(each.pairs)]
    images = [pair.clean or pair.rainy for each in everything for pair in each.pairs]
    known = dict(zip(images, show_scene_of(images, scenes), strict=True)) | dict.fromkeys(scenes, True)

    def kept(found: PairSet) -> PairSet:
        pairs = [pair for pair in found.pairs if not known.get(pair.clean or pair.rainy, False)]
        if not pairs:
            raise UserError(f"--hold_back {count} leaves none of {found.root}'s {len(found.pairs)} pairs")
        return replace(found, pairs=pairs)

    left, grounds = [kept(each) for each in sets], [kept(each) for each in backgrounds]
    pairs_gone, grounds_gone = (
        sum(len(each.pairs) for each in before) - sum(len(each.pairs) for each in after)
        for before, after in ((sets, left), (backgrounds, grounds))
    )
    message = (
        f"held back: {len(scenes)} pairs; {pairs_gone - len(scenes)} other pairs and {grounds_gone} "
        "backgrounds show their scenes, and are not trained on"
    )
    return left, grounds, merged(held), [message]


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
