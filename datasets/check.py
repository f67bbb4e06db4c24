#!/usr/bin/env python3
"""Checks a downloaded dataset against the official counts and says what is missing, by name. Changes nothing.

    python datasets/check.py Rain200H path/to/Rain200H
    python datasets/check.py SPA path/to/SPA --split test --deep

Exit status: 0 complete, 1 something is missing or wrong, 2 not recognised.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parents[1]))  # found as a script too, whatever folder one is in

from datasets.catalogue import CATALOGUE
from datasets.layouts import SplitQuery, find_images, locate
from datasets.pairs import ListedPairs, Pair, PairSet, check_pairs, read_pair
from machinery.options import Options, option, parse
from utils import UserError, join_names, run


def downloaded() -> list[str]:
    return [entry.name for entry in CATALOGUE.values() if not entry.simulated]


@dataclass(frozen=True)
class Check(Options):
    """The options of this script."""

    dataset: str = option("", f"which set it is meant to be: {', '.join(downloaded())}", positional=True)
    path: Path = option(Path(), "where it was unpacked", positional=True)
    split: str = option("all", "check only this one", ("all", "train", "test"))
    deep: bool = option(False, "also open every image, instead of looking at names alone")
    all: bool = option(False, "print everything that is wrong, instead of 20 lines")
    rainy_side: str = option("auto", "of side-by-side images: which half is rainy", ("auto", "left", "right"))

    def validate(self) -> str | None:
        if self.dataset not in downloaded():
            return f"{self.dataset!r} is none of {', '.join(downloaded())}"
        return super().validate()


def missing_names(dataset: str, split: str, names: Iterable[str]) -> list[str]:
    """What the official numbering has and the rainy `names` have not; [] where they are not numbered."""
    series: dict[tuple[str, str], dict[int, int]] = {}
    for name in names:
        if numbered := re.fullmatch(r"(.*/)?(\D*)(\d+)(.*)", name):
            folder, head, number, tail = numbered.groups(default="")
            width = len(number) if number.startswith("0") else 0  # 001 is padded, 1 is not
            series.setdefault((folder + head, tail), {})[int(number)] = width
    entry = CATALOGUE[dataset]
    times = entry.series.get(split, 1)
    each = entry.counts[split] // times
    missing = []
    for (head, tail), present in sorted(series.items(), key=lambda item: -len(item[1]))[:times]:
        first = entry.first.get(split, 0 if 0 in present else 1)
        width = max(present.values())
        missing += [f"{head}{n:0{width}}{tail}" for n in range(first, first + each) if n not in present]
    return missing


def check_split(dataset: str, split: str, options: Check) -> list[str]:
    """Prints what was recognised; returns what is wrong with it. Raises UserError where nothing was."""
    lone_rainy: Sequence[Path] = ()
    if not CATALOGUE[dataset].labelled:
        found = find_images([options.path], option="the path")
    else:
        candidate, warnings = locate(options.path, SplitQuery(split, dataset, options.rainy_side))
        pairs, lone_rainy, lone_clean = candidate.gather()
        warnings += [f"no rainy image to the clean {path}" for path in lone_clean]
        found = PairSet(candidate.layout, candidate.folder, pairs, tuple(warnings), dataset)
    if not found.pairs:
        return [f"{found.root} holds no pairs: {join_names(lone_rainy) or 'no images'}"]
    expected = CATALOGUE[dataset].counts[split]
    print(f"{dataset} {split}: {found.describe()}, officially {expected:,}")
    wrong = [f"no clean image to the rainy {path}" for path in lone_rainy]
    wrong += check_pairs(found, failed=lambda error: wrong.append(str(error)))
    if isinstance(found.pairs, ListedPairs):
        wrong += listed_but_absent(found.pairs)
        if len(found.pairs) != expected:
            wrong.append(f"{found.pairs.list_file} has {len(found.pairs):,} lines, not {expected:,}")
    else:
        names = [pair.name for pair in found.pairs] + [path.stem for path in lone_rainy]
        missing = missing_names(dataset, split, names)
        if len(names) + len(missing) != expected:
            wrong.append(
                f"{len(names):,} rainy images, and {len(missing):,} missing below; {expected:,} expected"
            )
        wrong += [f"missing: {name}" for name in missing]
    if options.deep:
        wrong += [text for text in unreadable(found.pairs) if text not in wrong]
    return wrong


def listed_but_absent(pairs: ListedPairs) -> Iterator[str]:
    for pair in tqdm(pairs, desc="looking for listed files", unit="pair", leave=False):
        for side in (pair.rainy, pair.clean):
            if side and not side.path.is_file():
                yield f"missing: {side.path}"


def unreadable(pairs: Sequence[Pair]) -> Iterator[str]:
    def validate(pair: Pair) -> str:
        try:
            read_pair(pair)
        except UserError as error:
            return str(error)
        return ""

    with ThreadPool() as pool:
        problems = pool.imap(validate, pairs, chunksize=8)
        yield from filter(None, tqdm(problems, "opening images", len(pairs), unit="pair", leave=False))


def main() -> None:
    options = parse(Check(), __doc__)
    splits = [split for split in CATALOGUE[options.dataset].counts if options.split in ("all", split)]
    if not splits:
        raise UserError(f"{options.dataset} has no {options.split} set")
    problems: dict[str, list[str]] = {}
    unrecognised: list[str] = []
    for split in splits:
        try:
            problems[split] = check_split(options.dataset, split, options)
        except UserError as error:
            unrecognised.append(str(error))
            problems[split] = [str(error)]
    if len(unrecognised) == len(splits):
        raise UserError(unrecognised[0])
    for split, wrong in problems.items():
        report(f"{options.dataset} {split}", wrong, len(wrong) if options.all else 20)
    sys.exit(1 if any(problems.values()) else 0)


def report(what: str, wrong: Sequence[str], most: int) -> None:
    print(f"{what}: {f'{len(wrong):,} problems' if wrong else 'complete'}")
    for text in wrong[:most]:
        print(f"  {text}")
    if len(wrong) > most:
        print(f"  and {len(wrong) - most:,} more; --all prints them")


if __name__ == "__main__":
    run(main)
