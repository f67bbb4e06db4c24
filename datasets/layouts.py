"""How datasets lie on the disk: recognises the layout of a folder and pairs its rainy and clean images.

`find_pairs` takes a download as it is (--data_path), and writes nothing.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from datasets.catalogue import (
    CATALOGUE,
    PHOTOGRAPHS,
    Entry,
    clean_folders,
    density_of,
    get_entry,
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

WHERE = "datasets/README.md says where to download the sets and which layouts are recognised"


class SplitQuery(NamedTuple):
    """What to look for: "train" or "test", the other of these, the set, the rainy half or "auto"."""

    split: str
    other: str
    entry: Entry
    rainy_side: str


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

    def named(self, names: Iterable[str]) -> list[Path]:
        """The sub-folders of these names, in the order of the names, ignoring case."""
        there = {folder.name.lower(): folder for folder in self.folders}
        return [there[name.lower()] for name in names if name.lower() in there]


class LayoutMatch(NamedTuple):
    """A recognised folder. `gather` lists and pairs its images, once it is the one to use."""

    folder: Path
    gather: Callable[[], PairSet]


# ------------------------------------------------------------------------------------------------ the layouts


def two_sides(folder: Folder, _: SplitQuery) -> LayoutMatch | None:
    """Rainy and clean images, each in a folder of their own or together, as rain-N and norain-N (Rain100)."""
    rainy, clean = _side(folder, rainy_folders(), "rain"), _side(folder, clean_folders(), "norain")
    if not (rainy and clean):
        return None

    def gather() -> PairSet:
        matched = match(rainy[1](), clean[1]())
        names = distinct_names([image for image, _ in matched.pairs], folder.path)
        pairs = [
            Pair(name, ImageRef(r), ImageRef(c)) for name, (r, c) in zip(names, matched.pairs, strict=True)
        ]
        unused = join_names(path.name for path in matched.lone_clean)
        warnings = (f"clean images without a rainy one, not used: {unused}",) if unused else ()
        return PairSet(f"{rainy[0]} + {clean[0]}", folder.path, pairs, warnings, matched.lone)

    return LayoutMatch(folder.path, gather)


def _side(folder: Folder, names: Iterable[str], prefix: str) -> tuple[str, Callable[[], list[Path]]] | None:
    """One side's place, and how its images are listed: a sub-folder, else the images named prefix-N."""
    if inner := folder.named(names):
        deeper = (entry.sides[0].partition("/")[2] for entry in CATALOGUE.values())  # rain/X2
        side = [*Folder(inner[0]).named(filter(None, deeper)), inner[0]][0]
        return f"{side.relative_to(folder.path).as_posix()}/", lambda: _images_in(side)
    files = [path for path in folder.images if re.match(f"{prefix}[-_]", path.name.lower())]
    return (f"{prefix}-N", lambda: files) if files else None


def side_by_side(folder: Folder, query: SplitQuery) -> LayoutMatch | None:
    """One image a pair: in the folder, or in a folder for each density or one deeper (Rain1200, training).

    Names tell the set and its rainy half; of an unknown set it is measured.
    """
    divided = [(entry, parts) for entry in CATALOGUE.values() if (parts := folder.named(entry.parts))]
    if folder.path.name == PHOTOGRAPHS or not (divided or halves_agree(folder.images)):
        return None
    entry, parts = divided[0] if divided else (_halved_set(folder) or query.entry, [])

    def gather() -> PairSet:
        files = [path for part in parts for path in _images_in(part, *Folder(part).folders)] or folder.images
        half, how = entry.rainy_half, ""
        if query.rainy_side != "auto":
            half, how = query.rainy_side, " as requested"
        elif not half:
            swapped = looks_swapped(_halves(files, folder.path, "left"))
            half, how = "right" if swapped else "left", " as measured"
        origin = entry.name if entry.rainy_half else "unknown set"
        layout = f"{origin}, side by side, rainy {half}{how}"
        return PairSet(layout, folder.path, _halves(files, folder.path, half))

    return LayoutMatch(folder.path, gather)


