"""A whole set's derained images, scores and page: what every eval script does.

No cell of a table may say something else than what was measured. So the labels are not the script's: the
method and what it was trained on come from the checkpoint, the dataset from the folder. What these do not
tell the user may, and else it stays open.
"""

import itertools
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

import utils
from config import Evaluation, Training, preset_words
from datasets import catalogue
from datasets.catalogue import is_simulated
from datasets.layouts import claimed_by, find_images, find_pairs, recognised
from datasets.pairs import Pair, PairSet, check_pairs, match, merged, read_pair, sample
from DerainDataset import Crops, find_set
from inference import Derainer, hardware
from machinery import distributed
from machinery.distributed import World
from machinery.loading import Loader, begin_worker
from machinery.options import parse
from metrix_code.metrics import HEADLINE_METRICS, KEYS, METRICS
from metrix_code.page import PAGE, PageWriter
from metrix_code.scores import SCORES, UNKNOWN, average, write_scores
from metrix_code.tables import published
from utils import (
    UserError,
    escape_unprintable,
    file_errors,
    join_names,
    list_images,
    read_image,
    to_tensor,
    to_uint8,
)

# --------------------------------------------------------------------------------------------- image by image


class Scored(NamedTuple):
    """One image's way through a network, and its scores by the keys of metrics.py."""

    pair: Pair
    rainy: np.ndarray  # uint8 RGB (H, W, 3), like clean and derained
    clean: np.ndarray | None  # None: a real photograph
    output: Tensor | None  # float (3, H, W), not clamped; None: the derained image was read
    derained: np.ndarray
    scores: dict[str, float | None]  # None: not defined for this image
    seconds: float | None  # of the network
    remarks: Sequence[str]  # why a score is None


class Results(NamedTuple):
    """Derained images that lie in a folder, whatever made them: by their pair's name."""

    path: Path
    files: Mapping[str, Path]


def score_pairs(
    derainer: Derainer | Results,
    pairs: Sequence[Pair],
    metrics: Sequence[str],
    *,
    workers: int = 0,
    failed: Callable[[Pair, UserError], object] | None = None,
) -> Iterator[Scored]:
    """Derains `pairs` one after the other and scores them by `metrics`, keys of metrics.py.

    `workers` processes read ahead. `failed` is told of images that cannot be read, and the others go on;
    without it a UserError is raised. So it is, in any case, where the network gives what is no number.
    """
    images = Images(pairs, derainer.files if isinstance(derainer, Results) else {})
    ahead = iter(
        Loader(
            images,
            batch_size=None,
            collate_fn=as_it_is,
            num_workers=workers,
            worker_init_fn=begin_worker,
            generator=torch.Generator(),  # torch's global one is a training's
        )
    )
    for pair in pairs:
        try:
            rainy, clean, derained = next(ahead)
        except UserError as error:
            if failed is None:
                raise
            failed(pair, error)
            continue
        output, seconds = None, None
        if isinstance(derainer, Derainer):
            began = time.perf_counter()
            output = derainer.derained(to_tensor(rainy))
            seconds = time.perf_counter() - began
            derained = to_uint8(output)
        scores, remarks = scores_of(metrics, rainy=rainy, clean=clean, output=output, derained=derained)
        yield Scored(pair, rainy, clean, output, derained, scores, seconds, remarks)


class Images(Dataset):
    """Whole images, for workers to read ahead: rainy, clean or None, derained or None."""

    def __init__(self, pairs: Sequence[Pair], derained: Mapping[str, Path]) -> None:
        self.pairs, self.derained = pairs, derained

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        pair = self.pairs[index]
        rainy, clean = read_pair(pair)
        if not self.derained:
            return rainy, clean, None
        path = self.derained[pair.name]
        derained = read_image(path)
        if derained.shape != rainy.shape:
            ours, theirs = (f"{image.shape[1]}x{image.shape[0]}" for image in (derained, rainy))
            raise UserError(f"{path} is {ours}, and {pair.rainy.path} {theirs}: no result of that image")
        return rainy, clean, derained


def as_it_is(item: Any) -> Any:
    return item  # arrays: the loader's own way would make tensors of them


