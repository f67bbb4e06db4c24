"""Derained images and their scores: what every eval script does."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import utils
from config import Evaluation
from datasets import catalogue
from datasets.catalogue import is_simulated
from datasets.layouts import find_images, find_pairs
from datasets.pairs import Pair, check_pairs, read_pair
from inference import Derainer, hardware
from machinery import distributed
from machinery.options import parse
from metrix_code.niqe import niqe
from metrix_code.page import PageWriter
from metrix_code.psnr import psnr
from metrix_code.scores import METRICS, average, write_scores
from metrix_code.ssim import ssim
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
    derainer = Derainer.open(options.logdir, device, remedy=remedy, precision=options.precision)
    content = derainer.content
    if options.labelled:
        found = find_pairs(options.data_path, "test", options.dataset, options.rainy_side)
    else:
        found = find_images([options.data_path], options.dataset)
    print(f"model: {derainer.path}, step {content.get('step', 0)}")
    print(found.describe())
    for warning in check_pairs(found):
        print(f"warning: {warning}")
    simulated = is_simulated(options.data_path)
    about = f"{derainer.path}, step {content.get('step', 0)}. PSNR and SSIM: RGB, 8 bits, as saved."
    title = f"{options.dataset}: {options.method}{', simulated rain' if simulated else ''}"
    page = PageWriter(options.save_path, title, about) if options.page else None
    images = []
    metrics = ["psnr", "ssim", "psnr_float", "psnr_y", "rainy_psnr"] + ["niqe"] * options.niqe
    scored = score_pairs(derainer, found.pairs, metrics, options.workers)
    # disable=None: in a log file the lines of the images are progress enough
    for each in tqdm(scored, total=len(found.pairs), unit="image", disable=None):
        file = f"{each.pair.name}.png"
        utils.write_image(options.save_path / file, each.derained)
        row = {"name": each.pair.name, "file": file, "seconds": each.seconds, **each.scores}
        images.append(row)
        tqdm.write(in_words(row))
        if page:
            page.add(row, each.rainy, each.derained, each.clean)
    result = {
        "dataset": options.dataset,
        "method": options.method,
        "protocol": "RGB",
        "simulated": simulated,
        "images_expected": catalogue.of(options.dataset).counts.get("test"),
        "checkpoint": str(derainer.path),
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


class Scored(NamedTuple):
    """One image's way through a network. `clean` is None for a real photograph."""

    pair: Pair
    rainy: np.ndarray  # uint8 RGB (H, W, 3), like clean and derained
    clean: np.ndarray | None
    output: Tensor  # float (3, H, W), not clamped
    derained: np.ndarray
    scores: dict[str, float | None]
    seconds: float


def score_pairs(
    derainer: Derainer, pairs: Sequence[Pair], metrics: Sequence[str], workers: int = 0
) -> Iterator[Scored]:
    """Derains and scores `pairs` one by one, read ahead by so many processes."""
    ahead = DataLoader(WholePairs(pairs), batch_size=None, collate_fn=as_it_is, num_workers=workers)
    for pair, (rainy, clean) in zip(pairs, ahead, strict=True):
        began = time.perf_counter()
        output = derainer.derained(to_tensor(rainy))
        seconds = time.perf_counter() - began
        derained = to_uint8(output)
        scores = scores_of(output, derained, rainy, clean, metrics)
        yield Scored(pair, rainy, clean, output, derained, scores, seconds)


class WholePairs(Dataset):
    """Whole pairs, for workers to read ahead."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        return read_pair(self.pairs[index])


def as_it_is(item: Any) -> Any:
    return item  # arrays: the loader's own way would make tensors of them


def scores_of(
    output: Tensor,
    derained: np.ndarray,
    rainy: np.ndarray,
    clean: np.ndarray | None,
    metrics: Sequence[str],
) -> dict[str, float | None]:
    """An image's scores by the names that scores.json has for them."""
    values: dict[str, float | None] = {}
    if clean is not None and "psnr_y" not in metrics:
        values |= {"psnr": psnr(derained, clean), "ssim": ssim(derained, clean)}
    elif clean is not None:
        as_float = output.permute(1, 2, 0).numpy(), clean.astype(np.float32) / 255
        values |= {
            "psnr": psnr(derained, clean),
            "ssim": ssim(derained, clean),
            "psnr_float": psnr(*as_float, peak=1.0),
            "ssim_float": ssim(*as_float, peak=1.0),
            "psnr_y": psnr(derained, clean, "Y"),
            "ssim_y": ssim(derained, clean, "Y"),
            "rainy_psnr": psnr(rainy, clean),
            "rainy_ssim": ssim(rainy, clean),
        }
    if "niqe" in metrics:
        values |= {"niqe": niqe_or_none(derained), "rainy_niqe": niqe_or_none(rainy)}
    return values


def niqe_or_none(image: np.ndarray) -> float | None:
    """NIQE, or None where the image is too small or too plain for it: the rest of the set is still scored."""
    try:
        return niqe(image)
    except UserError as error:
        tqdm.write(f"no NIQE: {error}")
        return None


def in_words(row: dict[str, Any]) -> str:
    """An image's scores, or their means, in a line: those that there are."""
    parts = [row["name"]] if "name" in row else []
    for metric, title, digits, unit in (
        ("psnr", "PSNR", 4, " dB"),
        ("ssim", "SSIM", 5, ""),
        ("niqe", "NIQE", 4, ""),
    ):
        value, of_rainy = row.get(metric), row.get(f"rainy_{metric}")
        if value is not None:
            besides = "" if of_rainy is None else f" (rainy {of_rainy:.{digits}f})"
            parts.append(f"{title} {value:.{digits}f}{unit}{besides}")
    return "  ".join(parts)


def left_out(images: Sequence[dict[str, Any]], mean: dict[str, Any]) -> str:
    """What the means do not hold: infinite scores, and those that could not be measured."""
    parts = [f"infinite {metric}: {count}" for metric, count in mean["infinite"].items()]
    for metric in (each for each in METRICS if mean[each] is not None):
        if missing := sum(image.get(metric) is None for image in images):
            parts.append(f"no {metric}: {missing}")
    return f"  (left out: {', '.join(parts)})" if parts else ""
