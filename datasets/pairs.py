"""Pairs of a rainy and a clean image: their files, how they are read, what their pixels and names tell.

Images are uint8 RGB (H, W, 3).
"""

import codecs
import copy
import os
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Self

import cv2
import numpy as np

from utils import UserError, file_errors, is_file, read_image

OTHER_HALF = {"left": "right", "right": "left"}
NOUNS = {"streaks": "layers", "backgrounds": "clean images"}  # of images without a clean side, by layout
DARK = 16  # upper limit of a streak layer's median level: it is black except for the streaks
THUMBNAIL = 16  # side of a thumbnail, in pixels
SAME_SCENE = 0.95  # minimum correlation of two thumbnails of one scene


class ImageRef(NamedTuple):
    """One side of a pair: a whole image file, or its left or right half."""

    path: Path
    half: str = ""  # "", "left", "right"


class Pair(NamedTuple):
    """A rainy image and its clean one. `name` is unique within a set: derained outputs are called so."""

    name: str
    rainy: ImageRef
    clean: ImageRef | None  # None: a real photograph, without ground truth


@dataclass(frozen=True)
class PairSet:
    """The pairs of a folder, and its rainy images without a clean one, `lone`.

    `root`: the folder in which they lie, at or below the one given.
    """

    layout: str
    root: Path
    pairs: Sequence[Pair]
    warnings: tuple[str, ...] = ()
    lone: Sequence[Path] = ()

    def describe(self) -> str:
        """One line: layout, number of pairs, folder."""
        what = "pairs" if self.pairs[0].clean else NOUNS.get(self.layout, "real images")
        return f"{self.layout}: {len(self.pairs):,} {what} from {self.root}"


def merged(sets: Sequence[PairSet]) -> PairSet:
    """Concatenates sets; pair names are prefixed with the number of their set."""
    if len(sets) == 1:
        return sets[0]
    pairs = [
        pair._replace(name=f"{number}-{pair.name}")
        for number, found in enumerate(sets, 1)
        for pair in found.pairs
    ]
    warnings = tuple(each for found in sets for each in found.warnings)
    return PairSet(", ".join(found.layout for found in sets), sets[0].root, pairs, warnings)


def read_pair(
    pair: Pair, read: Callable[[Path], np.ndarray] = read_image
) -> tuple[np.ndarray, np.ndarray | None]:
    """Rainy and clean, uint8 RGB (H, W, 3); clean is None for a real image.

    Raises UserError, naming the file: unreadable, a pair of two sizes, an odd width of two halves.
    """
    rainy = read_side(pair.rainy, read)
    clean = read_side(pair.clean, read) if pair.clean else None
    if pair.clean and clean is not None and clean.shape != rainy.shape:
        sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (rainy, clean))
        raise UserError(
            f"{pair.rainy.path} and {pair.clean.path} differ in size, {sizes}: download them again"
        )
    return rainy, clean


def read_side(side: ImageRef, read: Callable[[Path], np.ndarray] = read_image) -> np.ndarray:
    """One side of a pair, uint8 RGB (H, W, 3)."""
    image = read(side.path)
    if not side.half:
        return image
    middle, odd = divmod(image.shape[1], 2)
    if odd or not middle:
        raise UserError(
            f"{side.path} is {image.shape[1]} pixels wide: not two images of equal width side by side"
        )
    return image[:, :middle] if side.half == "left" else image[:, middle:]


