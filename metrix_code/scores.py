"""scores.json, which each evaluation writes next to its derained images and from which the tables are made.

    dataset          "Rain200H", ...: as recognised
    method           "SID" (the teacher), "SSID-KD" (the student), or as given by the user
    self_ensemble    true: mean over eight flips and rotations
    simulated        true: rendered rain, which is never listed among real benchmarks
    trained_on       from the checkpoint: dataset, stage, data (lines), real_path, and released (true for the
                     authors' checkpoints)
    seen             why the scored images are not new to the model, or ""
    checkpoint, checkpoint_step, data_path, tile, precision, command, hardware, date
    images_expected  number of images in the official test set, or null
    images_found     number of images in this one
    images           one record per image: name, file (relative to the results folder), seconds, its scores
    mean             the scores averaged over the images, see `average`

Scores are stored under the keys of metrics.py, those that were measured. JSON has no infinity: it is stored
as the string "inf".
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metrix_code.metrics import KEYS, METRICS, PRINTED_METRICS
from metrix_code.protocol import mean
from utils import file_errors, write_text

SCORES = "scores.json"
UNKNOWN = "unknown"  # method or training set: neither the checkpoint nor the user tells


def average(images: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean of each score and of the seconds; "infinite" counts, by key, the values left out as infinite."""
    means = {key: mean(image.get(key) for image in images) for key in (*KEYS, "seconds")}
    infinite = {key: count for key, (_, count) in means.items() if count}
    return {key: value for key, (value, _) in means.items()} | {"infinite": infinite}


def scores_line(row: dict[str, Any]) -> str:
    """The scores of an image, or their means, in one line."""
    parts = [row["name"]] if "name" in row else []
    for metric in PRINTED_METRICS:
        value, of_rainy = row.get(metric.key), row.get(metric.rainy_key)
        if value is not None:
            unit = f" {metric.unit}" if metric.unit else ""
            besides = "" if of_rainy is None else f" (rainy {metric.text(of_rainy)})"
            parts.append(f"{metric.title} {metric.text(value)}{unit}{besides}")
    return "  ".join(parts)


def average_line(images: Sequence[dict[str, Any]]) -> str:
    """The means in one line, with what they leave out: infinite scores, and scores that an image lacks."""
    means = average(images)
    left_out = [f"infinite {key}: {count}" for key, count in means["infinite"].items()]
    for key in (each for each in METRICS if means[each] is not None):
        if missing := sum(image.get(key) is None for image in images):
            left_out.append(f"no {key}: {missing}")
    return scores_line(means) + (f"  (left out: {', '.join(left_out)})" if left_out else "")


def write_scores(folder: Path, scores: dict[str, Any]) -> Path:
    """Writes `folder`/scores.json atomically and returns its path."""

    def in_json(record: dict[str, Any]) -> dict[str, Any]:
        return {key: "inf" if value == math.inf else value for key, value in record.items()}

    scores = scores | {"images": [*map(in_json, scores["images"])], "mean": in_json(scores["mean"])}
    path = folder / SCORES
    write_text(path, json.dumps(scores, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def read_scores(path: Path) -> dict[str, Any]:
    """Reads a scores.json. Raises UserError if it is unreadable, or not one that an evaluation wrote."""
    kinds = (ValueError, KeyError, TypeError, AttributeError)
    with file_errors(path, "evaluate again, or delete the file", done="read as scores", kinds=kinds):
        scores = json.loads(path.read_bytes())
        for record in (*scores["images"], scores["mean"]):
            record |= {key: math.inf for key, value in record.items() if value == "inf"}
    return scores