def scores_of(
    metrics: Sequence[str],
    *,
    rainy: np.ndarray,
    clean: np.ndarray | None,
    output: Tensor | None,
    derained: np.ndarray,
) -> tuple[dict[str, float | None], list[str]]:
    """An image's scores, those that its kind has, and why some of them are None: too small, too plain."""
    scores: dict[str, float | None] = {}
    remarks = []
    for key in metrics:
        metric = METRICS[key.removeprefix("rainy_")]
        image, against = (derained if key == metric.key else rainy), clean
        if metric.paired and clean is None:
            continue
        if metric.of_output:
            if output is None or clean is None:
                continue
            image, against = output.permute(1, 2, 0).numpy(), clean.astype(np.float32) / 255
        try:
            scores[key] = metric(image, against)
        except UserError as error:
            scores[key] = None
            remarks.append(f"no {metric.name}{'' if key == metric.key else ' of the rainy image'}: {error}")
    return scores, remarks


# ------------------------------------------------------------------------------------------- of a training


def validation_set(recipe: Training, crops: Crops) -> tuple[PairSet | None, list[str]]:
    """The pairs that a training is validated on, and lines for the user: those held back, or test pairs.

    Of these `val_images`. None where there are no test pairs beside those that the crops are drawn from.
    """
    if crops.held_back:
        return crops.held_back, [f"validation: {len(crops.held_back.pairs)} training pairs, held back"]
    sets, notes = [], []
    for path in recipe.data_path:
        try:
            found = find_set(recipe, path, "test")
        except UserError as error:
            notes.append(f"not validated on: {error}")
            continue
        if found.root in crops.roots:
            notes.append(f"not validated on: {found.root} is not divided into training and test pairs")
            continue
        sets.append(found)
        if recipe.val_every:
            notes.append(f"validation: {found.describe()}")
            notes += [f"warning: {each}" for each in check_pairs(found)]
    if not sets:
        return None, notes
    found = merged(sets)
    if not recipe.val_every:
        return found, notes  # some of them are shown in TensorBoard, and none is scored
    if 0 < recipe.val_images < len(found.pairs):
        found = replace(found, pairs=[found.pairs[i] for i in sample(len(found.pairs), recipe.val_images)])
    return found, notes


def mean_scores(
    derainer: Derainer, found: PairSet, recipe: Training, world: World
) -> tuple[dict[str, float], str]:
    """Mean PSNR and SSIM over the pairs, of which each process scores a share; and a line that says them."""
    mine = range(world.rank, len(found.pairs), world.size)
    scored = score_pairs(derainer, [found.pairs[i] for i in mine], ("psnr", "ssim"))
    scores = distributed.gathered({i: each.scores for i, each in zip(mine, scored, strict=True)}, world)
    means = average(scores)
    of = ", simulated rain" if any(map(is_simulated, recipe.data_path)) else ""
    infinite = means["infinite"].get("psnr", 0)
    besides = f"; {infinite} images without any error are left out" if infinite else ""
    line = f"PSNR {means['psnr']:.3f} dB, SSIM {means['ssim']:.4f} (RGB{of}{besides})"
    return {key: means[key] for key in ("psnr", "ssim")}, line


def evaluate(record: Evaluation) -> None:
    """What an eval script is: derains and scores, with the command line's changes, and exits the process."""

    def main() -> None:
        options = parse(record, sys.modules["__main__"].__doc__ or "")
        score(options, distributed.device(options))

    utils.run(main)


# --------------------------------------------------------------------------------------------- a whole set