def sample(count: int, most: int) -> list[int]:
    """Up to `most` indices, evenly spread."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))


# ------------------------------------------------------------------------------------------- a list of pairs


class ListedPairs(Sequence[Pair]):
    """The pairs of a list file, "rainy clean" a line. Lists no folder and opens no image.

    The list's paths begin with folders of its authors' machine. The number of leading folders to drop is
    found once: the files of a sampled line must exist below the list's folder. Only line offsets are kept in
    memory.
    """

    def __init__(self, list_file: Path, labelled: bool = True) -> None:
        self.list_file, self.labelled = list_file, labelled
        with file_errors(list_file, "download it again"), list_file.open("rb") as file:
            lengths = np.array([len(line) for line in file], int)
        ends = lengths.cumsum()
        self._lines = np.stack((ends - lengths, lengths), axis=1)[lengths > 2]  # not a line break alone
        if not len(self):
            raise UserError(f"{list_file} lists no image pairs: download it again")
        self._drop = self._leading()

    def without(self, indices: Sequence[int]) -> Self:
        other = copy.copy(self)
        other._lines = np.delete(self._lines, indices, axis=0)
        return other

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: Any) -> Any:
        rainy, clean = (parts[drop:] for parts, drop in zip(self._names(index), self._drop, strict=True))
        # its path: stems may repeat across folders, and checking a whole list takes too long
        name = "/".join(part for part in rainy if part != "..").removesuffix(".png")
        if self.labelled and rainy == clean:
            raise UserError(f"{self.list_file} has {name} on both sides of a line: download it again")
        root = self.list_file.parent
        clean_side = ImageRef(root.joinpath(*clean)) if self.labelled else None
        return Pair(name, ImageRef(root.joinpath(*rainy)), clean_side)

    def _names(self, index: int) -> list[list[str]]:
        start, length = self._lines[index]
        with file_errors(self.list_file, "download it again"), self.list_file.open("rb") as file:
            file.seek(start)
            line = os.fsdecode(file.read(length).removeprefix(codecs.BOM_UTF8))
        names = line.split()
        if len(names) != 2:
            shown = line.strip()[:200]
            raise UserError(
                f"{self.list_file}: '{shown}' is not a rainy and a clean file name: download it again"
            )
        return [[part for part in re.split(r"[/\\]", name) if part not in ("", ".")] for name in names]

    def _leading(self) -> list[int]:
        """The number of leading folders to drop, of the rainy and the clean column."""
        root = self.list_file.parent
        for index in sample(len(self), 100):  # not the first line alone: a download may be incomplete
            names = self._names(index)
            drops = [[n for n in range(len(parts)) if is_file(root.joinpath(*parts[n:]))] for parts in names]
            if all(drops):
                return [first for first, *_ in drops]
        raise UserError(
            f"{self.list_file} lists {'/'.join(self._names(0)[0])[:200]} and more, none of them below "
            f"{root}: put the list beside the folders it names"
        )


# ----------------------------------------------------------------------------------- what their pixels tell


def readable(read: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """What `read` returns of up to 8 items, evenly spread, without those that raise a UserError.

    Raises the first of their errors if all do.
    """
    results, errors = [], []
    for index in sample(len(items), 8):
        try:
            results.append(read(items[index]))
        except UserError as error:
            errors.append(error)
    if errors and not results:
        raise errors[0]
    return results


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Grey, float32 (256,), of mean 0 and norm 1: a product of two is their correlation. Zeros if plain."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    small = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).ravel()
    small -= small.mean()
    return small / np.maximum(np.linalg.norm(small), 1e-3)


def show_scene_of(images: Sequence[ImageRef], others: Sequence[ImageRef]) -> np.ndarray:
    """For each of `images` whether one of `others` shows its scene: bool (N,). The same file always does.

    Compression and rain do not matter; another crop is not recognised. Rain800's 700 training pairs show 368
    scenes, Rain200H and Rain200L the same 300: a held-back pair whose scene is trained on measures memory.
    """
    distinct = list(dict.fromkeys([*others, *images]))
    with ThreadPool() as pool:
        rows = np.stack(pool.map(lambda each: thumbnail(read_side(each)), distinct))
    scenes = set(others)
    alike = (rows @ rows[: len(scenes)].T > SAME_SCENE).any(axis=1)
    same = {image for image, yes in zip(distinct, alike, strict=True) if yes} | scenes
    return np.array([image in same for image in images], bool)


def halves_agree(files: Sequence[Path]) -> bool:
    """Whether images hold pairs side by side: the thumbnails of their halves correlate, whatever the rain.

    Measured median of a folder: pairs 0.93 (Rain200H) to 1.00, halves of single photographs 0.3.
    """
    correlations = []
    for image in readable(read_image, files):
        half = (image.shape[1] + 1) // 2  # the middle column of an odd width is in both
        correlations.append(thumbnail(image[:, :half]) @ thumbnail(image[:, -half:]))
    return len(correlations) > 0 and bool(np.median(correlations) > 0.7)


def rain_excess(rainy: np.ndarray, clean: np.ndarray) -> float:
    """Log ratio of the mean gradients of two uint8 images: positive if the first has the streaks.

    Positive for 197 of 200 pairs of Rain200H/L, Rain800, Rain1400, SPA and Rain12. Brightness and the
    skewness of the difference err more often.
    """
    return float(np.log((_busyness(rainy) + 1e-3) / (_busyness(clean) + 1e-3)))


def _busyness(image: np.ndarray) -> float:
    grey = image.astype(np.float32).mean(axis=2)
    return float(sum(np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1) if grey.shape[axis] > 1))


def looks_swapped(pairs: Sequence[Pair]) -> bool:
    """Whether the rainy sides of sampled pairs look cleaner than the clean ones."""
    images = readable(read_pair, pairs)
    return sum(rain_excess(rainy, clean) for rainy, clean in images if clean is not None) < 0


def check_pairs(found: PairSet) -> list[str]:
    """The warnings about a set: those of its layout, and sides that look swapped.

    Ignores unreadable images, which are reported when they are read.
    """
    if not looks_swapped(found.pairs):
        return list(found.warnings)
    first = found.pairs[0].rainy
    remedy = f"--rainy_side {OTHER_HALF[first.half]}" if first.half else "swap the folders' names"
    warning = f"{first.path}: the rainy side looks cleaner than the clean one; if swapped: {remedy}"
    return [*found.warnings, warning]


def not_additive(rainy: np.ndarray, clean: np.ndarray) -> float:
    """Fraction of the pixels that are not min(255, clean + one grey layer), uint8 (H, W, 3)."""
    layer = cv2.subtract(rainy, clean).max(axis=2, keepdims=True)  # of the channel that is clipped the least
    return float((cv2.add(clean, layer.repeat(3, axis=2)) != rainy).any(axis=2).mean())


def why_not_recombined(found: PairSet) -> str:
    """Why a set's streak layers cannot be recombined: its rain is not an exact grey addition; else "".

    Measured on sampled pairs. 222 pairs of Rain200 were exact; samples of the other sets were not.
    """
    for index in sample(len(found.pairs), 16):
        rainy, clean = read_pair(found.pairs[index])
        if clean is not None and (wrong := not_additive(rainy, clean)):
            path = found.pairs[index].rainy.path
            return f"--recombine needs rain that is an exact grey addition; {wrong:.1%} of {path} is not"
    return ""


def refuse_unless_layers(found: PairSet) -> None:
    """Raises UserError unless images are streak layers: grey, on black."""
    for index in sample(len(found.pairs), 16):
        path = found.pairs[index].rainy.path
        image = read_image(path)
        if (image != image[..., :1]).any() or np.median(image) > DARK:
            raise UserError(f"{path} is not a streak layer: --streaks takes grey streaks on black")


# ------------------------------------------------------------------------------------------------------ names


# Words that datasets and methods add to an image's name: norain-1x2, 438gt, 7_derained, ...
DECORATIONS = {
    *("rain", "norain", "rainy", "clean", "gt", "input", "target"),
    *("derain", "derained", "output", "result"),
}


class Matched(NamedTuple):
    """(image, its clean image) in the images' order, and the files of either side without a partner."""

    pairs: list[tuple[Path, Path]]
    lone: list[Path]
    lone_clean: list[Path]


