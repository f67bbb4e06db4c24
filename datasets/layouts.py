"""How datasets lie on the disk: recognises the layout of a folder and pairs its rainy and clean images.

`--data_path` points at a download; `find_pairs` says what it is. Nothing is merged, renamed or written.
First the layouts and their table, then the search for a folder that has one, then unlabelled images.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from datasets import catalogue
from datasets.catalogue import (
    CATALOGUE,
    Entry,
    clean_folders,
    density_of,
    photographs,
    rainy_folders,
    split_of,
)
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
WHERE = "datasets/README.md says where to download the sets"


@dataclass(frozen=True)
class SplitQuery:
    """What to look for: "train" or "test", the set ("": any), the rainy half ("auto", "left", "right")."""

    split: str
    dataset: str = ""
    rainy_side: str = "auto"

    def half_of(self, entry: Entry) -> str:
        return entry.rainy_half if self.rainy_side == "auto" else f"{self.rainy_side} as requested"


@dataclass(frozen=True)
class Folder:
    """A folder, and what lies directly in it."""

    path: Path

    @cached_property
    def folders(self) -> list[Path]:
        """Sub-folders that are not hidden, in natural order."""
        with file_errors(self.path, done="listed"):
            names = [each.name for each in os.scandir(self.path) if is_folder(each)]
        return [self.path / name for name in sorted(names, key=natural_key) if not name.startswith(".")]

    @cached_property
    def images(self) -> list[Path]:
        return list_images(self.path)

    @cached_property
    def halved(self) -> bool:
        """Whether each image holds a pair side by side."""
        return bool(self.images) and halves_agree(self.images)

    def named(self, names: Iterable[str]) -> list[Path]:
        """The sub-folders of these names, in the order of the names, ignoring case."""
        there = {folder.name.lower(): folder for folder in self.folders}
        return [there[name.lower()] for name in names if name.lower() in there]


class MatchedPairs(NamedTuple):
    """The pairs of a folder, and the images without a partner."""

    pairs: Sequence[Pair]
    lone_rainy: Sequence[Path] = ()
    lone_clean: Sequence[Path] = ()


class LayoutMatch(NamedTuple):
    """A recognised folder. `gather` lists and pairs its images, once it is the one to use."""

    folder: Path
    layout: str
    gather: Callable[[], MatchedPairs]


# ------------------------------------------------------------------------------------------------ the layouts


def two_folders(folder: Folder, _: SplitQuery) -> LayoutMatch | None:
    """A folder of rainy images beside one of clean images, as most sets have."""
    rainy, clean = folder.named(rainy_folders()), folder.named(clean_folders())
    if not rainy or not clean:
        return None
    deeper = (entry.sides[0].partition("/")[2] for entry in CATALOGUE.values())  # rain/X2
    sides = [*Folder(rainy[0]).named(filter(None, deeper)), rainy[0]][0], clean[0]
    layout = " + ".join(f"{side.relative_to(folder.path).as_posix()}/" for side in sides)
    return LayoutMatch(folder.path, layout, lambda: _matched(folder.path, *map(_images_in, sides)))


def two_prefixes(folder: Folder, _: SplitQuery) -> LayoutMatch | None:
    """Rain100: norain-N with rain-N beside it, or with a folder of rainy images (PReNet's download)."""
    rainy, clean = (
        [path for path in folder.images if re.match(f"{prefix}[-_]", path.name.lower())]
        for prefix in ("rain", "norain")
    )
    layout = "rain-N + norain-N in one folder"
    if clean and not rainy and (beside := folder.named(rainy_folders())):
        rainy, layout = _images_in(beside[0]), f"{beside[0].name}/ beside norain-N"
    if not rainy or not clean:
        return None
    return LayoutMatch(folder.path, layout, lambda: _matched(folder.path, rainy, clean))


def parts_side_by_side(folder: Folder, query: SplitQuery) -> LayoutMatch | None:
    """Rain1200's training set: a folder for each density, with side-by-side images in it or one deeper."""
    for entry in CATALOGUE.values():
        if parts := folder.named(entry.parts):
            origin = f"{entry.name}, {', '.join(part.name for part in parts)}"
            return _side_by_side(
                folder.path,
                origin,
                query.half_of(entry),
                lambda: [path for part in parts for path in _images_in(part, *Folder(part).folders)],
            )
    return None


def side_by_side(folder: Folder, query: SplitQuery) -> LayoutMatch | None:
    """One image a pair. The set tells the rainy half; of an unknown set it is measured."""
    if not folder.halved:
        return None
    names = f"{folder.path.parent.name}/{folder.path.name}"
    known = [e for e in CATALOGUE.values() if e.rainy_half and (e.claims(names) or e.name == query.dataset)]
    known.sort(key=lambda entry: not entry.claims(names))  # the folder's own name before the requested set
    entry = MERGED if _all_norain(folder) else [*known, Entry("unknown set")][0]
    half = query.half_of(entry)
    if not half:
        swapped = looks_swapped(_halves(folder.path, folder.images, "left"))
        half = f"{'right' if swapped else 'left'} as measured"
    return _side_by_side(folder.path, entry.name, half, lambda: folder.images)


MERGED = Entry("released merged layout", rainy_half="right")  # of the released code: norain-N, clean left


def _all_norain(folder: Folder) -> bool:
    return bool(folder.images) and all(path.name.lower().startswith("norain") for path in folder.images)


# tried in this order: what it looks like, for messages; the function that recognises it
LAYOUTS: dict[str, Callable[[Folder, SplitQuery], LayoutMatch | None]] = {
    "rain/ or rain/X2/ + norain/, rainy_image/ + ground_truth/, rain/ + gt/, input/ + target/, "
    "rainy/ + clean/ or groundtruth/, lq/ + gt/, degraded/ + reference/": two_folders,
    "Rain_{Light,Medium,Heavy}/": parts_side_by_side,
    "norain-N with rain-N or rainy/": two_prefixes,
    "side-by-side images, or the released code's norain-N": side_by_side,
}


def _recognise(folder: Folder, query: SplitQuery) -> LayoutMatch | None:
    if folder.path.name in photographs():
        return None
    return next(filter(None, (recognise(folder, query) for recognise in LAYOUTS.values())), None)


def _side_by_side(folder: Path, origin: str, half: str, files: Callable[[], Sequence[Path]]) -> LayoutMatch:
    """`half`: "left" or "right", and why."""
    side = half.split()[0]
    layout = f"{origin}, side by side, rainy {half}"
    return LayoutMatch(folder, layout, lambda: MatchedPairs(_halves(folder, files(), side)))


def _halves(root: Path, files: Sequence[Path], rainy_half: str) -> list[Pair]:
    return [
        Pair(name, ImageRef(path, rainy_half), ImageRef(path, OTHER_HALF[rainy_half]))
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
        raise UserError(f"{folders[0]} holds no images: download the set again")
    return files


def _list_in(folder: Path) -> Path | None:
    """SPA's list of pairs, which stands in for listing its folders."""
    lists = (folder / entry.list_file for entry in CATALOGUE.values() if entry.list_file)
    return next(filter(is_file, lists), None)


def _listed(file: Path) -> LayoutMatch:
    return LayoutMatch(file.parent, f"list {file.name}", lambda: MatchedPairs(ListedPairs(file)))


# ------------------------------------------------------------------------------------------------- the search


def find_pairs(data_path: Path, split: str, dataset: str = "", rainy_side: str = "auto") -> PairSet:
    """Recognises the layout of `data_path` and returns its `split` ("train" or "test").

    `data_path`: a set's own folder, the folder of its split, one that holds the set, or a list file.
    `dataset` (a name of the catalogue, or ""): the set to choose where a folder holds several, and whose
    count to expect. `rainy_side`: the rainy half of side-by-side images, "left" or "right"; "auto" goes by
    the set, else by measurement. Raises UserError, naming the file: nothing recognised, several sets, a rainy
    image without its clean one, an empty folder.
    """
    found, warnings = locate(Path(data_path), SplitQuery(split, dataset, rainy_side))
    pairs, lone_rainy, lone_clean = found.gather()
    if lone_rainy:
        more = f" (and {len(lone_rainy) - 1} more)" if len(lone_rainy) > 1 else ""
        raise UserError(
            f"{lone_rainy[0]} has no clean image of that name or number{more}: download the set again"
        )
    if lone_clean:
        names = join_names(path.name for path in lone_clean)
        warnings.append(f"clean images without a rainy one, not used: {names}")
    expected = catalogue.get_entry(dataset).counts.get(split)
    if expected and len(pairs) != expected:
        warnings.append(
            f"{found.folder} holds {len(pairs):,} pairs; {dataset}'s official {split} set has {expected:,}"
        )
    return PairSet(found.layout, found.folder, pairs, tuple(warnings), dataset)


def locate(data_path: Path, query: SplitQuery) -> tuple[LayoutMatch, list[str]]:
    """The one recognised folder of a split, its images not paired yet, and warnings. Raises UserError."""
    if data_path.suffix == ".txt" and is_file(data_path):
        return _listed(data_path), []
    warnings: list[str] = []
    entry, other = catalogue.get_entry(query.dataset), OTHER_SPLIT[query.split]
    named = any(entry.claims(each.name) for each in _inside_out(data_path)[:2])
    places = _places(_existing(data_path, "--data_path"), query, named)
    if not places and split_of(data_path) == other:
        beside = [
            path
            for path in Folder(data_path.parent).folders
            if split_of(path) == query.split and density_of(path) == density_of(data_path)
        ]
        places = [found for path in beside for found in _places(path, query, named)]
        if places:
            warnings.append(f"{data_path} is a {other} folder: took the {query.split} folder beside it")
    if not places:
        raise UserError(
            f"no {query.split} pairs in {data_path}{_hint(Folder(data_path), query.split)}; looked for "
            f"{', '.join(LAYOUTS)}, {' '.join(e.list_file for e in CATALOGUE.values() if e.list_file)}; "
            "alone or under train and test folders"
        )
    if len(places) > 1:
        places = [each for each in places if entry.claims(str(below(each.folder, data_path)))] or places
    if sorted(densities := [density_of(each.folder) for each in places]) == ["heavy", "light"]:
        same = density_of(Path(query.dataset))  # Rain200H and Rain200L, in a folder that names neither
        places = [places[densities.index(same)]] if same else places
    if len(places) > 1:
        several = join_names(found.folder for found in places)
        raise UserError(f"{data_path} holds several sets ({several}): point --data_path at one of them")
    density = density_of(places[0].folder)
    if density and density_of(Path(query.dataset)) not in ("", density):
        warnings.append(f"{places[0].folder} is {density} rain by its name, and {query.dataset} is not")
    return places[0], warnings


def _places(path: Path, query: SplitQuery, named: bool, depth: int = 3) -> list[LayoutMatch]:
    """Recognised folders of a split at or below `path`; `named`: whether it already lies in the set's folder.

    Below a folder that holds the requested set by name, nothing but that is searched: no other set can stand
    in for it, even where it is not recognised.
    """
    list_file = _list_in(path)
    if list_file and query.split == "train":
        return [_listed(list_file)]
    folder, other = Folder(path), OTHER_SPLIT[query.split]
    here = split_of(path) != other
    children = [child for child in folder.folders if split_of(child) != other] if depth else []
    divided = [child for child in children if split_of(child) == query.split]
    found = _recognise(folder, query) if here else None
    if found and not divided:
        return [found]
    if list_file or not here:  # below a list file lie hundreds of thousands of images
        children = divided
    entry = catalogue.get_entry(query.dataset)
    if not named:
        children = [child for child in children if entry.claims(child.name)] or children
    places = [
        place
        for child in children
        for place in _places(child, query, named or entry.claims(child.name), depth - 1)
    ]
    return places or ([found] if found else [])


def _hint(folder: Folder, split: str) -> str:
    """The likely reason why nothing was recognised in a folder."""
    if (named := split_of(folder.path)) and named != split:
        return f": by its name it is the {named} part"
    for each in (folder, *(Folder(path) for path in folder.folders if split_of(path) == split)):
        if each.images:
            return f": the {len(each.images):,} images in {each.path} are not pairs side by side"
        if not each.folders:
            return f": {each.path} holds neither images nor folders"
    return ""


def recognised(found: PairSet) -> str:
    """The catalogue's set by the names of folders and by the layout, not by what was requested; else ""."""
    if isinstance(found.pairs, ListedPairs):
        names = {entry.list_file: entry.name for entry in CATALOGUE.values()}
        if name := names.get(found.pairs.list_file.name):
            return name
    named = next(filter(None, map(claimed_by, _inside_out(found.root))), "")
    sides = [side.path.parent for side in found.pairs[0][1:] if side]
    within = [
        side.relative_to(found.root).as_posix().lower() for side in sides if side.is_relative_to(found.root)
    ]
    laid = [
        entry.name
        for entry in CATALOGUE.values()
        # a plain rain/ may be of any set
        if within[:1] != ["rain"] and [side.lower() for side in entry.sides] == within and not entry.simulated
        if density_of(Path(entry.name)) == density_of(found.root)
    ]
    # rain_data_test_Heavy in a folder called Rain200L is Rain200H
    return laid[0] if len(laid) == 1 and (not named or named[:-1] == laid[0][:-1]) else named


def claimed_by(folder: Path) -> str:
    """The one set of the catalogue that a folder's name means, or ""."""
    claims = [entry.name for entry in CATALOGUE.values() if entry.claims(folder.name)]
    return claims[0] if len(claims) == 1 else ""


def in_test_part_of(folder: Path) -> str:
    """The set in whose test part `folder` lies, if the set has a training part too; else "".

    SPA's training part is its list: there rain/ + gt/ are the test part.
    """
    test = False
    for each in _inside_out(folder):
        if (split := split_of(each)) == "train" or each.name in photographs():
            return ""
        test = test or split == "test"
        if name := claimed_by(each):
            entry = CATALOGUE[name]
            pairs = folder.parent if folder.name in entry.sides else folder
            listed = entry.list_file and all((pairs / side).is_dir() for side in entry.sides)
            return name if entry.train and (test or listed) else ""
    return ""


def _inside_out(folder: Path) -> list[Path]:
    """The folder and three levels around it: as deep as downloads lie."""
    return [folder.resolve(), *folder.resolve().parents][:4]


# ------------------------------------------------------------------------------------------ unlabelled images


def find_images(folders: Sequence[Path], dataset: str = "", option: str = "--real_path") -> PairSet:
    """Unlabelled real images of any size: files, folders with all below them, or a list file's rainy column.

    Takes only the rainy side of pairs, and the rainy half of side-by-side images. `option`: the one that gave
    the folders. Images to train on (--real_path) leave out the test part of a set that has a training part.
    Raises UserError for a folder without images.
    """
    if not folders:
        raise UserError(f"{option} names no folder of real images: add one; {WHERE}")
    tops = [_list_in(path) or path for path in map(Path, folders)]
    if len(tops) == 1 and tops[0].suffix == ".txt":
        listed = ListedPairs(tops[0], labelled=False)
        return PairSet(f"rainy images of {tops[0].name}", tops[0].parent, listed, (), dataset)
    training, warnings = option == "--real_path", list[str]()
    refs: list[ImageRef] = []
    for top in tops:
        known = len(warnings)
        if top.suffix == ".txt":
            found = [pair.rainy for pair in ListedPairs(top, labelled=False)]
        elif is_file(top):
            half = _half_to_take(Folder(top.parent), training, warnings)
            found = [] if half is None else [ImageRef(top, half)]
        else:
            found = _images_below(_existing(top, option), training, warnings)
        if not found:
            why = "; ".join(warnings[known:]) or f"{option} takes folders of images; {WHERE}"
            raise UserError(f"{top} holds no images: {why}")
        refs += found
    if len({ref.path.is_absolute() for ref in refs}) > 1:
        refs = [ImageRef(ref.path.absolute(), ref.half) for ref in refs]
    refs = list(dict.fromkeys(refs))  # a folder given twice, or inside another
    root = Path(os.path.commonpath([ref.path.parent for ref in refs]))
    names = distinct_names([ref.path for ref in refs], root)
    expected = sum(catalogue.get_entry(dataset).counts.values())
    if expected and len(refs) != expected:
        warnings.append(f"{root} holds {len(refs):,} images; {dataset} officially has {expected:,}")
    pairs = [Pair(name, ref, None) for name, ref in zip(names, refs, strict=True)]
    return PairSet("unlabelled", root, pairs, tuple(dict.fromkeys(warnings)), dataset)


def find_layers(folders: Sequence[Path]) -> PairSet:
    """Streak layers alone: grey streaks on black. Raises UserError for other images."""
    found = find_images(folders, option="--streaks")
    refuse_unless_layers(found)
    return replace(found, layout="streaks")


def find_backgrounds(folder: Path, option: str = "--backgrounds") -> PairSet:
    """Clean images. Raises UserError for a folder of pairs, since either side could be meant."""
    found = find_images([folder], option=option)
    if found.warnings or isinstance(found.pairs, ListedPairs):
        raise UserError(f"{folder} holds pairs: {option} takes the folder of their clean images")
    return replace(found, layout="backgrounds")


def _existing(folder: Path, option: str) -> Path:
    with file_errors(folder):
        if folder.is_dir():
            return folder
    raise UserError(f"{folder} is not a folder: {option} takes a folder of images; {WHERE}")


def _images_below(top: Path, training: bool, warnings: list[str]) -> list[ImageRef]:
    """Every image below `top`, each folder's own before those of its sub-folders."""
    refs: list[ImageRef] = []
    waiting, seen = [top], set()
    while waiting:
        folder = Folder(waiting.pop())
        if (real := os.path.realpath(folder.path)) in seen:  # a link may lead back up
            continue
        seen.add(real)
        if list_file := _list_in(folder.path):
            refs += [pair.rainy for pair in ListedPairs(list_file, labelled=False)]
            continue
        if (half := _half_to_take(folder, training, warnings)) is None:
            continue
        refs += [ImageRef(path, half) for path in folder.images]
        clean = folder.named(clean_folders()) if folder.named(rainy_folders()) else []
        left_out = dict.fromkeys(clean, "is the clean side of pairs")
        if training and any(split_of(child) == "train" for child in folder.folders):
            tests = [c for c in folder.folders if split_of(c) == "test" and c.name not in photographs()]
            left_out |= dict.fromkeys(tests, "is the test part of a divided set")
        warnings += [f"{path} {why}: not used" for path, why in left_out.items()]
        waiting += [child for child in reversed(folder.folders) if child not in left_out]
    return refs


def _half_to_take(folder: Folder, training: bool, warnings: list[str]) -> str | None:
    """The rainy half of a folder's images, "" for whole images; None for a test part, not trained on."""
    if training and (name := in_test_part_of(folder.path)):
        warnings.append(f"{folder.path} is the test part of {name}: not used")
        return None
    if half := _half_by_name(folder):
        warnings.append(f"{folder.path} holds pairs side by side: took the {half} halves, the rainy ones")
    return half


def _half_by_name(folder: Folder) -> str:
    """The rainy half of its images, if they are a set's pairs, side by side, by name too.

    Pixels alone do not tell: one photograph in seven has halves that look alike.
    """
    if _all_norain(folder):
        return MERGED.rainy_half if folder.halved else ""
    place = folder.path.resolve()
    if not split_of(place) or place.name in photographs():
        return ""
    names = f"{place.parent.name}/{place.name}"
    halves = {each.rainy_half for each in CATALOGUE.values() if each.rainy_half and each.claims(names)}
    return halves.pop() if len(halves) == 1 and folder.halved else ""


def released_real_folder(data_path: Path) -> Path | None:
    """`Real/` of the released code's layout: in `data_path`, or beside the train or test folder it is."""
    for folder in (data_path, data_path.parent) if split_of(data_path) else (data_path,):
        if real := Folder(_existing(folder, "--data_path")).named(["Real"]):
            return real[0]
    return None
