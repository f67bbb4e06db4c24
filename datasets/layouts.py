"""How datasets lie on the disk: which layout a folder has, and the pairs of rainy and clean images in it.

A user points at what was downloaded; `find_pairs` says what it is. Nothing is merged, renamed or written.
First come the layouts, in the order in which they are tried, then the search for a folder that has one.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from datasets import catalogue
from datasets.catalogue import CATALOGUE, Entry
from datasets.pairs import (
    OTHER_HALF,
    ImageRef,
    ListedPairs,
    Pair,
    PairSet,
    below,
    distinct_names,
    halves_agree,
    looks_swapped,
    match,
    refuse_unless_layers,
)
from utils import UserError, file_errors, is_file, is_folder, join_names, list_images, natural_key

OTHER_SPLIT = {"train": "test", "test": "train"}
WHERE = "datasets/README.md says where the sets are to be had"


@dataclass(frozen=True)
class SplitQuery:
    """What is looked for: "train" or "test", of which set ("": any), with which half rainy ("auto")."""

    split: str
    dataset: str = ""
    rainy_side: str = "auto"


@dataclass(frozen=True)
class Folder:
    """A folder, and what lies directly in it."""

    path: Path

    @cached_property
    def folders(self) -> list[Path]:
        """Those that are not hidden, in natural order."""
        with file_errors(self.path, done="listed"):
            names = [each.name for each in os.scandir(self.path) if is_folder(each)]
        return [self.path / name for name in sorted(names, key=natural_key) if not name.startswith(".")]

    @cached_property
    def images(self) -> list[Path]:
        return list_images(self.path)

    @cached_property
    def halved(self) -> bool:
        """Whether its images are two of one picture side by side."""
        return bool(self.images) and halves_agree(self.images)

    def named(self, names: Iterable[str]) -> list[Path]:
        """The folders of these names, in the names' order, capital letters or not."""
        there = {folder.name.lower(): folder for folder in self.folders}
        return [there[name.lower()] for name in names if name.lower() in there]


def rainy_folders() -> list[str]:
    """What folders of rainy images are called, whatever the set, and by the sets' own ways."""
    return ["rain", "rainy", "input", *(entry.sides[0].split("/")[0] for entry in CATALOGUE.values())]


def clean_folders() -> list[str]:
    return ["norain", "clean", "target", *(entry.sides[1] for entry in CATALOGUE.values())]


class MatchedPairs(NamedTuple):
    """The pairs of a folder, and the images without a partner."""

    pairs: Sequence[Pair]
    lone_rainy: Sequence[Path] = ()
    lone_clean: Sequence[Path] = ()


class LayoutMatch(NamedTuple):
    """A folder that was recognised, and how its pairs are put together."""

    folder: Path
    layout: str
    gather: Callable[[], MatchedPairs]


# ------------------------------------------------------------------------------------------------ the layouts

Layout = Callable[[Folder, SplitQuery], LayoutMatch | None]
LAYOUTS: dict[str, Layout] = {}  # by what a person would look for


def layout(looks: str) -> Callable[[Layout], Layout]:
    def add(recognise: Layout) -> Layout:
        LAYOUTS[looks] = recognise
        return recognise

    return add


@layout(
    "rain/X2 or rain/ + norain/, rainy_image/ + ground_truth/, rain/ + gt/, input/ + target/, rainy/ + clean/"
)
def two_folders(folder: Folder, _: SplitQuery) -> LayoutMatch | None:
    """Most sets: a folder of rainy images beside one of clean ones, names of which agree more or less."""
    rainy, clean = folder.named(rainy_folders()), folder.named(clean_folders())
    if not rainy or not clean:
        return None
    deeper = (entry.sides[0].partition("/")[2] for entry in CATALOGUE.values())
    sides = [*Folder(rainy[0]).named(filter(None, deeper)), rainy[0]][0], clean[0]
    names = tuple(side.relative_to(folder.path).as_posix() for side in sides)
    alike = [e.name for e in CATALOGUE.values() if not e.simulated and _same(e.sides, names)]
    origin = f"{os.path.commonprefix(alike)} ({folder.path.name}), " if alike else ""  # noqa: RUF071 (Rain200H, Rain200L: letters)
    return LayoutMatch(
        folder.path,
        f"{origin}{names[0]}/ + {names[1]}/",
        lambda: _matched(folder.path, *(_images_in(side) for side in sides)),
    )


