"""Which layout a folder has, its pairs of rainy and clean images, and what cannot be right about them.

A user points at what was downloaded; `find_pairs` says what it is. Nothing is merged, renamed or written.
Images are uint8 RGB (H, W, 3).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.names import below, distinct_names, match
from utils import UserError, list_images, natural_key, one_line, read_image

# Pairs in the official downloads, as their papers state them.
OFFICIAL: dict[str, dict[str, int]] = {
    "Rain200H": {"train": 1800, "test": 200},
    "Rain200L": {"train": 1800, "test": 200},
    "Rain100H": {"train": 1800, "test": 100},
    "Rain100L": {"train": 200, "test": 100},
    "Rain800": {"train": 700, "test": 100},
    "Rain1200": {"train": 12_000, "test": 1_200},
    "Rain1400": {"train": 12_600, "test": 1_400},
    "SPA": {"train": 638_492, "test": 1_000},
    "Rain12": {"test": 12},
    "Real275": {"test": 275},
    "Internet": {"train": 147},
}
LIST_FILE = "real_world.txt"
OTHER = {"train": "test", "test": "train", "left": "right", "right": "left"}
RAINY_FOLDERS = ("rain", "rainy", "rainy_image", "input")
CLEAN_FOLDERS = ("norain", "clean", "ground_truth", "gt", "target")
LOOKED_FOR = (
    "rain/X2 or rain/ + norain/, rainy_image/ + ground_truth/, rain/ + gt/, input/ + target/, "
    "rainy/ + clean/, rain-N + norain-N in one folder, Rain_{Light,Medium,Heavy}/, side-by-side images, "
    f"{LIST_FILE}; alone or under train and test folders"
)


class Side(NamedTuple):
    """One side of a pair: a whole image file, or its left or right half."""

    path: Path
    half: str = ""  # "", "left", "right"


class Pair(NamedTuple):
    """A rainy image and its clean one. Derained outputs are called `name`, unique within a set."""

    name: str
    rainy: Side
    clean: Side | None  # None: a real photograph, nobody knows it without the rain


@dataclass(frozen=True)
class Found:
    """What a folder turned out to hold. `root` is the folder in which the pairs themselves lie."""

    layout: str
    root: Path
    pairs: Sequence[Pair]
    warnings: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line: the layout, how many, from where."""
        what = "real images" if self.pairs[0].clean is None else "pairs"
        return f"{self.layout}: {len(self.pairs):,} {what} from {self.root}"


# ----------------------------------------------------------------------------------------- which layout it is


class Gathered(NamedTuple):
    """The pairs of a folder, and the images without a partner."""

    pairs: Sequence[Pair]
    lone_rainy: Sequence[Path] = ()
    lone_clean: Sequence[Path] = ()


class Spot(NamedTuple):
    """A folder that was recognised, and how its pairs are put together."""

    folder: Path
    layout: str
    gather: Callable[[], Gathered]


def find_pairs(data_path: Path, split: str, dataset: str = "", rainy_side: str = "auto") -> Found:
    """Recognises the layout of `data_path` and returns its `split` ("train" or "test").

    `data_path` is a set's own folder, its split's, or one that holds it; or a list file. `dataset` (a key of
    OFFICIAL, or "") chooses where a folder holds several sets, and gives the count to expect. `rainy_side`
    is the rainy half of side-by-side images, "left" or "right"; "auto" goes by the set, else by measuring.
    Raises UserError that names the file: nothing recognised, several sets, a rainy image without its clean
    one, an empty folder.
    """
    spot, warnings = locate(Path(data_path), split, dataset, rainy_side)
    pairs, lone_rainy, lone_clean = spot.gather()
    if lone_rainy:
        more = f" (and {len(lone_rainy) - 1} more)" if len(lone_rainy) > 1 else ""
        raise UserError(
            f"{lone_rainy[0]} has no clean image of that name or number{more}: fetch the set again"
        )
    if lone_clean:
        warnings.append(f"clean images without a rainy one, not used: {one_line(p.name for p in lone_clean)}")
    expected = OFFICIAL.get(dataset, {}).get(split)
    if expected and len(pairs) != expected:
        warnings.append(
            f"{spot.folder} holds {len(pairs):,} pairs; {dataset}'s official {split} set has {expected:,}"
        )
    return Found(spot.layout, spot.folder, pairs, tuple(warnings))


