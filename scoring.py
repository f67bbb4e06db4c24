"""Images through a network and their scores, one by one: for an evaluation and a training's validation."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from config import Training
from datasets.catalogue import is_simulated
from datasets.pairs import Found, Pair, check_pairs, merged, read_pair, sample
from DerainDataset import Crops, find_set
from inference import Derainer
from machinery import distributed
from machinery.distributed import World
from machinery.loading import Loader, begin_worker
from metrix_code.metrics import METRICS
from metrix_code.scores import average
from utils import UserError, read_image, to_tensor, to_uint8


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


def validation_set(recipe: Training, crops: Crops) -> tuple[Found | None, list[str]]:
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
    derainer: Derainer, found: Found, recipe: Training, world: World
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
