"""Scores a folder of derained images, of any method: which file goes with which, and the average."""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from datasets.names import match
from metrix_code.protocol import PROTOCOLS, size
from metrix_code.scores import mean
from utils import UserError, list_images, read_image, write_atomically


class Score(NamedTuple):
    derained: Path
    clean: Path | None
    value: float


def clean_images(folder: Path) -> list[Path]:
    """The images of `folder`, less any rain-1 that lies beside its norain-1, as in the older Rain100."""
    paths = list_images(folder)
    stems = {path.stem for path in paths}
    return [path for path in paths if not (path.stem.startswith("rain") and "no" + path.stem in stems)]


# ----------------------------------------------------------------------------------------------- scoring


def main(
    label: str, metric: Callable[..., float], digits: int, about: str | None, paired: bool = True
) -> None:
    """Each metric's script part. `metric` takes (derained, clean, protocol), or one image if not `paired`."""
    options = _options(about, paired)
    derained = list_images(options.res_path)
    if not derained:
        raise UserError(
            f"{options.res_path} holds no images: give the folder of derained images as --res_path"
        )
    pairs: list[tuple[Path, Path | None]] = [(path, None) for path in derained]
    measure: Callable[..., float] = partial(_score_alone, metric)
    if paired:
        pairs = _pairs(derained, options.res_path, options.gt_path)
        measure = partial(_score_pair, metric, options.protocol, options.gt_half)
    scores = _in_parallel(measure, pairs, label, options.workers)
    for score in scores:
        print(f"{score.derained.name}  {score.value:.{digits}f}")
    print(_summary(scores, f"{label} ({options.protocol})", digits))
    if options.csv:
        _write_csv(options.csv, scores, label.lower(), options.protocol)


def _options(about: str | None, paired: bool) -> argparse.Namespace:
    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    parser = argparse.ArgumentParser(description=about, formatter_class=Formatter)
    folder = partial(
        parser.add_argument, type=Path, required=True, default=argparse.SUPPRESS, metavar="FOLDER"
    )
    folder("--res_path", help="the derained images")
    if paired:
        folder("--gt_path", help="the clean images, matched by name, then by number")
        parser.add_argument(
            "--protocol", choices=PROTOCOLS, default="RGB", help="what is scored, see protocol.py"
        )
        parser.add_argument(
            "--gt_half",
            choices=("left", "right"),
            help="which half of a side-by-side file is the clean one: left in Rain800 and in the released "
            "layout, right in Rain1200 and Rain12",
        )
    else:
        parser.set_defaults(protocol="Y")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="images scored at a time")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the scores to this file")
    options = parser.parse_args()
    if options.workers < 1:
        parser.error("--workers must be at least 1")
    return options


def _pairs(derained: list[Path], res_path: Path, gt_path: Path) -> list[tuple[Path, Path | None]]:
    clean = clean_images(gt_path)
    if not clean:
        raise UserError(f"{gt_path} holds no images: give the folder of clean images as --gt_path")
    pairs, lonely, unused = match(derained, clean)
    if not pairs:
        raise UserError(
            f"no image of {res_path} ({derained[0].name}, ...) goes with one of {gt_path} ({clean[0].name}, "
            "...), by name or by number: name the derained images as the clean ones"
        )
    for paths, what in (
        (lonely, "derained images without a clean one"),
        (unused, "clean images not derained"),
    ):
        if paths:
            print(f"{what}, not scored ({len(paths)}): {', '.join(p.name for p in paths)}", file=sys.stderr)
    return list(pairs)


def _in_parallel(
    measure: Callable[..., float], pairs: list[tuple[Path, Path | None]], label: str, workers: int
) -> list[Score]:
    # Threads, since OpenCV and NumPy let go of the interpreter's lock while they compute.
    with ThreadPoolExecutor(workers) as pool:
        values = tqdm(pool.map(lambda pair: measure(*pair), pairs), label, len(pairs), unit="image")
        return [Score(*pair, value) for pair, value in zip(pairs, values, strict=True)]


def _score_alone(metric: Callable[..., float], derained: Path, _: None) -> float:
    try:
        return metric(read_image(derained))
    except UserError as error:
        raise _naming(error, derained) from None


def _score_pair(
    metric: Callable[..., float], protocol: str, half: str | None, derained: Path, clean: Path
) -> float:
    ours, theirs = read_image(derained), read_image(clean)
    doubled = theirs.shape[0] == ours.shape[0] and theirs.shape[1] == 2 * ours.shape[1]
    if half:
        if not doubled:
            raise UserError(
                f"{clean} is {size(theirs)}, not twice as wide as {derained} ({size(ours)}): "
                "leave --gt_half out if it is not side by side"
            )
        theirs = np.split(theirs, 2, axis=1)[("left", "right").index(half)]
    elif doubled:
        raise UserError(
            f"{clean} is twice as wide as {derained}: if it is a side-by-side file, say which half is clean, "
            "--gt_half left or --gt_half right"
        )
    try:
        return metric(ours, theirs, protocol)
    except UserError as error:
        raise _naming(error, derained, clean) from None


def _naming(error: UserError, *paths: Path) -> UserError:
    return UserError(f"{' with '.join(str(path) for path in paths)}: {error}")


def _summary(scores: list[Score], label: str, digits: int) -> str:
    average, infinite = mean(score.value for score in scores)
    if infinite:
        exact = f"; {infinite} of {len(scores)} identical to the clean image (inf), not in the average"
    else:
        exact = ""
    return f"average {label} of {len(scores) - infinite} images: {average:.{digits}f}{exact}"


def _write_csv(path: Path, scores: list[Score], label: str, protocol: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["derained", "clean", "protocol", label])
    for score in scores:
        writer.writerow([score.derained, score.clean or "", protocol, repr(score.value)])
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))
