#!/usr/bin/env python3
"""Checks a downloaded dataset: counts, missing names, unreadable images. Changes nothing.

    python datasets/check.py Rain200H path/to/Rain200H

Opens every image: about a minute for 10,000 pairs, an hour or more for SPA's 638,492.
Exit status: 0 complete, 1 something is missing or wrong, 2 not recognised.
"""

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parents[1]))  # imports work from any folder

from datasets.catalogue import CATALOGUE
from datasets.layouts import find_images, find_pairs
from datasets.pairs import ListedPairs, Pair, PairSet, check_pairs, read_pair
from machinery.options import Options, option, parse
from utils import UserError, run

DOWNLOADED = [entry.name for entry in CATALOGUE.values() if not entry.simulated]


@dataclass(frozen=True)
class Check(Options):
    """The arguments of this script."""

    dataset: str = option("", "which set it should be", DOWNLOADED, positional=True)
    path: Path = option(Path(), "folder it was unpacked to", positional=True)


def missing_names(dataset: str, split: str, names: Iterable[str]) -> list[str]:
    """The official names that the rainy `names` lack; [] if they are not numbered."""
    series: dict[tuple[str, str], dict[int, int]] = {}
    for name in names:
        if numbered := re.fullmatch(r"((?:.*/)?\D*)(\d+)(.*)", name):
            head, number, tail = numbered.groups()
            width = len(number) if number.startswith("0") else 0  # 001 is padded, 1 is not
            series.setdefault((head, tail), {})[int(number)] = width
    entry = CATALOGUE[dataset]
    times = entry.series.get(split, 1)
    each = entry.counts[split] // times
    missing = []
    for (head, tail), present in sorted(series.items(), key=lambda item: -len(item[1]))[:times]:
        first = entry.first.get(split, 0 if 0 in present else 1)
        width = max(present.values())
        missing += [f"{head}{n:0{width}}{tail}" for n in range(first, first + each) if n not in present]
    return missing


def find_split(dataset: str, split: str, path: Path) -> PairSet:
    """Raises UserError if nothing is recognised."""
    if CATALOGUE[dataset].labelled:
        return find_pairs(path, split, dataset, incomplete=True)
    return find_images([path], dataset, "the path")


def check_split(dataset: str, split: str, found: PairSet) -> list[str]:
    """Prints what was recognised; returns what is wrong with it."""
    wrong = [f"{image} has no clean image" for image in found.lone]
    if not found.pairs:
        return [f"{found.root} holds no pairs", *wrong]
    print(f"{dataset} {split}: {found.describe()}, officially {CATALOGUE[dataset].counts[split]:,}")
    wrong += check_pairs(found)
    if not isinstance(found.pairs, ListedPairs):
        names = [pair.name for pair in found.pairs] + [image.stem for image in found.lone]
        wrong += [f"missing: {name}" for name in missing_names(dataset, split, names)]
    return [*wrong, *unreadable(found.pairs)]


def unreadable(pairs: Sequence[Pair]) -> list[str]:
    """What cannot be read of any pair, each image opened: missing, cut short, two sizes."""

    def error_of(pair: Pair) -> str:
        try:
            read_pair(pair)
        except UserError as error:
            return str(error)
        return ""

    with ThreadPool() as pool:
        errors = pool.imap(error_of, pairs, chunksize=8)
        return list(filter(None, tqdm(errors, "opening images", len(pairs), unit="pair", leave=False)))


def main() -> None:
    options = parse(Check(), __doc__)
    problems: dict[str, list[str]] = {}
    found: dict[str, PairSet] = {}
    counts = CATALOGUE[options.dataset].counts
    for split in counts:
        try:
            found[split] = find_split(options.dataset, split, options.path)
        except UserError as error:
            problems[split] = [str(error)]
    if not found:
        raise UserError(problems.popitem()[1][0])
    if len({(each.root, each.layout) for each in found.values()}) < len(found):
        one = found["test"]  # one part, which no folder's name tells
        other = max(counts, key=lambda split: abs(counts[split] - len(one.pairs)))
        del found[other]
        problems[other] = [f"{one.root} is not divided into train and test: {len(one.pairs):,} pairs in all"]
    problems |= {split: check_split(options.dataset, split, each) for split, each in found.items()}
    for split, wrong in problems.items():
        print(f"{options.dataset} {split}: {f'{len(wrong):,} problems' if wrong else 'complete'}")
        for text in wrong:
            print(f"  {text}")
    sys.exit(1 if any(problems.values()) else 0)


if __name__ == "__main__":
    run(main)