def locate(
    data_path: Path, split: str, dataset: str = "", rainy_side: str = "auto"
) -> tuple[Spot, list[str]]:
    """The one recognised folder of a split, with warnings; its images are not paired yet."""
    if data_path.suffix == ".txt" and data_path.is_file():
        return _listed(data_path), []
    if not data_path.is_dir():
        raise UserError(f"{data_path} is not a folder: --data_path takes the folder of a dataset")
    warnings: list[str] = []
    spots = _spots(data_path, split, dataset, rainy_side)
    if not spots and _split_of(data_path) == OTHER[split]:
        beside = [
            path
            for path in _folders(data_path.parent)
            if _split_of(path) == split and _kind(path) == _kind(data_path)
        ]
        spots = [spot for path in beside for spot in _spots(path, split, dataset, rainy_side)]
        if spots:
            warnings.append(f"{data_path} is a {OTHER[split]} folder: took the {split} folder beside it")
    spots = _of_dataset(spots, dataset, data_path)
    if not spots:
        raise UserError(f"no {split} pairs in {data_path}{_hint(data_path, split)}; looked for {LOOKED_FOR}")
    if len(spots) > 1:
        several = one_line(spot.folder for spot in spots)
        raise UserError(f"{data_path} holds several sets ({several}): point --data_path at one of them")
    kind = _kind(spots[0].folder)
    if kind and _kind(Path(dataset)) not in ("", kind):
        warnings.append(f"{spots[0].folder} is {kind} rain by its name, and {dataset} is not")
    return spots[0], warnings


def _hint(data_path: Path, split: str) -> str:
    """What a person most likely wants to hear about a folder in which nothing was recognised."""
    for folder in (data_path, *(path for path in _folders(data_path) if _split_of(path) == split)):
        if not any(folder.iterdir()):
            return f": {folder} is empty"
        if images := list_images(folder):
            return f": the {len(images):,} images in {folder} are not two of one picture side by side"
    return ""


def _split_of(folder: Path) -> str:
    """rain_data_train_Heavy, DID-MDN-training, RainTrainH: train; test_syn, Testing: test."""
    for split in ("train", "test"):
        if re.search(rf"(?:^|[^A-Za-z])(?:{split}|{split.upper()})|{split.title()}", folder.name):
            return split
    return ""


def _kind(path: Path) -> str:
    """Heavy or light rain, as a path's last two names say: Rain200H, RainTrainL, rain_data_test_Light."""
    for name in (path.name, path.parent.name):
        if found := re.search(r"(heavy|(?:\d|train|test)h$)|light|(?:\d|train|test)l$", name.lower()):
            return "heavy" if found[1] else "light"
    return ""


def _of_dataset(spots: list[Spot], dataset: str, data_path: Path) -> list[Spot]:
    """Where several sets were recognised, those that speak of `dataset` below `data_path`."""
    other_names = {"Rain1200": "did", "Rain1400": "ddn", "SPA": "real_?world", "Real275": "real-275"}
    patterns = (dataset.lower(), other_names.get(dataset), dataset[-4:].lower())  # 200h of Simulated200H
    for pattern in patterns:
        if len(spots) > 1 and pattern:
            names = [below(spot.folder, data_path).as_posix().lower() for spot in spots]
            spots = [s for s, name in zip(spots, names, strict=True) if re.search(pattern, name)] or spots
    if len(spots) > 1 and dataset:
        spots = [s for s in spots if _kind(s.folder) == _kind(Path(dataset))] or spots
    return spots