def score(options: Evaluation, device: torch.device) -> dict[str, Any]:
    """Writes derained images, scores.json and index.html; prints and returns the scores.

    PSNR and SSIM are of the 8-bit images as saved, in every protocol of metrix_code/protocol.py, and besides
    of the float output. A set without clean images has none of them.
    What cannot be read is passed over, and told by a UserError at the end. Whatever ends it early, the scores
    measured by then are written.
    """
    derainer = None if options.derained != Path() else open_model(options, device)
    found = find_test_set(options)
    model = derainer or results_in(options.derained, found)
    labels = labels_of(model, found, options)
    if isinstance(model, Derainer):
        labels |= {"precision": options.precision, "tile": options.tile, "hardware": hardware(device)}
        print(f"on {device}: {labels['hardware']}, {options.precision}")
    folder = place_for(options.save_path, labels)
    refuse_input_folders(folder, [found.root, *inputs_of(found), *([] if derainer else [options.derained])])
    pairs = [pair for pair in found.pairs if isinstance(model, Derainer) or pair.name in model.files]
    files = dict(zip(pairs, result_names(pairs, options.clean_names), strict=True))
    for line in (model_in_words(model, labels), found.describe(), *warnings_of(found, labels, options)):
        print(line)
    set_scores_aside(folder)
    page = PageWriter(folder, title_of(labels), page_note(model, labels)) if options.page else None
    images: list[dict[str, Any]] = []
    failures: list[UserError] = []

    def failed(pair: Pair, error: UserError) -> None:
        failures.append(error)
        tqdm.write(f"{pair.name}  not scored: {error}")

    metrics = [key for key in KEYS if options.niqe or METRICS[key.removeprefix("rainy_")].paired]
    scored = score_pairs(model, pairs, metrics, workers=options.workers, failed=failed)
    try:
        # disable=None: in a log file the lines of the images are progress enough
        for each in tqdm(scored, total=len(pairs), unit="image", disable=None):
            utils.write_image(folder / files[each.pair], each.derained)
            row = {"name": each.pair.name, "file": files[each.pair], "seconds": each.seconds, **each.scores}
            images.append(row)
            for line in (in_words(row), *each.remarks):
                tqdm.write(line)
            if page:  # last: a full disk costs no score
                page.add(row, each.rainy, each.derained, each.clean)
    finally:
        result = labels | {"images": images, "mean": average(images)}
        if images:
            print(f"average of {len(images)}: {in_words(result['mean'])}{left_out(images, result['mean'])}")
            print(f"written: {write_scores(folder, result)}")
            if page:
                print(f"to look at: {page.finish()}")
    if failures:
        raise UserError(f"{len(failures)} of {len(pairs)} images were not scored, the first: {failures[0]}")
    return result


def open_model(options: Evaluation, device: torch.device) -> Derainer:
    return Derainer.open(
        options.logdir,
        device,
        remedy=f"train one with {options.made_by}{preset_words(options.preset)}, or give --logdir",
        precision=options.precision,
        tile=options.tile,
        self_ensemble=options.self_ensemble,
    )


def find_test_set(options: Evaluation, dataset: str = "") -> PairSet:
    """The images, held to the counts of the set that they turn out to be, not to those of the script's."""
    if options.labelled:
        found = find_pairs(options.data_path, "test", dataset or options.dataset, options.rainy_side)
    else:
        found = find_images([options.data_path], dataset or options.dataset, "--data_path")
    told = recognised(found)
    return found if dataset or told in ("", options.dataset) else find_test_set(options, told)


def results_in(folder: Path, found: PairSet) -> Results:
    """The images of `folder` that are results of the set's, by name, else by number. Tells what is left over.

    Raises UserError where there is none.
    """
    files = list_images(folder)
    by_file = {pair.rainy.path: pair.name for pair in found.pairs}
    matched = match(files, list(by_file))
    results: dict[str, Path] = {}
    for file, rainy in matched.pairs:
        if (earlier := results.setdefault(by_file[rainy], file)) != file:
            raise UserError(f"{earlier} and {file} both go with {rainy}: leave one of them")
    if not results:
        raise UserError(
            f"no image of {folder} goes with one of {found.root}, by name or by number: name the derained "
            "images as the rainy ones"
        )
    for paths, what in ((matched.lone, "no results of this set's"), (matched.lone_clean, "without a result")):
        if paths:
            print(f"not scored, {what} ({len(paths)}): {join_names(path.name for path in paths)}")
    return Results(folder, results)


# ---------------------------------------------------------------------------------- what a score is called


