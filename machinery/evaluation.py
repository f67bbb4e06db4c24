"""What every eval script does: derain a whole test set, score it, write scores.json and the page.

A table reports exactly what was measured. Method and training set come from the checkpoint, the dataset from
its folder; the rest is given by the user or recorded as unknown.
"""

import itertools
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import utils
from config import Evaluation, Training, preset_words
from datasets import catalogue
from datasets.layouts import claimed_by, find_images, find_pairs, recognised
from datasets.pairs import ListedPairs, Pair, PairSet, check_pairs, merged, read_pair, sample
from DerainDataset import Crops, find_set
from machinery import distributed
from machinery.checkpoints import LATEST, ROOT, SHIPPED
from machinery.inference import Derainer, hardware
from machinery.options import parse
from metrix_code.folders import images_in, matched_results
from metrix_code.metrics import KEYS, METRICS
from metrix_code.page import PageWriter
from metrix_code.protocol import size
from metrix_code.scores import SCORES, UNKNOWN, average, average_line, scores_line, write_scores
from utils import UserError, digest_of, escape_unprintable, file_errors, read_image, to_tensor, to_uint8

# What an evaluation scores: a network, or another method's derained images by the names of their pairs.
Model = Derainer | Mapping[str, Path]


class Scored(NamedTuple):
    """The images of a pair, uint8 RGB (H, W, 3), and the scores of the derained one."""

    rainy: np.ndarray
    clean: np.ndarray | None  # None: a real photograph
    derained: np.ndarray
    scores: dict[str, float | None]  # by the keys of metrics.py; None: undefined for this image; "seconds"
    remarks: list[str]  # why a score is None


# --------------------------------------------------------------------------------------------- a whole set


def evaluate(record: Evaluation) -> None:
    """Runs an eval script: scores `record` with the command line's changes, and exits the process."""

    def main() -> None:
        options, stop = parse(record), distributed.Stop()
        stop.listen()
        score(options, distributed.device(options), stop)
        if stop.asked:
            raise KeyboardInterrupt

    utils.run(main)


def score(options: Evaluation, device: torch.device, stop: distributed.Stop | None = None) -> dict[str, Any]:
    """Writes derained images, scores.json and index.html; prints and returns the scores.

    PSNR and SSIM are of the saved 8-bit images, in every protocol of metrix_code/protocol.py. A set without
    clean images gets neither.
    Images that cannot be read or derained are skipped and reported by a UserError at the end. If anything
    ends the evaluation early, the scores so far are written.
    """
    derainer = None
    if options.derained == Path():
        remedy = f"train one with {options.made_by}{preset_words(options.preset)}, or give --logdir"
        if (ROOT / options.with_preset("light").logdir / SHIPPED / LATEST).exists():
            remedy += ", or --preset light for the shipped LightNet"
        how = {key: getattr(options, key) for key in ("precision", "tile", "self_ensemble")}
        derainer = Derainer.open(options.logdir, device, remedy=remedy, **how)
    found = find_test_set(options)
    model = derainer or results_in(options.derained, found)
    labels = labels_of(model, found, options)
    if derainer:
        labels |= {"precision": options.precision, "tile": options.tile, "hardware": hardware(device)}
        print(f"on {device}: {labels['hardware']}, {options.precision}")
    pairs = [pair for pair in found.pairs if isinstance(model, Derainer) or pair.name in model]
    folder = place_for(options.save_path, labels)
    lines = describe(model, found, labels, options)
    print("\n".join(lines))
    prepare_folder(folder, labels, options.derained)
    page = page_of(folder, labels, lines) if options.page else None
    metrics = [key for key in KEYS if options.niqe or METRICS[key.removeprefix("rainy_")].against]
    rows: list[dict[str, Any]] = []
    failures: list[UserError] = []
    try:
        for pair in tqdm(pairs, unit="image", disable=None):  # None: no progress bar in a log file
            if stop and stop.asked:
                break
            try:
                each = score_pair(pair, model, metrics)
            except UserError as error:
                failures.append(error)
                tqdm.write(f"{pair.name}  not scored: {error}")
                continue
            row = {"name": pair.name, "file": f"{pair.name}.png", **each.scores}
            utils.write_image(folder / row["file"], each.derained)
            rows.append(row)
            for line in (scores_line(row), *each.remarks):
                tqdm.write(line)
            if page:  # last: if the disk is full, the score is kept
                page.add(row, each.rainy, each.derained, each.clean)
    finally:
        result = labels | {"images": rows, "mean": average(rows)}
        if not rows:
            (folder / SCORES).unlink(missing_ok=True)
        else:  # written before anything is printed: the terminal may be gone
            written = [write_scores(folder, result), *([page.finish()] if page else [])]
            print(f"average of {len(rows)}: {average_line(rows)}")
            print(f"written: {', '.join(map(str, written))}")
    if failures:
        raise UserError(f"{len(failures)} of {len(pairs)} images were not scored, the first: {failures[0]}")
    return result


