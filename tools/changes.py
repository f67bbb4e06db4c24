"""What a model does to photographs: how much it changes them, how bright they are then, and their NIQE.

    python tools/changes.py                               scikit-image's photographs, which have no rain
    python tools/changes.py --images datasets/Rain800_real datasets/Real275 --most 1000
    python tools/changes.py --pairs datasets/SPA datasets/Rain12 --strength 0.5

A network that takes rain away must leave the rest. An image without rain should come out as it went in: the
table has its PSNR to the input, the mean over the images and the lowest. Of rainy photographs it has the
change of the mean brightness, in levels of 255: the mean, and the largest fall; of `--pairs`, whose rain has
its own light, also PSNR to the clean sides, and how much brighter the results are. NIQE is before and after.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parents[1]))  # found as a script too, whatever folder one is in

from datasets.layouts import find_images, find_pairs
from datasets.pairs import ImageRef, Pair, read_pair
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
    pairs: tuple[Path, ...] = option((), "test sets that have clean sides")
    strength: float = option(1.0, "how much of the rain goes: 0 leaves all of it", min=0, max=1)
    most: int = option(4096, "leave out longer images, in pixels", min=16)
    niqe: bool = option(True, "score NIQE too, which takes half of the time")


def main() -> None:
    options = parse(Changes(), __doc__)
    device = distributed.device(options)
    how = {name: getattr(options, name) for name in ("precision", "strength")}
    derainer = Derainer.open(options.logdir, device, **how)
    heads = (str(derainer.path), "images", "PSNR to the input", "brightness", "to the clean side", "NIQE")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name, images in sets(options):
        bar = tqdm(images, desc=name, leave=False)
        print(row(name, [changes(derainer, image, clean, options.niqe) for image, clean in bar]))


Images = tuple[np.ndarray, np.ndarray | None]  # rainy and clean, uint8 RGB (H, W, 3)


def sets(options: Changes) -> Iterator[tuple[str, Iterator[Images]]]:
    """Each set's name and its images, with their clean sides where they have any."""
    if not (options.images or options.pairs):
        free = (np.ascontiguousarray(getattr(skimage.data, name)()) for name in WITHOUT_RAIN)
        yield "without rain", ((image, None) for image in free)
    found: list[tuple[Path, Sequence[Pair]]] = [
        *((folder, find_images([folder], option="--images").pairs) for folder in options.images),
        *((folder, find_pairs(folder, "test").pairs) for folder in options.pairs),
    ]
    for folder, pairs in found:
        short = [pair for pair in pairs if longest(pair.rainy) <= options.most]
        if not short:
            raise UserError(
                f"{folder}: every image is longer than {options.most} pixels: give more by --most"
            )
        yield folder.name, map(read_pair, short)


def longest(side: ImageRef) -> int:
    height, width = image_size(side.path)
    return max(height, width // 2 if side.half else width)


def changes(
    derainer: Derainer, image: np.ndarray, clean: np.ndarray | None = None, with_niqe: bool = True
) -> tuple[float, ...]:
    """Of the derained image: PSNR to `image`, brightness less that of `image`; the same of `clean`; NIQE
    before and after. NaN what cannot be told."""
    derained = derainer(image)
    brightness = derained.mean(dtype=float)
    return (
        psnr(derained, image),
        float(brightness - image.mean(dtype=float)),
        math.nan if clean is None else psnr(derained, clean),
        math.nan if clean is None else float(brightness - clean.mean(dtype=float)),
        _niqe(image) if with_niqe else math.nan,
        _niqe(derained) if with_niqe else math.nan,
    )


def _niqe(image: np.ndarray) -> float:
    try:
        return niqe(image)
    except UserError:  # too small for it
        return math.nan


def row(name: str, changed: list[tuple[float, ...]]) -> str:
    to_input, brighter, to_clean, than_clean, *both = np.array(changed).T
    measured = ~np.isnan(both).any(0)  # images that are too small have no NIQE
    before, after = (each[measured] for each in both)
    cells = (
        name,
        str(len(changed)),
        f"{to_input.mean():.2f} dB, lowest {to_input.min():.2f}",
        f"{brighter.mean():+.2f}, at most {brighter.min():+.2f}",
        ""
        if np.isnan(to_clean).all()
        else f"{to_clean.mean():.2f} dB; {than_clean.mean():+.2f}, lowest {than_clean.min():+.2f}",
        f"{before.mean():.3f} to {after.mean():.3f}" if measured.any() else "",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    run(main)