def labels_of(model: Derainer | Results, found: PairSet, options: Evaluation) -> dict[str, Any]:
    """What scores.json says of the method and of the set. Raises UserError where results have no name."""
    content = model.content if isinstance(model, Derainer) else {}
    told = content.get("recipe", {}).items()  # by a file that may be a stranger's
    recipe = {key: escape_unprintable(value) for key, value in told if isinstance(value, str)}
    real_path = content.get("recipe", {}).get("real_path")
    if isinstance(model, Results) and not options.method:
        raise UserError(f"--derained {model.path}: say what made these images, --method NAME")
    dataset = name_of_set(found, options)
    method = options.method or str(recipe.get("stage", UNKNOWN))
    backbone = content.get("network", {}).get("backbone", "DerainNet")
    if not options.method and backbone != "DerainNet":
        method += f"-{backbone}"  # no score of another network passes for the paper's
    dataset_of_it, sets = str(recipe.get("dataset", UNKNOWN)), content.get("recipe", {}).get("data_path")
    if isinstance(sets, list) and len(sets) > 1 and dataset_of_it in catalogue.CATALOGUE:
        dataset_of_it = " + ".join(escape_unprintable(Path(str(each)).name) for each in sets)
    trained_on = {
        "dataset": options.trained_on or dataset_of_it,
        "stage": recipe.get("stage"),
        "data": list(map(escape_unprintable, content.get("data", []))),
        "real_path": list(map(escape_unprintable, real_path if isinstance(real_path, list) else [])),
        "released": bool(content.get("released")),
    }
    return {
        "dataset": dataset,
        "method": method,
        "self_ensemble": isinstance(model, Derainer) and options.self_ensemble,
        "simulated": is_simulated(options.data_path, dataset),
        "trained_on": trained_on,
        "seen": seen_in_training(dataset, found.root, trained_on, method),
        "checkpoint": str(model.path) if isinstance(model, Derainer) else None,
        "checkpoint_step": content.get("step", 0),
        "data_path": str(options.data_path),
        "images_expected": catalogue.get_entry(dataset).counts.get("test"),
        "images_found": len(found.pairs),
        "command": shlex.join(["python", *sys.argv]),
        "date": date.today().isoformat(),
    }


def name_of_set(found: PairSet, options: Evaluation) -> str:
    """As the user says; as its folders say; the script's, if it has as many images; or its folder's name."""
    official = catalogue.get_entry(options.dataset).counts.get("test")
    script = options.dataset if official == len(found.pairs) else ""
    return options.set_name or recognised(found) or script or options.data_path.resolve().name


def seen_in_training(dataset: str, root: Path, trained_on: Mapping[str, Any], method: str) -> str:
    """Why the images below `root` are not new to a model, as far as its checkpoint tells; "" if they are."""
    place = root.resolve()
    for line in trained_on["data"]:
        what, _, folder = line.rpartition(" from ")
        used = Path(folder).resolve()
        # backgrounds may be a part of the set, or have it in them
        near = place.is_relative_to(used) or used.is_relative_to(place)
        if place == used or (what.startswith("backgrounds:") and near):
            return f"it was trained on the images in {folder}"
    for path in map(Path, trained_on["real_path"]):
        # of a set with a list file or a training part, only that is taken
        divided = "train" in catalogue.get_entry(dataset).counts
        if not divided and (place.is_relative_to(path.resolve()) or claimed_by(path) == dataset):
            return f"it was trained on {path}, which is or holds {dataset}"
        if (dataset, claimed_by(path)) == ("Real275", "Internet"):
            return f"it was trained on {path}, of which 59 images are near-duplicates of these"
    if trained_on["released"] and dataset == "Real275" and method != "SID":
        return "the paper trains its students on Real-275"
    return ""


def place_for(save_path: Path, labels: Mapping[str, Any]) -> Path:
    """`save_path`, with what was run for its {dataset} and {method}."""

    def plain(text: str) -> str:
        return re.sub(r"[^\w+-]", "_", text)

    method = labels["method"] + ("+self-ensemble" if labels["self_ensemble"] else "")
    text = str(save_path).replace("{dataset}", plain(labels["dataset"])).replace("{method}", plain(method))
    return Path(text)


