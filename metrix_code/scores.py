"""scores.json, which each evaluation writes beside its derained images, and which the tables are made of.

    dataset          "Rain200H", ...: what was recognised
    method           "SID" (the teacher), "SSID-KD" (the student), or as the user says
    self_ensemble    true for the mean over eight flips and rotations
    simulated        true for rain that was rendered, which is never shown among true benchmarks
    trained_on       what the checkpoint says of its training: dataset, stage, data (lines), real_path, and
                     whether it is the authors' (released)
    seen             why the images scored here are not new to the model, or ""
    checkpoint, checkpoint_step, data_path, tile, precision, command, hardware, date
    images_expected  how many images the official test set has, or null
    images_found     how many this one has
    images           one record an image: name, file (below the results folder), seconds, and its scores
    mean             the scores averaged over the images, as `average` does

The scores go by the keys of metrics.py: an image has those that were measured. JSON has no infinity: it
stands there as the string "inf".
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metrix_code.metrics import KEYS
from metrix_code.protocol import mean
from utils import UserError, content_of, escape_unprintable, file_errors, write_text

SCORES = "scores.json"
UNKNOWN = "unknown"  # of a method or its training: neither the checkpoint nor the user says it
TEXTS = ("dataset", "method")
OPTIONAL_TEXTS = ("seen", "checkpoint", "data_path", "hardware", "date")
COUNTS = ("images_expected", "images_found", "checkpoint_step")


def average(images: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The `mean` of each score and of the seconds; "infinite" counts, by key, what no mean could hold."""
    means = {key: mean(image.get(key) for image in images) for key in (*KEYS, "seconds")}
    infinite = {key: count for key, (_, count) in means.items() if count}
    return {key: value for key, (value, _) in means.items()} | {"infinite": infinite}


def write_scores(folder: Path, scores: dict[str, Any]) -> Path:
    """Writes `folder`/scores.json, all of it or nothing, and returns its path."""
    text = json.dumps(_without_infinity(scores), indent=1, ensure_ascii=False, allow_nan=False)
    path = folder / SCORES
    write_text(path, text + "\n")
    return path


def read_scores(path: Path) -> dict[str, Any]:
    """Reads a scores.json. Raises UserError where it is unreadable, or not one that an evaluation wrote."""
    remedy = "evaluate again, or take the file away"
    with file_errors(path, remedy, done="read as scores", kinds=(ValueError, RecursionError)):
        scores = json.loads(content_of(path, remedy))
    if isinstance(scores, dict):  # but for its images, which go by their files' own names
        scores = {key: each if key == "images" else _in_printable(each) for key, each in scores.items()}
    if wrong := _wrong(scores):
        raise UserError(f"{path}: {wrong}: {remedy}")
    return scores


def _wrong(scores: Any) -> str:
    """What keeps `scores` from being an evaluation's, "" where nothing does; "inf" becomes a number."""
    if not isinstance(scores, dict):
        return "it holds no record"
    kinds: dict[str, Any] = {"images": list, "mean": dict, "simulated": bool, **dict.fromkeys(TEXTS, str)}
    kinds |= dict.fromkeys(OPTIONAL_TEXTS, str | None) | dict.fromkeys(COUNTS, int | None)
    for key, kind in kinds.items():
        if not isinstance(scores.get(key), kind):
            return f"no {key!r} as an evaluation writes it"
    records = [*scores["images"], scores["mean"]]
    if not all(isinstance(record, dict) for record in records):
        return "an image is no record"
    for key in (*KEYS, "seconds"):
        for record in records:
            if record.get(key) == "inf":
                record[key] = math.inf
            if not _is_score(record.get(key)):
                return f"a score {key!r} is no number"
    return ""


def _in_printable(value: Any) -> Any:
    """Every text of it as a terminal can show it."""
    if isinstance(value, dict):
        return {escape_unprintable(key): _in_printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_in_printable(item) for item in value]
    return escape_unprintable(value) if isinstance(value, str) else value


def _is_score(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 1 << 53  # more than that no float holds
    return value is None or (isinstance(value, float) and value > -math.inf)  # not nan either


def _without_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(item) for item in value]
    return "inf" if isinstance(value, float) and value == math.inf else value
