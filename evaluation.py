"""Derained images and their scores: what every eval script does."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
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
from datasets.pairs import Found, Pair, check_pairs, read_pair
from inference import Derainer, hardware
from machinery import distributed
from machinery.options import parse
from metrix_code.metrics import METRICS, OF_RECORD, Metric
from metrix_code.page import PageWriter
from metrix_code.scores import FILE, average, write_scores
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
    script = "_real" if options.stage == "SSID-KD" else ""
    remedy = f"train one with train_{options.trained_on}{script}.py, or give --logdir"
    derainer = Derainer.open(
        options.logdir,
        device,
        remedy=remedy,
        precision=options.precision,
        tile=options.tile,
        self_ensemble=options.self_ensemble,
    )
    if options.labelled:
        found = find_pairs(options.data_path, "test", options.dataset, options.rainy_side)
    else:
        found = find_images([options.data_path], options.dataset)
    refuse_inputs_as_results(found, options.save_path)
    what = labels(options, derainer, found)
    print(f"model: {what['method']}, {derainer.path}, step {derainer.content['step']}")
    print(found.describe())
    for warning in [*check_pairs(found), *([what["seen"]] if what["seen"] else [])]:
        print(f"warning: {warning}")
    # no old score may stand beside a new picture, should this run be cut short
    old = options.save_path / FILE
    if old.exists():
        old.replace(old.with_suffix(".old.json"))
    about = f"{derainer.path}, step {derainer.content['step']}. PSNR and SSIM: RGB, 8 bits, as saved."
    title = f"{what['dataset']}: {what['method']}{', simulated rain' if what['simulated'] else ''}"
    page = PageWriter(options.save_path, title, about) if options.page else None
    metrics = [key for key, metric in METRICS.items() if metric.paired or options.niqe]
    scored = score_pairs(derainer, found.pairs, metrics, workers=options.workers, of_rainy=True)
    images: list[dict[str, Any]] = []
    try:
        # disable=None: in a log file the lines of the images are progress enough
        for each in tqdm(scored, total=len(found.pairs), unit="image", disable=None):
            clean_name = each.pair.clean.path.stem if options.clean_names and each.pair.clean else ""
            file = f"{clean_name or each.pair.name}.png"
            utils.write_image(options.save_path / file, each.derained)
            images.append({"name": each.pair.name, "file": file, "seconds": each.seconds, **each.scores})
            tqdm.write(in_words(images[-1]))
            if page:
                page.add(images[-1], each.rainy, each.derained, each.clean)
    finally:  # what was measured before an image that cannot be read, or Ctrl-C, is kept
        result = {
            **what,
            "images_found": len(found.pairs),
            "command": shlex.join(["python", *sys.argv]),
            "hardware": hardware(device),
            "date": date.today().isoformat(),
            "images": images,
            "mean": average(images),
        }
        if images:
            print(f"average of {len(images)}: {in_words(result['mean'])}{left_out(images, result['mean'])}")
            print(f"written: {write_scores(options.save_path, result)}")
    if page:
        print(f"to look at: {page.finish()}")
    return result


def labels(options: Evaluation, derainer: Derainer, found: Found) -> dict[str, Any]:
    """What the scores are of, by what was run: the checkpoint and the folder say it, not the script's name.

    The authors' checkpoints do not tell their stage: --method does, or it is left open.
    """
    recipe = derainer.content["recipe"]
    told = "released, stage not told" if derainer.content.get("released") else "method not told"
    data_path = options.data_path.resolve()
    trained_with = [recipe.get("data_path", ""), *(recipe.get("real_path") or [])]
    seen = [path for path in trained_with if path and Path(path).resolve() == data_path]
    return {
        "dataset": recognised(options, found),
        "method": options.method or recipe.get("stage") or told,
        "self_ensemble": options.self_ensemble,
        "simulated": is_simulated(options.data_path),
        "trained_on": {
            "dataset": recipe.get("dataset"),
            "data": derainer.content["data"],
            "real_path": recipe.get("real_path"),
        },
        # pairs of one folder are divided into training and test ones; unlabelled images are not
        "seen": f"{seen[0]} was trained on as real rain" if seen and not options.labelled else "",
        "images_expected": catalogue.of(recognised(options, found)).counts.get("test"),
        "checkpoint": str(derainer.path),
        "checkpoint_step": derainer.content["step"],
        "data_path": str(options.data_path),
        "tile": options.tile,
        "precision": options.precision,
    }


def recognised(options: Evaluation, found: Found) -> str:
    """The set that the folder's names mean, where they mean one; else the script's."""
    folders = "/".join(found.root.resolve().parts[-3:])
    claimed = [name for name, entry in catalogue.CATALOGUE.items() if entry.claims(folders)]
    return claimed[0] if len(claimed) == 1 else options.dataset


def refuse_inputs_as_results(found: Found, save_path: Path) -> None:
    """Raises UserError where a derained image would come to lie among the images to derain."""
    for folder in {pair.rainy.path.parent.resolve() for pair in found.pairs[:1000]}:
        if folder == save_path.resolve():
            raise UserError(f"--save_path {save_path} is the folder of the rainy images: give another")


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
    derainer: Derainer,
    pairs: Sequence[Pair],
    metrics: Sequence[str],
    *,
    workers: int = 0,
    of_rainy: bool = False,
) -> Iterator[Scored]:
    """Derains `pairs` one by one, read ahead by `workers`, and scores them: validation and eval alike.

    `metrics` are keys of METRICS; `of_rainy`: of the rainy input too. Raises UserError where the network
    gives what is no number.
    """
    ahead = DataLoader(WholePairs(pairs), batch_size=None, collate_fn=as_it_is, num_workers=workers)
    for pair, (rainy, clean) in zip(pairs, ahead, strict=True):
        began = time.perf_counter()
        output = derainer.derained(to_tensor(rainy))
        seconds = time.perf_counter() - began
        if not torch.isfinite(output).all():
            raise UserError(f"{pair.rainy.path}: the network gives what is no number: train anew")
        derained = to_uint8(output)
        scores: dict[str, float | None] = {}
        for metric in (METRICS[key] for key in metrics):
            if metric.paired and clean is None:
                continue
            sides, against = [(metric.key, derained)], clean
            if metric.of_output and clean is not None:
                sides = [(metric.key, output.permute(1, 2, 0).numpy())]
                against = clean.astype(np.float32) / 255
            elif of_rainy:
                sides.append((metric.rainy_key, rainy))
            for name, image in sides:
                scores[name] = or_none(metric, image, against)
        yield Scored(pair, rainy, clean, output, derained, scores, seconds)


def or_none(metric: Metric, image: np.ndarray, against: np.ndarray | None) -> float | None:
    """A score, or None where the image is too small or too plain for it: the rest is still scored."""
    try:
        return metric(image, against)
    except UserError as error:
        tqdm.write(f"no {metric.name}: {error}")
        return None


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