@layout("Rain_{Light,Medium,Heavy}/")
def parts_side_by_side(folder: Folder, query: SplitQuery) -> LayoutMatch | None:
    """Rain1200's training set: three strengths, each with its images, side by side, in it or one deeper."""

    def files(parts: Sequence[Path]) -> list[Path]:
        return [path for part in parts for path in _images_in(part, *Folder(part).folders)]

    for entry in CATALOGUE.values():
        if parts := folder.named(entry.parts):
            origin = f"{entry.name}, {', '.join(part.name for part in parts)}"
            return _side_by_side(folder.path, origin, _rainy_half(entry, query), partial(files, parts))
    return None


@layout("rain-N + norain-N in one folder")
def two_prefixes(folder: Folder, _: SplitQuery) -> LayoutMatch | None:
    """Rain100."""
    rainy, clean = (
        [path for path in folder.images if re.match(f"{prefix}[-_]", path.name.lower())]
        for prefix in ("rain", "norain")
    )
    if not rainy or not clean:
        return None
    return LayoutMatch(
        folder.path, "rain-N + norain-N in one folder", lambda: _matched(folder.path, rainy, clean)
    )


@layout("norain-N side by side with their rainy images")
def released(folder: Folder, query: SplitQuery) -> LayoutMatch | None:
    """What the released code has its sets merged into, clean left."""
    if not all(path.name.lower().startswith("norain") for path in folder.images) or not folder.halved:
        return None
    side = _rainy_half(Entry("", rainy_half="right"), query)
    return _side_by_side(folder.path, "released merged layout", side, lambda: folder.images)


@layout("side-by-side images")
def side_by_side(folder: Folder, query: SplitQuery) -> LayoutMatch | None:
    """One image a pair. The set says which half is rainy; where no name tells it, the pixels are asked."""
    if not folder.halved:
        return None
    names = f"{folder.path.parent.name}/{folder.path.name}"
    told = [e for e in CATALOGUE.values() if e.rainy_half and (e.name == query.dataset or e.claims(names))]
    told.sort(key=lambda entry: not entry.claims(names))  # a set of another name may lie there
    origin = told[0].name if told else "images of unknown origin"
    side = _rainy_half(told[0] if told else Entry(""), query)
    if not side:
        swapped = looks_swapped(_halves(folder.path, folder.images, "left"), failed=_left_to_its_reader)
        side = "right as measured" if swapped else "left as measured"
    return _side_by_side(folder.path, origin, side, lambda: folder.images)


def _left_to_its_reader(_: UserError) -> None:
    """A broken image does not keep a layout from being recognised: whoever needs it will name it."""


def _same(sides: tuple[str, str], names: tuple[str, ...]) -> bool:
    return [side.lower() for side in sides] == [name.lower() for name in names]


def _rainy_half(entry: Entry, query: SplitQuery) -> str:
    return entry.rainy_half if query.rainy_side == "auto" else f"{query.rainy_side} as asked"


def _side_by_side(folder: Path, origin: str, side: str, files: Callable[[], Sequence[Path]]) -> LayoutMatch:
    """`side`: "left" or "right", and why."""
    half = side.split()[0]
    return LayoutMatch(
        folder,
        f"{origin}, side by side, rainy {side}",
        lambda: MatchedPairs(_halves(folder, files(), half)),
    )


def _halves(root: Path, files: Sequence[Path], rainy_half: str) -> list[Pair]:
    clean_half = OTHER_HALF[rainy_half]
    return [
        Pair(name, ImageRef(path, rainy_half), ImageRef(path, clean_half))
        for name, path in zip(distinct_names(files, root), files, strict=True)
    ]


def _matched(root: Path, rainy: Sequence[Path], clean: Sequence[Path]) -> MatchedPairs:
    matched = match(rainy, clean)
    names = distinct_names([r for r, _ in matched.pairs], root)
    pairs = [Pair(name, ImageRef(r), ImageRef(c)) for name, (r, c) in zip(names, matched.pairs, strict=True)]
    return MatchedPairs(pairs, matched.lone, matched.lone_clean)


def _images_in(*folders: Path) -> list[Path]:
    files = [path for folder in folders for path in list_images(folder)]
    if not files:
        raise UserError(f"{folders[0]} holds no images: fetch the set again")
    return files