def _folders(folder: Path) -> list[Path]:
    try:
        names = [each.name for each in os.scandir(folder) if each.is_dir() and not each.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}") from None
    return [folder / name for name in sorted(names, key=natural_key)]


def _images_in(*folders: Path) -> list[Path]:
    files = [path for folder in folders for path in list_images(folder)]
    if not files:
        raise UserError(f"{folders[0]} holds no images")
    return files


def _spots(folder: Path, split: str, dataset: str, rainy_side: str, depth: int = 3) -> list[Spot]:
    """Recognised folders: those below named for the split, else this one, else those in its children."""
    listed = (folder / LIST_FILE).is_file()
    if listed and split == "train":
        return [_listed(folder / LIST_FILE)]
    children = _folders(folder)

    def search(paths: Iterable[Path]) -> list[Spot]:
        deeper = paths if depth else ()
        return [s for path in deeper for s in _spots(path, split, dataset, rainy_side, depth - 1)]

    if spots := search(child for child in children if _split_of(child) == split):
        return spots
    if _split_of(folder) != OTHER[split] and (spot := _recognise(folder, children, dataset, rainy_side)):
        return [spot]
    # below a list file lie hundreds of thousands of images: nothing there is worth listing
    return [] if listed else search(child for child in children if not _split_of(child))


def _recognise(folder: Path, children: list[Path], dataset: str, rainy_side: str) -> Spot | None:
    if folder.name == "test_nature":  # Rain800's real photographs, which have no clean side
        return None
    named = {child.name.lower(): child for child in children}
    rainy = next((named[name] for name in RAINY_FOLDERS if name in named), None)
    clean = next((named[name] for name in CLEAN_FOLDERS if name in named), None)
    if rainy and clean:
        return _two_folders(folder, rainy, clean)
    if strengths := [named[n] for n in ("rain_light", "rain_medium", "rain_heavy") if n in named]:
        return _did_training(folder, strengths, rainy_side)
    files = list_images(folder)
    rainy_files = [path for path in files if re.match(r"rain[-_]", path.name.lower())]
    clean_files = [path for path in files if re.match(r"norain[-_]", path.name.lower())]
    if rainy_files and clean_files:
        return Spot(
            folder, "rain-N + norain-N in one folder", lambda: _paired(folder, rainy_files, clean_files)
        )
    return _side_by_side(folder, files, dataset, rainy_side) if files else None


def _two_folders(folder: Path, rainy: Path, clean: Path) -> Spot:
    if inner := [child for child in _folders(rainy) if child.name.lower() == "x2"]:
        rainy = inner[0]
    layout = f"{rainy.relative_to(folder)}/ + {clean.name}/"
    if rainy.name == "rainy_image":
        layout = f"Rain1400 (DDN), {layout}"
    elif rainy.name.lower() == "x2":
        layout = f"Rain200 ({folder.name}), {layout}"
    elif clean.name == "gt":
        layout = f"SPA test, {layout}"
    return Spot(folder, layout, lambda: _paired(folder, _images_in(rainy), _images_in(clean)))


def _paired(root: Path, rainy: Sequence[Path], clean: Sequence[Path]) -> Gathered:
    matched = match(rainy, clean)
    names = distinct_names([r for r, _ in matched.pairs], root)
    pairs = [Pair(name, Side(r), Side(c)) for name, (r, c) in zip(names, matched.pairs, strict=True)]
    return Gathered(pairs, matched.lone, matched.lone_clean)


def _did_training(folder: Path, strengths: list[Path], rainy_side: str) -> Spot:
    """Rain1200: Rain_{Light,Medium,Heavy}/train2018new/N.jpg, rainy left."""

    def files() -> list[Path]:
        return [path for each in strengths for path in _images_in(each, *_folders(each))]

    side = "left" if rainy_side == "auto" else rainy_side
    layout = f"Rain1200 (DID-MDN) {', '.join(p.name for p in strengths)}, side by side, rainy {side}"
    return Spot(folder, layout, lambda: Gathered(_halves(folder, files(), side)))