MERGED = Entry("released merged layout", rainy_half="right")  # of the released code: norain-N, clean left


def _halved_set(folder: Folder) -> Entry | None:
    """The set of side-by-side images that a folder's images are, by the names of files and folders."""
    if folder.images and all(path.name.lower().startswith("norain") for path in folder.images):
        return MERGED
    entry = get_entry(named_set(folder.path, levels=2))
    return entry if entry.rainy_half else None


def _halves(files: Sequence[Path], root: Path, rainy_half: str) -> list[Pair]:
    return [
        Pair(name, ImageRef(path, rainy_half), ImageRef(path, OTHER_HALF[rainy_half]))
        for name, path in zip(distinct_names(files, root), files, strict=True)
    ]


def _images_in(*folders: Path) -> list[Path]:
    files = [path for folder in folders for path in list_images(folder)]
    if not files:
        raise UserError(f"{folders[0]} holds no images: download the set again")
    return files


LAYOUTS = (two_sides, side_by_side)  # tried in this order


def _list_in(path: Path) -> Path | None:
    """The list of pairs that `path` is, or that lies in it (SPA's) and stands in for listing its folders."""
    if path.suffix == ".txt" and is_file(path):
        return path
    lists = (path / entry.list_file for entry in CATALOGUE.values() if entry.list_file)
    return next(filter(is_file, lists), None)


def _listed(file: Path) -> LayoutMatch:
    return LayoutMatch(file.parent, lambda: PairSet(f"list {file.name}", file.parent, ListedPairs(file)))


# ------------------------------------------------------------------------------------------------- the search


def find_pairs(
    data_path: Path, split: str, dataset: str = "", rainy_side: str = "auto", *, incomplete: bool = False
) -> PairSet:
    """Recognises the layout of `data_path` and returns its `split` ("train" or "test").

    `data_path`: a set's own folder, the folder of its split, one that holds the set, or a list file.
    `dataset` (a name of the catalogue, or ""): the set to choose where a folder holds several, and whose
    count to expect; by default the recognised one's. `rainy_side`: the rainy half of side-by-side images,
    "left" or "right"; "auto" goes by the set, else by measurement. Raises UserError, naming the file: nothing
    recognised, several sets, an empty folder, and, unless `incomplete`, a rainy image without its clean one.
    """
    other = "train" if split == "test" else "test"
    place, warnings = _locate(data_path, SplitQuery(split, other, get_entry(dataset), rainy_side))
    found = place.gather()
    if found.lone and not incomplete:
        more = f" (and {len(found.lone) - 1} more)" if len(found.lone) > 1 else ""
        raise UserError(
            f"{found.lone[0]} has no clean image of that name or number{more}: download the set again"
        )
    dataset = dataset or recognised(found)
    expected = get_entry(dataset).counts.get(split)
    if expected and len(found.pairs) != expected:
        count = f"{len(found.pairs):,} pairs"
        warnings.append(f"{found.root} holds {count}; {dataset}'s official {split} set has {expected:,}")
    return replace(found, warnings=(*found.warnings, *warnings))


def _locate(data_path: Path, query: SplitQuery) -> tuple[LayoutMatch, list[str]]:
    """The one recognised folder of a split, its images not paired yet, and warnings. Raises UserError."""
    if is_file(data_path) and (list_file := _list_in(data_path)):
        return _listed(list_file), []
    warnings: list[str] = []
    named = any(query.entry.claims(each.name) for each in _inside_out(data_path, levels=2))
    places = _places(_existing(data_path, "--data_path"), query, named)
    if not places and split_of(data_path) == query.other:
        beside = [
            path
            for path in Folder(data_path.parent).folders
            if split_of(path) == query.split and density_of(path) == density_of(data_path)
        ]
        places = [found for path in beside for found in _places(path, query, named)]
        if places:
            warnings.append(f"{data_path} is a {query.other} folder: took the {query.split} folder beside it")
    if not places:
        raise UserError(
            f"no {query.split} pairs in {data_path}{_hint(Folder(data_path), query.split)}; {WHERE}"
        )
    if len(places) > 1:
        places = [each for each in places if query.entry.claims(str(below(each.folder, data_path)))] or places
    own = density_of(Path(query.entry.name))
    if sorted(densities := [density_of(each.folder) for each in places]) == ["heavy", "light"]:
        # Rain200H and Rain200L, in a folder that names neither
        places = [places[densities.index(own)]] if own else places
    if len(places) > 1:
        several = join_names(found.folder for found in places)
        raise UserError(f"{data_path} holds several sets ({several}): point --data_path at one of them")
    density = density_of(places[0].folder)
    if density and own not in ("", density):
        warnings.append(f"{places[0].folder} is {density} rain by its name, and {query.entry.name} is not")
    return places[0], warnings


