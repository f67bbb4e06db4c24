"""Derained images and their scores: what every eval script does."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import utils
from config import Evaluation
from datasets.layouts import OFFICIAL, Found, check_pairs, find_images, find_pairs, is_simulated, read_pair
from inference import derain, hardware, place
from machinery import distributed
from machinery.checkpoints import open_network
from machinery.options import parse
from metrix_code.metrics import METRICS, OF_RECORD
from metrix_code.page import PageWriter
from metrix_code.scores import average, write_scores
from utils import UserError, to_tensor, to_uint8


def evaluate(record: Evaluation) -> None:
    """What an eval script is: derains and scores, with the command line's changes, and exits the process."""

    def main() -> None:
        options = parse(record, sys.modules["__main__"].__doc__ or "")
        score(options, distributed.devices(options)[0])

    utils.run(main)


def score(options: Evaluation, device: torch.device) -> dict[str, Any]:
    """Writes derained images under their input's name, scores.json and index.html; prints and returns scores.

    PSNR and SSIM are of the 8-bit images as saved (RGB, the protocol of record), and besides of the float
    output and of Y. A set without clean images has none of them.
    """
    script = "_real" if options.method == "SSID-KD" else ""
    remedy = f"train one with train_{options.trained_on}{script}.py, or give --logdir"
    net, content = open_network(options.logdir, remedy)
    place(net, device)
    if options.labelled:
        found = find_pairs(options.data_path, "test", options.dataset, options.rainy_side)
    else:
        found = find_images([options.data_path], options.dataset)
    print(f"model: {content['path']}, step {content.get('step', 0)}")
    print(found.describe())
    for warning in check_pairs(found):
        print(f"warning: {warning}")
    simulated = is_simulated(options.data_path)
    about = f"{content['path']}, step {content.get('step', 0)}. PSNR and SSIM: RGB, 8 bits, as saved."
    title = f"{options.dataset}: {options.method}{', simulated rain' if simulated else ''}"
    page = PageWriter(options.save_path, title, about) if options.page else None
    images = []
    ahead = DataLoader(WholePairs(found), batch_size=None, collate_fn=as_it_is, num_workers=options.workers)
    # disable=None: in a log file the lines of the images are progress enough
    for pair, sides in zip(found.pairs, tqdm(ahead, unit="image", disable=None), strict=True):
        if isinstance(sides, UserError):
            raise UserError(str(sides))
        rainy, clean = sides
        began = time.perf_counter()
        output = derain(net, to_tensor(rainy), options, device).derained[0]
        seconds = time.perf_counter() - began
        derained = to_uint8(output)
        file = f"{pair.name}.png"
        utils.write_image(options.save_path / file, derained)
        row = {"name": pair.name, "file": file, "seconds": seconds}
        row |= scores_of(output, derained, rainy, clean, options.niqe)
        images.append(row)
        tqdm.write(in_words(row))
        if page:
            page.add(row, rainy, derained, clean)
    result = {
        "dataset": options.dataset,
        "method": options.method,
        "simulated": simulated,
        "images_expected": OFFICIAL.get(options.dataset, {}).get("test"),
        "images_found": len(found.pairs),
        "checkpoint": str(content["path"]),
        "checkpoint_step": content.get("step", 0),
        "data_path": str(options.data_path),
        "command": shlex.join(["python", *sys.argv]),
        "hardware": hardware(device),
        "date": date.today().isoformat(),
        "images": images,
        "mean": average(images),
    }
    print(f"average of {len(images)}: {in_words(result['mean'])}{left_out(images, result['mean'])}")
    print(f"written: {write_scores(options.save_path, result)}")
    if page:
        print(f"to look at: {page.finish()}")
    return result


class WholePairs(Dataset):
    """Whole pairs, for workers to read ahead."""

    def __init__(self, found: Found) -> None:
        self.pairs = found.pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | None] | UserError:
        # raised in a worker, it would reach the user as a traceback of many lines
        try:
            return read_pair(self.pairs[index])
        except UserError as error:
            return error


def as_it_is(item: Any) -> Any:
    return item  # arrays: the loader's own way would make tensors of them


def scores_of(
    output: Tensor, derained: np.ndarray, rainy: np.ndarray, clean: np.ndarray | None, with_niqe: bool
) -> dict[str, float | None]:
    """An image's scores by the names that scores.json has for them."""
    values: dict[str, float | None] = {}
    for key, metric in METRICS.items():
        if (metric.paired and clean is None) or not (metric.paired or with_niqe):
            continue
        sides = [(key, derained), (metric.rainy_key, rainy)]
        against = clean
        if metric.of_output and clean is not None:
            sides, against = [(key, output.permute(1, 2, 0).numpy())], clean.astype(np.float32) / 255
        for name, image in sides:
            try:
                values[name] = metric(image, against)
            except UserError as error:  # too small or too plain for it: the rest is still scored
                tqdm.write(f"no {metric.name}: {error}")
                values[name] = None
    return values


def in_words(row: dict[str, Any]) -> str:
    """An image's scores, or their means, in a line: those that there are."""
    parts = [row["name"]] if "name" in row else []
    for metric in OF_RECORD:
        value, of_rainy = row.get(metric.key), row.get(metric.rainy_key)
        if value is not None:
            unit = f" {metric.unit}" if metric.unit else ""
            besides = "" if of_rainy is None else f" (rainy {metric.text(of_rainy)})"
            parts.append(f"{metric.title} {metric.text(value)}{unit}{besides}")
    return "  ".join(parts)


def left_out(images: Sequence[dict[str, Any]], mean: dict[str, Any]) -> str:
    """What the means do not hold: infinite scores, and those that could not be measured."""
    parts = [f"infinite {key}: {count}" for key, count in mean["infinite"].items()]
    for key in (each for each in METRICS if mean[each] is not None):
        if missing := sum(image.get(key) is None for image in images):
            parts.append(f"no {key}: {missing}")
    return f"  (left out: {', '.join(parts)})" if parts else ""