def _halves(root: Path, files: list[Path], rainy_side: str) -> list[Pair]:
    names = distinct_names(files, root)
    clean_side = OTHER[rainy_side]
    return [Pair(n, Side(p, rainy_side), Side(p, clean_side)) for n, p in zip(names, files, strict=True)]


def _side_by_side(folder: Path, files: list[Path], dataset: str, rainy_side: str) -> Spot | None:
    """One image a pair. The name says which half is rainy; where it does not, the pixels are asked."""
    if not _halves_agree(files):
        return None
    name = f"{folder.parent.name}/{folder.name}".lower()
    if all(path.name.lower().startswith("norain") for path in files):
        layout, side = "released merged layout", "right"
    elif dataset == "Rain1200" or re.search(r"did-?(mdn|data)|train2018new|rain1200", name):
        layout, side = "Rain1200 (DID-MDN)", "left"
    elif dataset == "Rain12" or re.search(r"rain12$", name) or name.startswith("rain12/"):
        layout, side = "Rain12", "left"
    elif dataset == "Rain800" or "rain800" in name or folder.name == "test_syn":
        layout, side = "Rain800", "right"
    else:
        layout, side = "images of unknown origin", ""
    reason = ""
    if rainy_side != "auto":
        side, reason = rainy_side, " as asked"
    elif not side:
        side, reason = ("right" if looks_swapped(_halves(folder, files, "left")) else "left"), " as measured"
    layout = f"{layout}, side by side, rainy {side}{reason}"
    return Spot(folder, layout, lambda: Gathered(_halves(folder, files, side)))


def _listed(list_file: Path) -> Spot:
    layout = f"SPA list {list_file.name}"
    return Spot(list_file.parent, layout, lambda: Gathered(ListedPairs(list_file)))


class ListedPairs(Sequence[Pair]):
    """The pairs of a list file, 'rainy clean' a line. Neither folders nor images are looked at.

    The list's paths begin with folders of its makers' machine: as many as must go before the files of one
    line lie below the list's own folder go from every line. Only where lines begin is kept in memory.
    """

    def __init__(self, list_file: Path, labelled: bool = True) -> None:
        self.list_file, self.labelled = list_file, labelled
        if not list_file.is_file() or not list_file.stat().st_size:
            raise UserError(f"{list_file} is empty or missing: fetch it again")
        self._bytes = np.memmap(list_file, np.uint8, "r")
        blocks = range(0, len(self._bytes), 1 << 22)
        breaks = [np.flatnonzero(self._bytes[at : at + (1 << 22)] == ord("\n")) + at for at in blocks]
        ends = np.append(np.concatenate(breaks), len(self._bytes))
        starts = np.append(0, ends[:-1] + 1)
        lines = ends - starts > 1  # blank ones, and a lone carriage return, are none
        self._starts, self._ends = starts[lines], ends[lines]
        if not len(self):
            raise UserError(f"{list_file} lists no image pairs: fetch it again")
        self._drop = self._leading()

    def __reduce__(self) -> tuple[Any, ...]:
        return ListedPairs, (self.list_file, self.labelled)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        rainy, clean = (
            self.list_file.parent.joinpath(*parts[drop:])
            for parts, drop in zip(self._names(index), self._drop, strict=True)
        )
        return Pair(rainy.stem, Side(rainy), Side(clean) if self.labelled else None)

    def _names(self, index: int) -> list[list[str]]:
        line = self._bytes[self._starts[index] : self._ends[index]].tobytes().decode("utf-8", "replace")
        names = line.split()
        if len(names) != 2:
            raise UserError(f"{self.list_file}: '{line.strip()}' is not a rainy and a clean file name")
        return [[part for part in re.split(r"[/\\]", name) if part not in ("", ".")] for name in names]

    def _leading(self) -> list[int]:
        """How many leading folders must go, of the rainy and the clean column."""
        root = self.list_file.parent
        for index in _sample(len(self), 100):  # the first is there, unless the download is not complete
            names = self._names(index)
            drops = [(n for n in range(len(parts)) if root.joinpath(*parts[n:]).is_file()) for parts in names]
            if None not in (found := [next(drop, None) for drop in drops]):
                return [drop for drop in found if drop is not None]
        raise UserError(
            f"{self.list_file} lists {'/'.join(self._names(0)[0])} and more, none of it below {root}"
        )


