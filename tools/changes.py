"""What a model does to photographs that have no clean image: how much it changes, darkens, and their NIQE.

    python tools/changes.py                               scikit-image's photographs, which have no rain
    python tools/changes.py --images datasets/Rain800_real datasets/Real275 --most 1000

A network that takes rain away must leave the rest. An image without rain should come out as it went in: the
table has its PSNR to the input, the mean over the images and the lowest. Of rainy photographs it has the
change of the mean brightness, in levels of 255: the mean, and the largest fall. NIQE is before and after.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parents[1]))  # found as a script too, whatever folder one is in

from datasets.layouts import find_images
from datasets.pairs import Side, read_side
from inference import DEFAULT_MODEL, Derainer
from machinery import distributed
from machinery.options import Machine, option, parse
from metrix_code.niqe import niqe
from metrix_code.psnr import psnr
from utils import UserError, image_size, run

WITHOUT_RAIN = ("astronaut", "chelsea", "coffee", "rocket")  # public domain or CC0


@dataclass(frozen=True)
class Changes(Machine):
    """The options of this script."""

    logdir: Path = option(DEFAULT_MODEL, "the model: a checkpoint, or its folder")
    images: tuple[Path, ...] = option((), "folders of photographs; none: scikit-image's, without rain")
    most: int = option(4096, "leave out what is longer than so many pixels", least=16)


def main() -> None:
    options = parse(Changes(), __doc__)
    device = distributed.device(options)
    derainer = Derainer.open(options.logdir, device, precision=options.precision)
    print(f"| {derainer.path} | images | PSNR to the input | brightness | NIQE |\n|---|---|---|---|---|")
    for name, images in sets(options):
        print(row(name, [changes(derainer, image) for image in tqdm(images, desc=name, leave=False)]))


def sets(options: Changes) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
    """Each set's name and its images, uint8 RGB (H, W, 3)."""
    if not options.images:
        yield "without rain", (np.ascontiguousarray(getattr(skimage.data, name)()) for name in WITHOUT_RAIN)
    for folder in options.images:
        sides = [pair.rainy for pair in find_images([folder], option="--images").pairs]
        sides = [side for side in sides if longest(side) <= options.most]
        if not sides:
            raise UserError(
                f"{folder}: every image is longer than {options.most} pixels: give more by --most"
            )
        yield folder.name, map(read_side, sides)


def longest(side: Side) -> int:
    height, width = image_size(side.path)
    return max(height, width // 2 if side.half else width)


def changes(derainer: Derainer, image: np.ndarray) -> tuple[float, float, float, float]:
    """PSNR of the derained image to `image`, the change of its mean brightness, NIQE before and after."""
    derained = derainer(image)
    return (
        psnr(derained, image),
        float(derained.mean(dtype=float) - image.mean(dtype=float)),
        _niqe(image),
        _niqe(derained),
    )


def _niqe(image: np.ndarray) -> float:
    try:
        return niqe(image)
    except UserError:  # too small for it
        return math.nan


def row(name: str, changed: list[tuple[float, float, float, float]]) -> str:
    to_input, brighter, *both = np.array(changed).T
    measured = ~np.isnan(both).any(0)  # images that are too small have no NIQE
    before, after = (each[measured] for each in both)
    cells = (
        name,
        str(len(changed)),
        f"{to_input.mean():.2f} dB, lowest {to_input.min():.2f}",
        f"{brighter.mean():+.2f}, at most {brighter.min():+.2f}",
        f"{before.mean():.3f} to {after.mean():.3f}" if measured.any() else "",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    run(main)