def find_test_set(options: Evaluation, dataset: str = "") -> PairSet:
    """The test images. The expected count is that of the recognised set, not of the script's."""
    if options.labelled:
        found = find_pairs(options.data_path, "test", dataset or options.dataset, options.rainy_side)
    else:
        found = find_images([options.data_path], dataset or options.dataset, "--data_path")
    told = recognised(found)
    return found if dataset or told in ("", options.dataset) else find_test_set(options, told)


def results_in(folder: Path, found: PairSet) -> dict[str, Path]:
    """Derained images of any method in `folder`, by the names of their pairs.

    Raises UserError if two match one image of the set.
    """
    names = {pair.rainy.path: pair.name for pair in found.pairs}
    results: dict[str, Path] = {}
    for file, rainy in matched_results(images_in(folder, "--derained"), list(names)):
        if (earlier := results.setdefault(names[rainy], file)) != file:
            raise UserError(f"{earlier} and {file} both match {rainy}: remove one of them")
    return results


# ------------------------------------------------------------------------------------ where results go


def place_for(save_path: Path, labels: Mapping[str, Any]) -> Path:
    """`save_path` with {dataset} and {method} filled in."""
    method = labels["method"] + ("+self-ensemble" if labels["self_ensemble"] else "")
    text = str(save_path)
    for field, value in (("{dataset}", labels["dataset"]), ("{method}", method)):
        text = text.replace(field, re.sub(r"[^\w+-]", "_", value))
    return Path(text)


def prepare_folder(folder: Path, labels: Mapping[str, Any], derained: Path) -> None:
    """Makes an empty results folder and marks it as ours by a scores.json without images.

    An earlier evaluation's folder is renamed as a whole: no result is lost, and models are never mixed.
    Raises UserError for a folder of anything else, as that of the inputs, and for that of --derained.
    """
    if derained.name and derained.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"--save_path {folder} contains the input {derained}: give another folder")
    with file_errors(folder, done="made"):
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / SCORES).exists():
            names = (folder.with_name(f"{folder.name}-earlier-{n}") for n in itertools.count(1))
            aside = next(path for path in names if not path.exists())
            folder.rename(aside)
            folder.mkdir()
            print(f"{folder}: the earlier results are now in {aside}")
        elif any(not each.name.startswith(".") for each in folder.iterdir()):
            raise UserError(f"--save_path {folder} contains files of something else: give another folder")
    write_scores(folder, {**labels, "images": [], "mean": average([])})


# ------------------------------------------------------------------------------------------------- labels


def labels_of(model: Model, found: PairSet, options: Evaluation) -> dict[str, Any]:
    """What scores.json says about method and set. Raises UserError if a folder of results has no --method."""
    derainer = model if isinstance(model, Derainer) else None
    if not derainer and not options.method:
        raise UserError(f"--derained {options.derained}: name the method of these images, --method NAME")
    content = derainer.content if derainer else {}
    recipe = content.get("recipe", {})
    stage = escape_unprintable(recipe.get("stage", UNKNOWN))
    backbone = content.get("network", {}).get("backbone", "DerainNet")
    # the scores of another network must not pass for those of the paper's
    method = options.method or stage + ("" if backbone == "DerainNet" else f"-{backbone}")
    sets, trained_for = recipe.get("data_path", []), recipe.get("dataset", UNKNOWN)
    # early checkpoints record one folder as a text
    if not isinstance(sets, str) and len(sets) > 1 and trained_for in catalogue.CATALOGUE:
        trained_for = " + ".join(Path(each).name for each in sets)
    trained_on = {
        "dataset": options.trained_on or escape_unprintable(trained_for),
        "stage": recipe.get("stage") and stage,
        "data": list(map(escape_unprintable, content.get("data", []))),
        "real_path": list(map(escape_unprintable, recipe.get("real_path", []))),
        "released": bool(content.get("released")),
    }
    dataset = name_of_set(found, options)
    return {
        "dataset": dataset,
        "method": method,
        "self_ensemble": bool(derainer) and options.self_ensemble,
        "simulated": catalogue.is_simulated(options.data_path, dataset),
        "trained_on": trained_on,
        "seen": seen_in_training(found, dataset, trained_on, method),
        "checkpoint": str(derainer.path) if derainer else None,
        "checkpoint_step": content.get("step", 0),
        "data_path": str(options.data_path),
        "images_expected": catalogue.get_entry(dataset).counts.get("test"),
        "images_found": len(found.pairs),
        "command": distributed.command(),
        "date": date.today().isoformat(),
    }


