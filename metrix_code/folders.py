"""Scores a folder of derained images, of any method: which file goes with which, and the average.

With a row in the tables it is scored by an eval script: `eval_Rain200H.py --derained FOLDER --method NAME`.
"""

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

from datasets.pairs import match
from machinery.options import Options, option, parse
from metrix_code.protocol import PROTOCOLS, mean, size
from utils import UserError, escape_unprintable, list_images, read_image, refuse_inputs, write_text


@dataclass(frozen=True)
class MetricOptions(Options):
    """The options of a metric that needs no clean images."""

    res_path: Path = option(Path(), "the derained images", required=True)
    workers: int = option(os.cpu_count() or 1, "images scored at a time", min=1)
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


def main(
    function: Callable[..., float], title: str, description: str | None, *, digits: int = 4, of_one: str = ""
) -> None:
    """Each metric's script part. `of_one`: the protocol of a metric that needs no clean images.

    Raises UserError at the end where an image could not be scored: the others are.
    """
    options = parse(MetricOptions() if of_one else PairedMetricOptions(), description)
    derained = list_images(options.res_path)
    if not derained:
        raise UserError(
            f"{options.res_path} holds no images: give the folder of derained images as --res_path"
        )
    pairs: list[tuple[Path, Path | None]] = [(path, None) for path in derained]
    folders, protocol, measure = [options.res_path], of_one, partial(_score, function)
    if isinstance(options, PairedMetricOptions):
        folders, protocol = [options.res_path, options.gt_path], options.protocol
        pairs = _pairs(derained, options.res_path, options.gt_path)
        measure = partial(_score, partial(function, protocol=protocol), half=options.gt_half)
    refuse_inputs(options.csv, [path for folder in folders for path in list_images(folder)], "--csv")
    # threads, since OpenCV and NumPy let go of the interpreter's lock while they compute
    with ThreadPoolExecutor(options.workers) as pool:
        done = pool.map(lambda pair: measure(*pair), pairs)
        scores = list(tqdm(done, title, len(pairs), unit="image"))
    for score in scores:
        if score.value is None:
            print(
                f"{escape_unprintable(score.derained.name)}  not scored: {escape_unprintable(score.why)}",
                file=sys.stderr,
            )
        else:
            print(f"{escape_unprintable(score.derained.name)}  {score.value:.{digits}f}")
    print(_summary([score.value for score in scores], f"{title} ({protocol})", digits))
    if options.csv != Path():
        _write_csv(options.csv, scores, protocol, title.lower())
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
            names = ", ".join(escape_unprintable(path.name) for path in paths)
            print(f"{what}, not scored ({len(paths)}): {names}", file=sys.stderr)
    return list(pairs)


def _score(function: Callable[..., float], derained: Path, clean: Path | None, half: str = "") -> Score:
    files = [path for path in (derained, clean) if path]
    try:
        images = [read_image(derained)]
        if clean:
            images.append(_clean_side(read_image(clean), clean, half, derained, images[0]))
    except UserError as error:
        return Score(derained, clean, None, str(error))
    try:
        return Score(derained, clean, function(*images))
    except UserError as error:  # of arrays: it cannot name the files
        return Score(derained, clean, None, f"{' with '.join(map(str, files))}: {error}")


def _clean_side(image: np.ndarray, path: Path, half: str, derained: Path, ours: np.ndarray) -> np.ndarray:
    """The `image` at `path`, or its `half` ("left", "right"), uint8 RGB (H, W, 3) to go with `ours`.

    Raises UserError where the file is side by side and no half is given, or the other way round.
    """
    doubled = image.shape[0] == ours.shape[0] and image.shape[1] == 2 * ours.shape[1]
    if half in ("left", "right"):
        if not doubled:
            raise UserError(
                f"{path} is {size(image)}, not twice as wide as {derained} ({size(ours)}): "
                "leave --gt_half out if it is not side by side"
            )
        return np.split(image, 2, axis=1)[("left", "right").index(half)]
    if doubled:
        raise UserError(
            f"{path} is twice as wide as {derained}: if it is a side-by-side file, say which half is clean, "
            "--gt_half left or --gt_half right"
        )
    return image


def _summary(values: list[float | None], name: str, digits: int) -> str:
    average, infinite = mean(values)
    scored = sum(value is not None for value in values)
    if average is None:
        return f"no {name}: none of {len(values)} images could be scored"
    if infinite == scored:
        return f"{name} of {scored} images: inf, all of them identical to the clean ones"
    exact = f"; {infinite} of {scored} identical to the clean image (inf), not in the average"
    return f"average {name} of {scored - infinite} images: {average:.{digits}f}{exact if infinite else ''}"


def _write_csv(path: Path, scores: list[Score], protocol: str, title: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["derained", "clean", "protocol", title])
    for score in scores:
        value = "" if score.value is None else repr(score.value)
        writer.writerow([score.derained, score.clean or "", protocol, value])
    write_text(path, text.getvalue())