def _list_in(folder: Path) -> Path | None:
    """SPA: the file that lists a set's pairs, which nobody can look for among its folders."""
    lists = (folder / entry.list_file for entry in CATALOGUE.values() if entry.list_file)
    return next(filter(is_file, lists), None)


def _listed(list_file: Path) -> LayoutMatch:
    return LayoutMatch(
        list_file.parent, f"list {list_file.name}", lambda: MatchedPairs(ListedPairs(list_file))
    )


# ------------------------------------------------------------------------------------------------- the search


def find_pairs(data_path: Path, split: str, dataset: str = "", rainy_side: str = "auto") -> PairSet:
    """Recognises the layout of `data_path` and returns its `split` ("train" or "test").

    `data_path` is a set's own folder, its split's, or one that holds it; or a list file. `dataset` (a name
    of the catalogue, or "") chooses where a folder holds several sets, and gives the count to expect.
    `rainy_side` is the rainy half of side-by-side images, "left" or "right"; "auto" goes by the set, else by
    measuring. Raises UserError that names the file: nothing recognised, several sets, a rainy image without
    its clean one, an empty folder.
    """
    found, warnings = locate(Path(data_path), SplitQuery(split, dataset, rainy_side))
    pairs, lone_rainy, lone_clean = found.gather()
    if lone_rainy:
        more = f" (and {len(lone_rainy) - 1} more)" if len(lone_rainy) > 1 else ""
        raise UserError(
            f"{lone_rainy[0]} has no clean image of that name or number{more}: fetch the set again"
        )
    if lone_clean:
        warnings.append(
            f"clean images without a rainy one, not used: {join_names(p.name for p in lone_clean)}"
        )
    expected = catalogue.get_entry(dataset).counts.get(split)
    if expected and len(pairs) != expected:
        warnings.append(
            f"{found.folder} holds {len(pairs):,} pairs; {dataset}'s official {split} set has {expected:,}"
        )
    return PairSet(found.layout, found.folder, pairs, tuple(warnings), dataset)


def locate(data_path: Path, query: SplitQuery) -> tuple[LayoutMatch, list[str]]:
    """The one recognised folder of a split, with warnings; its images are not paired yet."""
    if data_path.suffix == ".txt" and is_file(data_path):
        return _listed(data_path), []
    warnings: list[str] = []
    places = _places(_there(data_path, "--data_path"), query)
    other = OTHER_SPLIT[query.split]
    if not places and _split_of(data_path) == other:
        beside = [
            path
            for path in Folder(data_path.parent).folders
            if _split_of(path) == query.split and _strength(path) == _strength(data_path)
        ]
        places = [found for path in beside for found in _places(path, query)]
        if places:
            warnings.append(f"{data_path} is a {other} folder: took the {query.split} folder beside it")
    places = _of_dataset(places, query.dataset, data_path)
    if not places:
        hint = _hint(Folder(data_path), query.split)
        raise UserError(
            f"no {query.split} pairs in {data_path}{hint}; looked for {', '.join(LAYOUTS)}, "
            f"{' '.join(e.list_file for e in CATALOGUE.values() if e.list_file)}; "
            "alone or under train and test folders"
        )
    if len(places) > 1:
        several = join_names(found.folder for found in places)
        raise UserError(f"{data_path} holds several sets ({several}): point --data_path at one of them")
    strength = _strength(places[0].folder)
    if strength and _strength(Path(query.dataset)) not in ("", strength):
        warnings.append(f"{places[0].folder} is {strength} rain by its name, and {query.dataset} is not")
    return places[0], warnings


def _places(path: Path, query: SplitQuery, depth: int = 3) -> list[LayoutMatch]:
    """Recognised folders: those below named for the split, else this one, else those in its children."""
    list_file = _list_in(path)
    if list_file and query.split == "train":
        return [_listed(list_file)]
    folder = Folder(path)

    def search(paths: Iterable[Path]) -> list[LayoutMatch]:
        return [found for each in (paths if depth else ()) for found in _places(each, query, depth - 1)]

    if places := search(child for child in folder.folders if _split_of(child) == query.split):
        return places
    if _split_of(path) != OTHER_SPLIT[query.split] and (found := _recognise(folder, query)):
        return [found]
    # below a list file lie hundreds of thousands of images: nothing there is worth listing
    return [] if list_file else search(child for child in folder.folders if not _split_of(child))