def match(images: Sequence[Path], clean: Sequence[Path]) -> Matched:
    """Finds the clean image of each rainy or derained image.

    Rules, in this order: same stem; same stem without its decorations; same numbers; Rain1400's fourteen to
    one (901_1 ... 901_14 and 901). A key that two images of one side share is ignored. A clean image that one
    rule has assigned is not available to later rules: no image may get another image's partner.
    """
    partner: dict[Path, Path] = {}
    stem = attrgetter("stem")
    for rule, of_clean in ((stem, stem), (_own_name, _own_name), (_numbers, _numbers), (_scene, _own_name)):
        given = set(partner.values())
        candidates = _unique((path for path in clean if path not in given), of_clean)
        waiting = [path for path in images if path not in partner]
        alone = waiting if rule is _scene else _unique(waiting, rule).values()
        partner |= {path: candidates[rule(path)] for path in alone if rule(path) in candidates}
    given = set(partner.values())
    return Matched(
        [(path, partner[path]) for path in images if path in partner],
        [path for path in images if path not in partner],
        [path for path in clean if path not in given],
    )


def refuse_shift(matched: Matched) -> None:
    """Raises UserError if the numbers of the two sides look shifted: 0 to 7 against 1 to 8.

    Every pair but the ends then matches by number, and every pair is a wrong one.
    """
    own, clean = ([_numbers(path) for path in side] for side in (matched.lone, matched.lone_clean))
    paired = [_numbers(image) for image, _ in matched.pairs]
    if not (paired and own and len(own) == len(clean) and all(own + clean)):
        return
    low, high = sorted((own, clean))
    if max(low) < min(paired) and max(paired) < min(high):
        raise UserError(
            f"{matched.lone[0]} and {matched.lone_clean[0]} are left over at opposite ends of the numbering: "
            "one side seems to count from 0 and the other from 1; rename one, or delete what has no partner"
        )


def _unique(paths: Iterable[Path], rule: Callable[[Path], Hashable]) -> dict[Hashable, Path]:
    """The images by the key that `rule` makes of their names; without keys that several share."""
    groups: dict[Hashable, list[Path]] = {}
    for path in paths:
        groups.setdefault(rule(path), []).append(path)
    return {key: group[0] for key, group in groups.items() if key and len(group) == 1}


def _own_name(path: Path) -> tuple[str, ...]:
    """norain-57x2, rain-57, 57gt: ("57",)."""
    parts = re.findall(r"[^\W\d_]+|\d+", re.sub(r"(?<=\d)x2$", "", path.stem.lower()))
    return tuple(part for part in parts if part not in DECORATIONS)


def _numbers(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in _own_name(path) if part.isdecimal())


def _scene(path: Path) -> tuple[str, ...]:
    """901_14, the fourteenth rain of scene 901: ("901",)."""
    *scene, variant = _own_name(path) or ("",)
    return tuple(scene) if variant.isdecimal() else ()


def distinct_names(files: Sequence[Path], root: Path) -> list[str]:
    """Stems if they are unique, else paths relative to `root`: no two inputs may share an output name."""
    for name in (lambda p: p.stem, lambda p: below(p, root).with_suffix("").as_posix()):
        names = [name(path) for path in files]
        if len(set(names)) == len(names):
            return names
    return [below(path, root).as_posix() for path in files]


def below(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else Path(*path.parts[1:])