def _places(path: Path, query: SplitQuery, named: bool, depth: int = 3) -> list[LayoutMatch]:
    """Recognised folders of a split at or below `path`; `named`: whether it already lies in the set's folder.

    Below a folder that holds the requested set by name, nothing but that is searched: no other set can stand
    in for it, even where it is not recognised.
    """
    list_file = _list_in(path)
    if list_file and query.split == "train":
        return [_listed(list_file)]
    folder, here = Folder(path), split_of(path) != query.other
    children = [child for child in folder.folders if split_of(child) != query.other] if depth else []
    divided = [child for child in children if split_of(child) == query.split]
    found = next(filter(None, (layout(folder, query) for layout in LAYOUTS if here)), None)
    if found and not divided:
        return [found]
    if list_file or not here:  # below a list file lie hundreds of thousands of images
        children = divided
    if not named:
        children = [child for child in children if query.entry.claims(child.name)] or children
    places = [
        place
        for child in children
        for place in _places(child, query, named or query.entry.claims(child.name), depth - 1)
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


# ----------------------------------------------------------------------------------- which set a folder holds


def recognised(found: PairSet) -> str:
    """The catalogue's set by the names of folders and by the layout, not by what was requested; else ""."""
    named = named_set(found.root)
    if isinstance(found.pairs, ListedPairs):
        lists = {entry.list_file: entry.name for entry in CATALOGUE.values()}
        return lists.get(found.pairs.list_file.name, named)
    laid = [
        entry.name
        for entry in CATALOGUE.values()
        # a plain rain/ may be of any set
        if found.layout.lower() == "{}/ + {}/".format(*entry.sides).lower() and entry.sides[0] != "rain"
        if density_of(Path(entry.name)) == density_of(found.root) and not entry.simulated
    ]
    # rain_data_test_Heavy in a folder called Rain200L is Rain200H
    return laid[0] if len(laid) == 1 and (not named or named[:-1] == laid[0][:-1]) else named


def claimed_by(folder: Path) -> str:
    """The one set of the catalogue that a folder's name means, or ""."""
    claims = [entry.name for entry in CATALOGUE.values() if entry.claims(folder.name)]
    return claims[0] if len(claims) == 1 else ""


def named_set(folder: Path, levels: int = 4) -> str:
    """The set that the innermost of the folders around is named after, or ""."""
    return next(filter(None, map(claimed_by, _inside_out(folder, levels))), "")


def _inside_out(folder: Path, levels: int = 4) -> list[Path]:
    """The folder and those around it, as deep as downloads lie; of a link, its own names and its target's.

    Level by level: the folders around a link may be named after another set than its target.
    """
    places = ([place, *place.parents][:levels] for place in (folder.absolute(), folder.resolve()))
    return list(dict.fromkeys(each for level in itertools.zip_longest(*places) for each in level if each))


def in_test_part_of(folder: Path) -> str:
    """The set in whose test part `folder` lies, if the set has a training part too; else "".

    SPA's training part is its list: there rain/ + gt/ are the test part. A link is judged by its own place
    and by its target's.
    """
    for place in (folder.absolute(), folder.resolve()):
        test = False
        for each in [place, *place.parents][:4]:
            if (split := split_of(each)) == "train":
                break
            test = test or split == "test"
            if name := claimed_by(each):
                entry = CATALOGUE[name]
                pairs = folder.parent if folder.name in entry.sides else folder
                listed = entry.list_file and all((pairs / side).is_dir() for side in entry.sides)
                if entry.train and (test or listed):
                    return name
                break
    return ""


# ------------------------------------------------------------------------------------------ unlabelled images


def find_images(folders: Sequence[Path], dataset: str = "", option: str = "--real_path") -> PairSet:
    """Unlabelled real images of any size: all below some folders, or a list file's rainy column.

    Takes only the rainy side of pairs, and the rainy half of side-by-side images. `option`: the one that gave
    the folders. Images to train on (--real_path) leave out the test part of a set that has a training part.
    Raises UserError for a folder without images.
    """
    if not folders:
        raise UserError(f"{option} names no folder of real images: add one; {WHERE}")
    if len(folders) == 1 and (list_file := _list_in(folders[0])):
        listed = ListedPairs(list_file, labelled=False)
        return PairSet(f"rainy images of {list_file.name}", list_file.parent, listed)
    warnings: list[str] = []
    refs: list[ImageRef] = []
    for top in folders:
        place = top if _list_in(top) else _existing(top, option)
        found, left_out = _images_below(place, training=option == "--real_path")
        if not found:
            why = "; ".join(left_out) or f"{option} takes folders of images; {WHERE}"
            raise UserError(f"{top} holds no images: {why}")
        refs += found
        warnings += left_out
    if len({ref.path.is_absolute() for ref in refs}) > 1:
        refs = [ImageRef(ref.path.absolute(), ref.half) for ref in refs]
    refs = list(dict.fromkeys(refs))  # a folder given twice, or inside another
    root = Path(os.path.commonpath([ref.path.parent for ref in refs]))
    names = distinct_names([ref.path for ref in refs], root)
    expected = sum(get_entry(dataset).counts.values())
    if expected and len(refs) != expected:
        warnings.append(f"{root} holds {len(refs):,} images; {dataset} officially has {expected:,}")
    pairs = [Pair(name, ref, None) for name, ref in zip(names, refs, strict=True)]
    return PairSet("unlabelled", root, pairs, tuple(dict.fromkeys(warnings)))


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


def _images_below(top: Path, training: bool) -> tuple[list[ImageRef], list[str]]:
    """Every image below `top`, each folder's own before those of its sub-folders, and what was left out."""
    refs: list[ImageRef] = []
    warnings: list[str] = []
    waiting, seen = [top], set()
    while waiting:
        path = waiting.pop()
        if (real := os.path.realpath(path)) in seen:  # a link may lead back up
            continue
        seen.add(real)
        if list_file := _list_in(path):
            refs += [pair.rainy for pair in ListedPairs(list_file, labelled=False)]
            continue
        if training and (name := in_test_part_of(path)):
            warnings.append(f"{path} is the test part of {name}: not used")
            continue
        folder = Folder(path)
        if half := _half_by_name(folder):
            warnings.append(f"{path} holds pairs side by side: took the {half} halves, the rainy ones")
        refs += [ImageRef(image, half) for image in folder.images]
        clean = folder.named(clean_folders()) if folder.named(rainy_folders()) else []
        left_out = dict.fromkeys(clean, "is the clean side of pairs")
        if training and any(split_of(child) == "train" for child in folder.folders):
            tests = [child for child in folder.folders if split_of(child) == "test"]
            left_out |= dict.fromkeys(tests, "is the test part of a divided set")
        warnings += [f"{path} {why}: not used" for path, why in left_out.items()]
        waiting += [child for child in reversed(folder.folders) if child not in left_out]
    return refs, warnings


def _half_by_name(folder: Folder) -> str:
    """The rainy half of its images, if names and pixels say that they are pairs side by side.

    Pixels alone do not tell: one photograph in seven has halves that look alike.
    """
    known = _halved_set(folder)
    named = known is MERGED or split_of(folder.path.resolve())
    return known.rainy_half if known and named and halves_agree(folder.images) else ""