def _recognise(folder: Folder, query: SplitQuery) -> LayoutMatch | None:
    if folder.path.name in {entry.photographs for entry in CATALOGUE.values()}:
        return None
    places = (recognise(folder, query) for recognise in LAYOUTS.values())
    return next(filter(None, places), None)


def _of_dataset(places: list[LayoutMatch], dataset: str, data_path: Path) -> list[LayoutMatch]:
    """Where several sets were recognised, those that speak of `dataset` below `data_path`."""
    entry = catalogue.get_entry(dataset)
    for speaks in (
        lambda found: dataset.lower() in below(found.folder, data_path).as_posix().lower(),
        lambda found: entry.claims(below(found.folder, data_path).as_posix()),
        lambda found: (
            dataset.lower().removeprefix("rain") in below(found.folder, data_path).as_posix().lower()
        ),
        lambda found: _strength(found.folder) == _strength(Path(dataset)),
    ):
        if len(places) > 1 and dataset:
            places = list(filter(speaks, places)) or places
    return places


def _hint(folder: Folder, split: str) -> str:
    """What a person most likely wants to hear about a folder in which nothing was recognised."""
    if (named := _split_of(folder.path)) and named != split:
        return f": by its name it is the {named} part"
    for each in (folder, *(Folder(path) for path in folder.folders if _split_of(path) == split)):
        if each.images:
            return f": the {len(each.images):,} images in {each.path} are not two of one picture side by side"
        with file_errors(each.path, done="listed"):
            if not any(each.path.iterdir()):
                return f": {each.path} is empty"
    return ""


def _split_of(folder: Path) -> str:
    """rain_data_train_Heavy, DID-MDN-training, RainTrainH: train; test_syn, Testing: test."""
    for split in ("train", "test"):
        if re.search(rf"(?:^|[^A-Za-z])(?:{split}|{split.upper()})|{split.title()}", folder.name):
            return split
    return ""


def _strength(path: Path) -> str:
    """Heavy or light rain, as a path's last two names say: Rain200H, RainTrainL, rain_data_test_Light."""
    for name in (path.name, path.parent.name):
        if found := re.search(r"(heavy|(?:\d|train|test)h$)|light|(?:\d|train|test)l$", name.lower()):
            return "heavy" if found[1] else "light"
    return ""


def recognised(found: PairSet) -> str:
    """The catalogue's set that folder names and layout tell, "" where they do not: not what was asked for."""
    named = next((name for each in _inside_out(found.root) if (name := claimed_by(each))), "")
    sides = [side.path.parent for side in found.pairs[0][1:] if side]
    within = tuple(
        side.relative_to(found.root).as_posix() for side in sides if side.is_relative_to(found.root)
    )
    laid = [
        entry.name
        for entry in CATALOGUE.values()
        # a plain rain/ may be of any set
        if within[:1] != ("rain",) and _same(entry.sides, within) and not entry.simulated
        if _strength(Path(entry.name)) == _strength(found.root)
    ]
    # rain_data_test_Heavy in a folder called Rain200L is Rain200H
    return laid[0] if len(laid) == 1 and (not named or named[:-1] == laid[0][:-1]) else named


def claimed_by(folder: Path) -> str:
    """The one set of the catalogue that a folder's name means, or ""."""
    claims = [entry.name for entry in CATALOGUE.values() if entry.claims(folder.name)]
    return claims[0] if len(claims) == 1 else ""


def _inside_out(folder: Path) -> list[Path]:
    """The folder and those around it, as far as a dataset's own reach."""
    return [folder.resolve(), *folder.resolve().parents][:4]


# ------------------------------------------------------------------------------------------ unlabelled images