def find_images(folders: Sequence[Path], dataset: str = "") -> Found:
    """Unlabelled real images of any size: files, folders with all below them, or a list file's rainy column.

    Of a folder of pairs only the rainy side is taken. Raises UserError for a folder without images.
    """
    if not folders:
        raise UserError("no folder of real images was given")
    warnings: list[str] = []
    paths = [path / LIST_FILE if (path / LIST_FILE).is_file() else path for path in map(Path, folders)]
    lists = {path: ListedPairs(path, labelled=False) for path in paths if path.suffix == ".txt"}
    if len(paths) == len(lists) == 1:
        return Found(f"rainy images of {paths[0].name}", paths[0].parent, lists[paths[0]])
    files: list[Path] = []
    for path in paths:
        if path in lists:
            found = [pair.rainy.path for pair in lists[path]]
        else:
            found = [path] if path.is_file() else _images_below(path, warnings)
        if not found:
            raise UserError(f"{path} holds no images")
        files += found
    files = list(dict.fromkeys(files))  # a folder given twice, or inside another
    root = Path(os.path.commonpath([path.parent for path in files]))
    names = distinct_names(files, root)
    expected = sum(OFFICIAL.get(dataset, {}).values())
    if expected and len(files) != expected:
        warnings.append(f"{root} holds {len(files):,} images; {dataset} officially has {expected:,}")
    pairs = [Pair(name, Side(path), None) for name, path in zip(names, files, strict=True)]
    return Found("unlabelled", root, pairs, tuple(warnings))


def _images_below(folder: Path, warnings: list[str]) -> list[Path]:
    files = list_images(folder)
    children = _folders(folder)
    if any(child.name.lower() in RAINY_FOLDERS for child in children):
        clean = [child for child in children if child.name.lower() in CLEAN_FOLDERS]
        warnings += [f"{child} is the clean side of pairs: not taken as rainy images" for child in clean]
        children = [child for child in children if child not in clean]
    for child in children:
        files += _images_below(child, warnings)
    return files


# -------------------------------------------------------------------------------------------- what pairs hold


def read_pair(
    pair: Pair, read: Callable[[Path], np.ndarray] = read_image
) -> tuple[np.ndarray, np.ndarray | None]:
    """Rainy and clean, uint8 RGB (H, W, 3); clean is None for a real image.

    Raises UserError that names the file: unreadable, two sizes in a pair, an odd width of two halves.
    """
    rainy = read_side(pair.rainy, read)
    clean = read_side(pair.clean, read) if pair.clean else None
    if pair.clean and clean is not None and clean.shape != rainy.shape:
        sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (rainy, clean))
        raise UserError(f"{pair.rainy.path} and {pair.clean.path} have two sizes, {sizes}: fetch them again")
    return rainy, clean


def read_side(side: Side, read: Callable[[Path], np.ndarray] = read_image) -> np.ndarray:
    """One side of a pair, uint8 RGB (H, W, 3)."""
    image = read(side.path)
    if not side.half:
        return image
    middle, odd = divmod(image.shape[1], 2)
    if odd or not middle:
        raise UserError(
            f"{side.path} is {image.shape[1]} pixels wide: not two images of one width side by side"
        )
    return image[:, :middle] if side.half == "left" else image[:, middle:]