def title_of(labels: Mapping[str, Any]) -> str:
    more = [", mean over eight flips and rotations"] * labels["self_ensemble"]
    more += [", simulated rain"] * labels["simulated"]
    return f"{labels['dataset']}: {labels['method']}{''.join(more)}"


def page_note(model: Derainer | Results, labels: Mapping[str, Any]) -> str:
    """What the page says above its images: the model, what is published, and how this was measured."""
    expected, found = labels["images_expected"], labels["images_found"]
    count = f"{found} images" + (f"; the official test set has {expected}" if expected else "")
    stage = "" if labels["simulated"] else str(labels["trained_on"]["stage"] or labels["method"])
    hardware = f", {labels['hardware']}, {labels['precision']}" if "hardware" in labels else ""
    measured = f"measured on {labels['date']}: {count}{hardware}\n{labels['command']}"
    known = published(labels["dataset"], stage)
    if stage in ("SID", "SSID-KD") and not known:
        known = [f"nothing is published for {stage} on {labels['dataset']}"]
    return "\n".join([model_in_words(model, labels), *known, measured])


def model_in_words(model: Derainer | Results, labels: Mapping[str, Any]) -> str:
    if isinstance(model, Results):
        return f"results of {labels['method']}: {len(model.files)} images in {model.path}"
    text = f"model: {model.path}, step {labels['checkpoint_step']}, {labels['method']}"
    text += f", trained on {labels['trained_on']['dataset']}"
    if UNKNOWN in (labels["method"], labels["trained_on"]["dataset"]):
        text += " (a checkpoint that does not tell: --method and --trained_on do)"
    return text


def warnings_of(found: PairSet, labels: Mapping[str, Any], options: Evaluation) -> list[str]:
    # what cannot be read is told when its turn comes, and does not keep the others from being scored
    lines = check_pairs(found, failed=lambda error: None) if options.labelled else list(found.warnings)
    if not labels["simulated"] and labels["dataset"] != options.dataset:
        lines.append(f"this is scored as {labels['dataset']}, not as {options.dataset}: see --set_name")
    if labels["seen"]:
        lines.append(f"not new to this model, and marked so in the tables: {labels['seen']}")
    return [f"warning: {line}" for line in lines]


# ------------------------------------------------------------------------------------------ where it goes


def result_names(pairs: Sequence[Pair], as_clean: bool) -> list[str]:
    """A file name a result: its rainy image's, or its clean one's. Raises UserError where two are one."""
    if not as_clean:
        return [f"{pair.name}.png" for pair in pairs]
    names = [f"{(pair.clean or pair.rainy).path.stem}.png" for pair in pairs]
    several = next((name for name, count in Counter(names).items() if count > 1), None)
    if several:
        raise UserError(
            f"--clean_names: several results would be called {several}; leave it out for this set"
        )
    return names


def inputs_of(found: PairSet) -> set[Path]:
    sides = (side for pair in found.pairs for side in (pair.rainy, pair.clean) if side)
    return {side.path.parent for side in sides}


def refuse_input_folders(folder: Path, inputs: Iterable[Path]) -> None:
    """Raises UserError where results would lie among the images that are read, or around them."""
    place = folder.resolve()
    for path in inputs:
        if place == path.resolve() or place in path.resolve().parents:
            raise UserError(f"--save_path {folder} is, or holds, {path}, which is read: give another folder")


def set_scores_aside(folder: Path) -> None:
    """An earlier evaluation's scores go, for its images will: no old score stands beside a new picture."""
    with file_errors(folder, done="made"):
        folder.mkdir(parents=True, exist_ok=True)  # first: of new/../old nothing is seen before new is there
    with file_errors(folder / SCORES, done="moved away"):
        if not (folder / SCORES).exists():
            return
        aside = next(p for n in itertools.count(1) if not (p := folder / f"earlier-{n}-{SCORES}").exists())
        (folder / SCORES).rename(aside)
        print(f"the earlier scores in {folder} are now {aside}; its images are written anew")
        (folder / PAGE).unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------- in words


def in_words(row: dict[str, Any]) -> str:
    """An image's scores, or their means, in a line: those that there are."""
    parts = [row["name"]] if "name" in row else []
    for metric in HEADLINE_METRICS:
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