def find_images(folders: Sequence[Path], dataset: str = "", option: str = "--real_path") -> PairSet:
    """Unlabelled real images of any size: files, folders with all below them, or a list file's rainy column.

    Of a folder of pairs only the rainy side is taken, and of images that are a pair side by side the rainy
    half. `option` is the one by which the folders were given.
    Raises UserError for a folder without images.
    """
    if not folders:
        raise UserError(f"{option} names no folder of real images: give it one; {WHERE}")
    warnings: list[str] = []
    paths = [_list_in(path) or path for path in map(Path, folders)]
    lists = {path: ListedPairs(path, labelled=False) for path in paths if path.suffix == ".txt"}
    if len(paths) == len(lists) == 1:
        return PairSet(f"rainy images of {paths[0].name}", paths[0].parent, lists[paths[0]], (), dataset)
    sides: list[ImageRef] = []
    around = dict.fromkeys(path.parent for path in paths if path not in lists and is_file(path))
    halves = {folder: _rainy_half_of(Folder(folder), warnings) for folder in around}
    for path in paths:
        if path in lists:
            found = [pair.rainy for pair in lists[path]]
        elif is_file(path):
            found = [ImageRef(path, halves[path.parent])]
        else:
            found = _images_below(_there(path, option), warnings)
        if not found:
            raise UserError(f"{path} holds no images: {option} takes folders of images; {WHERE}")
        sides += found
    if len({side.path.is_absolute() for side in sides}) > 1:
        sides = [ImageRef(side.path.absolute(), side.half) for side in sides]
    sides = list(dict.fromkeys(sides))  # a folder given twice, or inside another
    root = Path(os.path.commonpath([side.path.parent for side in sides]))
    names = distinct_names([side.path for side in sides], root)
    expected = sum(catalogue.get_entry(dataset).counts.values())
    if expected and len(sides) != expected:
        warnings.append(f"{root} holds {len(sides):,} images; {dataset} officially has {expected:,}")
    pairs = [Pair(name, side, None) for name, side in zip(names, sides, strict=True)]
    return PairSet("unlabelled", root, pairs, tuple(warnings), dataset)


def find_layers(folders: Sequence[Path]) -> PairSet:
    """Streak layers alone: grey streaks on black. Raises UserError for an image of another kind."""
    found = find_images(folders, option="--streaks")
    refuse_unless_layers(found)
    return replace(found, layout="streaks")


def find_backgrounds(folder: Path) -> PairSet:
    """Clean images. Raises UserError for a folder of pairs, of which nobody knows which side is meant."""
    found = find_images([folder], option="--backgrounds")
    if found.warnings or isinstance(found.pairs, ListedPairs):
        raise UserError(f"{folder} holds pairs: --backgrounds takes the folder of their clean images")
    return replace(found, layout="backgrounds")


def _there(folder: Path, option: str) -> Path:
    with file_errors(folder):
        if folder.is_dir():
            return folder
    raise UserError(f"{folder} is not a folder: {option} takes a folder of images; {WHERE}")


def _images_below(top: Path, warnings: list[str]) -> list[ImageRef]:
    """Every image below `top`, each folder's own before its children's."""
    sides: list[ImageRef] = []
    waiting, seen = [top], set()
    while waiting:
        folder = Folder(waiting.pop())
        if (real := os.path.realpath(folder.path)) in seen:  # a link may lead back up
            continue
        seen.add(real)
        half = _rainy_half_of(folder, warnings)
        sides += [ImageRef(path, half) for path in folder.images]
        children, clean = folder.folders, folder.named(clean_folders())
        if clean and folder.named(rainy_folders()):
            warnings += [f"{path} is the clean side of pairs: not taken as rainy images" for path in clean]
            children = [child for child in children if child not in clean]
        waiting += reversed(children)
    return sides


def _rainy_half_of(folder: Folder, warnings: list[str]) -> str:
    half = _half_by_name(folder)
    if half:
        warnings.append(f"{folder.path} holds pairs side by side: took the {half} halves, the rainy ones")
    return half


def _half_by_name(folder: Folder) -> str:
    """The rainy half of its images, where they are a set's training or test pairs, side by side.

    Names must say so too: one photograph in seven has halves that look alike.
    """
    if folder.images and all(path.name.lower().startswith("norain") for path in folder.images):
        return "right" if folder.halved else ""  # the released merged layout
    place = folder.path.resolve()
    if not _split_of(place) or place.name in {entry.photographs for entry in CATALOGUE.values()}:
        return ""
    names = f"{place.parent.name}/{place.name}"
    halves = {each.rainy_half for each in CATALOGUE.values() if each.rainy_half and each.claims(names)}
    return halves.pop() if len(halves) == 1 and folder.halved else ""


def released_real_folder(data_path: Path) -> Path | None:
    """`Real/` in, or beside the train and test folders of, the released code's layout; None without one."""
    for folder in (data_path, data_path.parent) if _split_of(data_path) else (data_path,):
        if real := Folder(_there(folder, "--data_path")).named(["Real"]):
            return real[0]
    return None