def name_of_set(found: PairSet, options: Evaluation) -> str:
    """--set_name, else the set named by the folders, else the script's if counts agree, else the folder."""
    official = catalogue.get_entry(options.dataset).counts.get("test")
    script = options.dataset if official == len(found.pairs) else ""
    return options.set_name or recognised(found) or script or options.data_path.resolve().name


def seen_in_training(found: PairSet, dataset: str, trained_on: Mapping[str, Any], method: str) -> str:
    """How the images were seen in training, according to the checkpoint; "" if they were not."""
    place = found.root.resolve()
    for line in trained_on["data"]:
        what, _, folder = line.rpartition(" from ")
        used = Path(folder).resolve()
        # backgrounds may be a part of the set, or contain it
        near = place.is_relative_to(used) or used.is_relative_to(place)
        if place == used or (what.startswith("backgrounds:") and near):
            return f"it was trained on the images in {folder}"
    for path in map(Path, trained_on["real_path"]):
        if claimed_by(path) == dataset and "train" not in catalogue.get_entry(dataset).counts:
            return f"it was trained on {path}, which is {dataset}"
        if (dataset, claimed_by(path)) == ("Real275", "Internet"):
            return f"it was trained on {path}, of which 59 images are near-duplicates of these"
        if count := count_in(found.pairs, path):
            return f"it was trained on {path}, which contains {count} of these {len(found.pairs)} images"
    if trained_on["released"] and dataset == "Real275" and method != "SID":
        return "the paper trains its students on Real-275"
    return ""


def count_in(scored: Sequence[Pair], folder: Path) -> int:
    """How many of the scored rainy images are in a folder trained on, by content: a set may have been copied.

    0 for a folder that is not here, and for a list of training images: hundreds of thousands.
    """
    try:
        trained = find_images([folder], option="--real_path").pairs
    except UserError:
        return 0
    if isinstance(trained, ListedPairs):
        return 0
    own, theirs = (
        [pair.rainy.path for pair in pairs if pair.rainy.path.is_file()] for pairs in (scored, trained)
    )
    sizes = {path.stat().st_size for path in own}
    seen = {digest_of(path) for path in theirs if path.stat().st_size in sizes}
    return sum(digest_of(path) in seen for path in own) if seen else 0


# --------------------------------------------------------------------------------------------- in words


def describe(model: Model, found: PairSet, labels: Mapping[str, Any], options: Evaluation) -> list[str]:
    """The lines to print first: the model, the set, warnings."""
    if isinstance(model, Derainer):
        trained_on = labels["trained_on"]["dataset"]
        line = f"model: {model.path}, step {labels['checkpoint_step']}, {labels['method']}"
        line += f", trained on {trained_on}"
        if UNKNOWN in (labels["method"], trained_on):
            line += " (not recorded in the checkpoint: give --method and --trained_on)"
    else:
        line = f"results of {labels['method']}: {len(model)} images in {options.derained}"
    # unreadable images are reported when they are scored
    warnings = check_pairs(found) if options.labelled else list(found.warnings)
    if not labels["simulated"] and labels["dataset"] != options.dataset:
        warnings.append(f"scored as {labels['dataset']}, not as {options.dataset}: see --set_name")
    if labels["seen"]:
        warnings.append(f"not new to this model, and marked TRAINED ON in the tables: {labels['seen']}")
    return [line, found.describe(), *(f"warning: {each}" for each in warnings)]


