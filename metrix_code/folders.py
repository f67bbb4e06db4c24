"""Scores a folder of derained images, of any method: which file goes with which, and the average.

With a row in the tables it is scored by an eval script: `eval_Rain200H.py --derained FOLDER --method NAME`.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from datasets.names import match
from machinery.options import Options, option, parse
from metrix_code.metrics import METRICS, Metric
from metrix_code.protocol import PROTOCOLS, size
from metrix_code.scores import mean
from utils import UserError, list_images, printable, read_image, refuse_inputs, write_text


@dataclass(frozen=True)
class MetricOptions(Options):
    """The options of a metric that needs no clean images."""

    res_path: Path = option(Path(), "the derained images", required=True)
    workers: int = option(os.cpu_count() or 1, "images scored at a time", least=1)
    csv: Path = option(Path(), "also write the scores to this file")


@dataclass(frozen=True)
class PairedMetricOptions(MetricOptions):
    """Of one that compares with them."""

    gt_path: Path = option(Path(), "the clean images, matched by name, then by number", required=True)
    protocol: str = option("RGB", "what is scored, see protocol.py", PROTOCOLS)
    gt_half: str = option(
        "none",
        "which half of a side-by-side file is the clean one: left in Rain800 and in the released layout, "
        "right in Rain1200 and Rain12",
        ("none", "left", "right"),
    )


class Score(NamedTuple):
    derained: Path
    clean: Path | None
    value: float | None  # None: it could not be scored
    why: str = ""


def clean_images(folder: Path) -> list[Path]:
    """The images of `folder`, less any rain-1 that lies beside its norain-1, as in the older Rain100."""
    paths = list_images(folder)
    stems = {path.stem for path in paths}
    return [path for path in paths if not (path.stem.startswith("rain") and "no" + path.stem in stems)]


# ----------------------------------------------------------------------------------------------- scoring


def main(title: str, about: str | None) -> None:
    """Each metric's script part: the metric of this `title`, in the protocol that the command line asks for.

    Raises UserError at the end where an image could not be scored: the others are.
    """
    choices = {m.protocol: m for m in METRICS.values() if m.title == title and not m.of_output}
    metric = next(iter(choices.values()))
    options = parse(PairedMetricOptions() if metric.paired else MetricOptions(), about)
    if isinstance(options, PairedMetricOptions):
        metric = choices[options.protocol]
    derained = list_images(options.res_path)
    if not derained:
        raise UserError(
            f"{options.res_path} holds no images: give the folder of derained images as --res_path"
        )
    pairs: list[tuple[Path, Path | None]] = [(path, None) for path in derained]
    half = ""
    given = [options.res_path, *([options.gt_path] if isinstance(options, PairedMetricOptions) else [])]
    refuse_inputs(options.csv, [path for folder in given for path in list_images(folder)], "--csv")
    if isinstance(options, PairedMetricOptions):
        pairs, half = _pairs(derained, options.res_path, options.gt_path), options.gt_half
    scores = _in_parallel(partial(_score, metric, half), pairs, title, options.workers)
    for score in scores:
        if score.value is None:
            print(f"{printable(score.derained.name)}  not scored: {printable(score.why)}", file=sys.stderr)
        else:
            print(f"{printable(score.derained.name)}  {metric.text(score.value)}")
    print(_summary(scores, metric))
    if options.csv != Path():
        _write_csv(options.csv, scores, metric)
    if failed := [score for score in scores if score.value is None]:
        raise UserError(f"{len(failed)} of {len(scores)} images were not scored: {failed[0].why}")


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
            print(
                f"{what}, not scored ({len(paths)}): {', '.join(printable(p.name) for p in paths)}",
                file=sys.stderr,
            )
    return list(pairs)


def _in_parallel(
    measure: Callable[..., Score], pairs: list[tuple[Path, Path | None]], label: str, workers: int
) -> list[Score]:
    # Threads, since OpenCV and NumPy let go of the interpreter's lock while they compute.
    with ThreadPoolExecutor(workers) as pool:
        return list(tqdm(pool.map(lambda pair: measure(*pair), pairs), label, len(pairs), unit="image"))


def _score(metric: Metric, half: str, derained: Path, clean: Path | None) -> Score:
    try:
        ours = read_image(derained)
        theirs = _read_clean(clean, half, derained, ours) if clean else None
    except UserError as error:
        return Score(derained, clean, None, str(error))
    try:
        return Score(derained, clean, metric(ours, theirs))
    except UserError as error:  # of arrays: it cannot name the files
        files = " with ".join(str(path) for path in (derained, clean) if path)
        return Score(derained, clean, None, f"{files}: {error}")


def _read_clean(path: Path, half: str, derained: Path, ours: np.ndarray) -> np.ndarray:
    """The clean image at `path`, or its `half` ("left", "right"), uint8 RGB (H, W, 3) to go with `ours`.

    Raises UserError where the file is side by side and no half is given, or the other way round.
    """
    theirs = read_image(path)
    doubled = theirs.shape[0] == ours.shape[0] and theirs.shape[1] == 2 * ours.shape[1]
    if half in ("left", "right"):
        if not doubled:
            raise UserError(
                f"{path} is {size(theirs)}, not twice as wide as {derained} ({size(ours)}): "
                "leave --gt_half out if it is not side by side"
            )
        return np.split(theirs, 2, axis=1)[("left", "right").index(half)]
    if doubled:
        raise UserError(
            f"{path} is twice as wide as {derained}: if it is a side-by-side file, say which half is clean, "
            "--gt_half left or --gt_half right"
        )
    return theirs


def _summary(scores: list[Score], metric: Metric) -> str:
    average, infinite = mean(score.value for score in scores)
    scored = sum(score.value is not None for score in scores)
    if average is None:
        return f"no {metric.name}: none of {len(scores)} images could be scored"
    if infinite == scored:
        return f"{metric.name} of {scored} images: inf, all of them identical to the clean ones"
    exact = f"; {infinite} of {scored} identical to the clean image (inf), not in the average"
    text = f"average {metric.name} of {scored - infinite} images: {metric.text(average)}"
    return text + (exact if infinite else "")


def _write_csv(path: Path, scores: list[Score], metric: Metric) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["derained", "clean", "protocol", metric.title.lower()])
    for score in scores:
        value = "" if score.value is None else repr(score.value)
        writer.writerow([score.derained, score.clean or "", metric.protocol, value])
    write_text(path, text.getvalue())