def _sample(count: int, most: int) -> list[int]:
    """Up to `most` indices, evenly spread."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))


def _halves_agree(files: Sequence[Path], sample: int = 8) -> bool:
    """Whether left and right show one picture. Coarse brightness correlates, with whatever rain on it.

    Measured, as the median of a folder: pairs 0.93 (Rain200H) to 1.00, halves of single photographs 0.3.
    """
    correlations = [_halves_correlation(read_image(files[i])) for i in _sample(len(files), sample)]
    return float(np.median(correlations)) > 0.7


def _halves_correlation(image: np.ndarray) -> float:
    height, half = image.shape[0], image.shape[1] // 2
    if not half:
        return 0.0
    rows, columns = (np.unique(np.linspace(0, length, 17)[:-1].astype(int)) for length in (height, half))
    left, right = (
        np.add.reduceat(np.add.reduceat(side.mean(axis=2), rows, 0), columns, 1).ravel()
        for side in (image[:, :half], image[:, half : 2 * half])
    )
    if min(left.std(), right.std()) < 1e-6:  # plain colour correlates with nothing
        return float(np.allclose(left, right))
    return float(np.corrcoef(left, right)[0, 1])


def rain_excess(rainy: np.ndarray, clean: np.ndarray) -> float:
    """Log ratio of the gradients of two uint8 images: positive where the first has the streaks.

    Of 200 true pairs of Rain200H/L, Rain800, Rain1400, SPA and Rain12, 197 are above 0; brightness
    and the skewness of the difference were tried as well, and err more often.
    """
    return float(np.log((_busyness(rainy) + 1e-3) / (_busyness(clean) + 1e-3)))


def _busyness(image: np.ndarray) -> float:
    grey = image.astype(np.float32).mean(axis=2)
    return float(sum(np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1) if grey.shape[axis] > 1))


def looks_swapped(pairs: Sequence[Pair], sample: int = 8) -> bool:
    """Whether, over the sampled pairs, the rainy sides look cleaner than the clean ones."""
    sides = (read_pair(pairs[index]) for index in _sample(len(pairs), sample))
    return sum(rain_excess(rainy, clean) for rainy, clean in sides if clean is not None) < 0


def is_simulated(path: Path) -> bool:
    """Whether a set is one of simulate.py's, by its name: no number of it passes for a benchmark's."""
    return "simulated" in str(path).lower()


def check_pairs(found: Found, sample: int = 8) -> list[str]:
    """Every suspicion about a set: those found with its names, and sides that look swapped in its pixels."""
    suspicions = list(found.warnings)
    if looks_swapped(found.pairs, sample):
        first = found.pairs[0].rainy
        remedy = f"--rainy_side {OTHER[first.half]}" if first.half else "the folders' names"
        suspicions.append(
            f"{first.path}: the rainy side looks cleaner than the clean one; swapped? Mend: {remedy}"
        )
    return suspicions


def why_not_additive(rainy: np.ndarray, clean: np.ndarray) -> str:
    """What speaks against rainy = min(255, clean + one grey layer >= 0), uint8 (H, W, 3); "" if nothing."""
    layer = rainy.astype(np.int16) - clean
    open_ = rainy < 255  # a clipped value only says that the layer is at least so strong
    if (layer < 0).any():
        return f"{(layer < 0).mean():.1%} of its values are darker than the clean ones"
    lowest = np.where(open_, layer, 256).min(axis=2)
    highest = np.where(open_, layer, -1).max(axis=2)
    coloured = highest > np.minimum(lowest, 255)
    clipped_too_low = (~open_ & (layer > lowest[..., None])).any(axis=2)
    if (wrong := coloured | clipped_too_low).any():
        return f"the channels of {wrong.mean():.1%} of its pixels got different additions"
    return ""


def refuse_unless_additive(found: Found, sample: int = 16) -> None:
    """Raises UserError where layers cannot be swapped: a sampled pair's rain is no exact grey addition."""
    for index in _sample(len(found.pairs), sample):
        rainy, clean = read_pair(found.pairs[index])
        if clean is None:
            raise UserError(f"--recombine needs pairs, and {found.root} holds real images")
        if why := why_not_additive(rainy, clean):
            path = found.pairs[index].rainy.path
            raise UserError(f"--recombine needs rain that is an exact grey addition; {path} is not: {why}")
