"""scores.json, which each evaluation writes beside its derained images, and which the tables are made of.

    dataset          "Rain200H", ...
    method           "SID" (the teacher) or "SSID-KD" (the student)
    protocol         of psnr, ssim, psnr_float, ssim_float and those of the rainy input: "RGB"
    simulated        true for rain that was rendered, which is never shown among true benchmarks
    checkpoint, checkpoint_step, data_path, command, hardware, date
    images_expected  how many images the official test set has, or null
    images           one record an image: name, file (below the results folder), the METRICS, seconds
    mean             the METRICS averaged over the images, as `average` does

A metric that was not measured is null. JSON has no infinity: it stands there as the string "inf".
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from utils import UserError, write_atomically

FILE = "scores.json"
METRICS = (
    *("psnr", "ssim", "niqe", "psnr_y", "ssim_y", "psnr_float", "ssim_float"),
    *("rainy_psnr", "rainy_ssim", "rainy_niqe"),
)


def mean(values: Iterable[float | None]) -> tuple[float | None, int]:
    """The mean of the finite values, and how many were infinite; None where nothing was measured.

    Infinite only where every value is.
    """
    measured = [value for value in values if value is not None]
    finite = [value for value in measured if math.isfinite(value)]
    infinite = len(measured) - len(finite)
    if not finite:
        return (math.inf if infinite else None), infinite
    return math.fsum(finite) / len(finite), infinite


def average(images: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The `mean` of each metric and of the seconds; "infinite" counts, by metric, what no mean could hold."""
    means = {key: mean(image.get(key) for image in images) for key in (*METRICS, "seconds")}
    infinite = {key: count for key, (_, count) in means.items() if count}
    return {key: value for key, (value, _) in means.items()} | {"infinite": infinite}


def write_scores(folder: Path, scores: dict[str, Any]) -> Path:
    """Writes `folder`/scores.json, all of it or nothing, and returns its path."""
    text = json.dumps(_without_infinity(scores), indent=1, ensure_ascii=False, allow_nan=False)
    path = folder / FILE
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
    return path


def read_scores(path: Path) -> dict[str, Any]:
    """Reads a scores.json. Raises UserError where it is unreadable, or not one that an evaluation wrote."""
    remedy = "evaluate again, or take the file away"
    try:
        scores = _with_infinity(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as scores ({error}): {remedy}") from None
    kinds = {"dataset": str, "method": str, "protocol": str, "simulated": bool, "images": list, "mean": dict}
    for key, kind in kinds.items():
        if not isinstance(scores, dict) or not isinstance(scores.get(key), kind):
            raise UserError(f"{path} has no {key!r} as an evaluation writes it: {remedy}")
    if not all(isinstance(image, dict) for image in scores["images"]):
        raise UserError(f"{path}: an image is no record: {remedy}")
    for key in METRICS:
        if not isinstance(scores["mean"].get(key), float | int | None):
            raise UserError(f"{path}: the mean of {key!r} is no number: {remedy}")
    return scores


def _without_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(item) for item in value]
    return "inf" if isinstance(value, float) and value == math.inf else value


def _with_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_infinity(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_infinity(item) for item in value]
    return math.inf if value == "inf" else value