def page_of(folder: Path, labels: Mapping[str, Any], lines: Sequence[str]) -> PageWriter:
    """The page; the printed `lines` and how the scores were measured stand above its images."""
    title = f"{labels['dataset']}: {labels['method']}"
    title += ", mean over eight flips and rotations" * labels["self_ensemble"]
    title += ", simulated rain" * labels["simulated"]
    measured = [labels[key] for key in ("date", "hardware", "precision") if key in labels]
    return PageWriter(
        folder, title, "\n".join([*lines, f"measured: {', '.join(measured)}", labels["command"]])
    )


# --------------------------------------------------------------------------------------------- image by image


def score_pair(pair: Pair, model: Model, metrics: Sequence[str]) -> Scored:
    """Reads the images of a pair, derains the rainy one unless that is done, and scores the result.

    `metrics` are keys of metrics.py; those that need an image which there is not are left out. Raises
    UserError if an image cannot be read, if a result has another size than its rainy image, and for NaN or
    Inf from the network.
    """
    rainy, clean = read_pair(pair)
    scores: dict[str, float | None] = {}
    output: np.ndarray | None = None
    if isinstance(model, Derainer):
        start = time.perf_counter()
        tensor = model.derained(to_tensor(rainy))  # (3, H, W), not clamped
        scores["seconds"] = time.perf_counter() - start
        derained, output = to_uint8(tensor), 255 * tensor.permute(1, 2, 0).numpy()
    else:
        path = model[pair.name]
        derained = read_image(path)
        if derained.shape != rainy.shape:
            own, other = size(derained), size(rainy)
            raise UserError(f"{path} is {own}, {pair.rainy.path} is {other}: not a result of that image")
    remarks = []
    for key in metrics:
        metric = METRICS[key.removeprefix("rainy_")]
        image = output if metric.of_output else derained if key == metric.key else rainy
        against = {"clean": clean, "rainy": rainy, "": rainy}[metric.against]
        if image is None or against is None:
            continue
        try:
            scores[key] = metric(image, against.astype(image.dtype, copy=False))
        except UserError as error:  # too small, no texture
            scores[key] = None
            remarks.append(f"no {metric.name}{'' if key == metric.key else ' of the rainy image'}: {error}")
    return Scored(rainy, clean, derained, scores, remarks)


# --------------------------------------------------------------------------------- validation of a training


def validation_set(recipe: Training, crops: Crops) -> tuple[PairSet | None, list[str]]:
    """The pairs that a training is validated on, and lines to print: the pairs held back, or test pairs.

    At most `val_images` test pairs; None if there are none apart from those that the crops are drawn from.
    """
    if crops.held_back:
        return crops.held_back, [f"validation: {len(crops.held_back.pairs)} training pairs, held back"]
    sets, notes = [], []
    for path in recipe.data_path:
        try:
            found = find_set(recipe, path, "test")
            if found.root in crops.roots:
                raise UserError(f"{found.root} is not divided into training and test pairs")
        except UserError as error:
            notes.append(f"not validated on: {error}")
            continue
        sets.append(found)
        if recipe.val_every:
            notes.append(f"validation: {found.describe()}")
            notes += [f"warning: {each}" for each in check_pairs(found)]
    if not sets:
        return None, notes
    found = merged(sets)
    if 0 < recipe.val_images < len(found.pairs):
        found = replace(found, pairs=[found.pairs[i] for i in sample(len(found.pairs), recipe.val_images)])
    return found, notes


def mean_scores(
    derainer: Derainer, found: PairSet, recipe: Training, world: distributed.World
) -> tuple[dict[str, float], str]:
    """Mean PSNR and SSIM over the pairs, and a line to print. Each process scores a share of the pairs."""
    mine = {
        i: score_pair(found.pairs[i], derainer, ("psnr", "ssim")).scores
        for i in range(world.rank, len(found.pairs), world.size)
    }
    scores = distributed.gathered(mine, world)
    of = ", simulated rain" if any(map(catalogue.is_simulated, recipe.data_path)) else ""
    means = average(scores)
    return {key: means[key] for key in ("psnr", "ssim")}, f"{average_line(scores)} (RGB{of})"
