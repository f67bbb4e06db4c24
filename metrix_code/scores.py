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

from metrix_code.metrics import KEYS
from metrix_code.protocol import mean
from utils import file_errors, write_text

SCORES = "scores.json"
UNKNOWN = "unknown"  # method or training set: neither the checkpoint nor the user tells


def average(images: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean of each score and of the seconds; "infinite" counts, by key, the values left out as infinite."""
    means = {key: mean(image.get(key) for image in images) for key in (*KEYS, "seconds")}
    infinite = {key: count for key, (_, count) in means.items() if count}
    return {key: value for key, (value, _) in means.items()} | {"infinite": infinite}


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
    remedy = "evaluate again, or delete the file"
    kinds = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
    with file_errors(path, remedy, done="read as scores", kinds=kinds):
        scores = json.loads(path.read_bytes())
        texts, records = [scores["dataset"], scores["method"]], [*scores["images"], scores["mean"]]
        if not all(isinstance(text, str) for text in texts) or not isinstance(scores["simulated"], bool):
            raise ValueError("not as an evaluation writes it")
        for record in records:
            record |= {key: math.inf for key, value in record.items() if value == "inf"}
    return scores
