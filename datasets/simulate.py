#!/usr/bin/env python3
"""Renders the simulated datasets of the quick start, or rain on your own photographs.

    python datasets/simulate.py                 writes datasets/simulated/
        Simulated200H/, Simulated200L/          pairs in Rain200's layout, exactly additive like Rain200
        SimulatedReal/train/rain/               unlabelled: other streaks and haze stand in for real rain
        SimulatedReal/test/rain/, norain/       the same, with clean images to score against

    python datasets/simulate.py --clean FOLDER --save_path SET        pairs of your own photographs
        SET/train/, SET/test/                   rain/ + norain/: --data_path SET of every script

A set is a function of the seed. Training and test sets share no photograph. Scores on these sets show that
the code works; they say nothing about a benchmark.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # imports work from any folder

from datasets.catalogue import CATALOGUE, SIMULATED
from datasets.layouts import find_backgrounds
from datasets.pairs import read_side, show_scene_of
from machinery.options import Options, option, parse, to_dict
from utils import UserError, escape_unprintable, file_errors, run, write_image, write_text

# public domain (astronaut, rocket: NASA) or CC0 (coffee, chelsea)
PHOTOGRAPHS = {"train": ("astronaut", "coffee"), "test": ("chelsea", "rocket")}
WIDTH, HEIGHT = 240, 160
LONGEST = 1024  # longer side of one's own photographs, in pixels

Range = tuple[float, float]


@dataclass(frozen=True)
class Rain:
    """Distribution of an image's rain; ranges are uniform, lengths and widths in pixels."""

    layers: tuple[int, int]  # number of layers, each with its depth and direction
    tilt: Range  # main direction, degrees from the vertical
    spread: float  # standard deviation of the layers' directions around it, degrees
    length: Range
    width: Range
    cover: Range  # area of a layer's streaks as a fraction of the image
    opacity: Range  # of a layer's brightest streaks, 1: white
    haze: Range = (0.0, 0.0)  # fraction of the light replaced by haze, at the top of the image


# Opacity and cover bring the rainy PSNR near Rain200H's 12.3 dB and Rain200L's 25.9 dB (means of 118 and 50
# official training pairs).
HEAVY = Rain((4, 7), (-35, 35), 5, (20, 80), (0.7, 1.6), (0.1, 0.25), (0.14, 0.38))
LIGHT = Rain((3, 5), (-30, 30), 3, (10, 35), (0.6, 1.2), (0.004, 0.016), (0.22, 0.6))
REAL = Rain((5, 8), (-15, 15), 2, (6, 60), (0.4, 1.4), (0.01, 0.04), (0.06, 0.35), haze=(0.15, 0.4))


# the word in the names of Rain200's folders ("": the plain layout), and the rain
SETS = {"Simulated200H": ("Heavy", HEAVY), "Simulated200L": ("Light", LIGHT), "SimulatedReal": ("", REAL)}


def streaks(rain: Rain, rng: np.random.Generator, size: tuple[int, ...] = (HEIGHT, WIDTH)) -> np.ndarray:
    """One grey layer of rain, float32 (height, width) in [0, 1], to be added to the image."""
    layer = np.zeros(size, np.float32)
    tilt = rng.uniform(*rain.tilt)
    for _ in range(rng.integers(rain.layers[0], rain.layers[1] + 1)):
        depth = rng.uniform()  # 0: near; long, wide, bright and few
        length, width, opacity = (
            high - (high - low) * depth for low, high in (rain.length, rain.width, rain.opacity)
        )
        drops = rng.poisson(rng.uniform(*rain.cover) / (length * width), size) > 0
        strengths = drops * rng.uniform(0.3, 1, size)
        kernel = _motion_blur(rng.normal(tilt, rain.spread), length, width)
        layer += opacity * cv2.filter2D(strengths.astype(np.float32), -1, kernel)
    return np.clip(layer, 0, 1)


def _motion_blur(tilt: float, length: float, width: float) -> np.ndarray:
    """Kernel of one drop's path during the exposure: a line with soft ends and sides, 1 at its centre."""
    radius = int(np.ceil(length / 2 + 2 * width))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float32)
    angle = np.deg2rad(tilt)
    along, across = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
    fade = np.clip((length / 2 - np.abs(along)) / (0.25 * length) + 0.5, 0, 1)
    return (fade * np.exp(-0.5 * (across / (0.5 * width)) ** 2)).astype(np.float32)


def clean_image(photograph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random crop of a photograph, mirrored or not, resized to uint8 (HEIGHT, WIDTH, 3)."""
    rows, columns = photograph.shape[:2]
    height = int(rng.uniform(0.6, 1) * min(rows, columns * HEIGHT / WIDTH))
    width = height * WIDTH // HEIGHT
    top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
    part = photograph[top : top + height, left : left + width]
    part = part[:, ::-1] if rng.integers(2) else part
    return cv2.resize(np.ascontiguousarray(part), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)


def rainy_image(clean: np.ndarray, rain: Rain, rng: np.random.Generator) -> np.ndarray:
    """`clean` with haze (if `rain` has any) and streaks, uint8 (height, width, 3)."""
    layer = np.round(255 * streaks(rain, rng, clean.shape[:2])).astype(np.uint16)[..., None]
    hazy = clean
    if rain.haze[1]:
        airlight = rng.uniform(170, 230)
        far = np.linspace(1, 0.4, len(clean))[:, None, None]  # the far part is mostly at the top
        thickness = rng.uniform(*rain.haze) * far
        hazy = np.round(clean * (1 - thickness) + airlight * thickness).astype(np.uint8)
    return np.minimum(255, hazy + layer).astype(np.uint8)


# a part of a set, the files of a rainy image and its clean one (None: not written), the images themselves
Job = tuple[str, Path, Path | None, np.ndarray, np.ndarray]


def write_pairs(jobs: Iterable[Job]) -> dict[str, float]:
    """Returns the mean PSNR of rainy against clean by part, in dB."""
    psnr_of: dict[str, list[float]] = defaultdict(list)
    for part, rainy_path, clean_path, rainy, clean in tqdm(jobs, "rainy images", unit="image", leave=False):
        write_image(rainy_path, rainy)
        if clean_path:
            write_image(clean_path, clean)
        psnr_of[part].append(cv2.PSNR(rainy, clean))
    return {f"{part}, {len(each)} pairs": float(np.mean(each)) for part, each in psnr_of.items()}


def simulated(out: Path, seed: int) -> Iterator[Job]:
    """The sets of the quick start, below `out`."""
    for name, (kind, rain) in SETS.items():
        files = (
            ("rain/X2/norain-{}x2.png", "norain/norain-{}.png") if kind else ("rain/{}.png", "norain/{}.png")
        )
        for split, count in CATALOGUE[name].counts.items():
            folder = out / name / (f"rain_data_{split}_{kind}" if kind else split)
            for i in range(count):
                rng = np.random.default_rng((seed, *name.encode(), split == "test", i))
                photograph = getattr(skimage.data, PHOTOGRAPHS[split][i % len(PHOTOGRAPHS[split])])()
                clean = clean_image(photograph, rng)
                rainy_path, clean_path = (folder / file.format(i + 1) for file in files)
                labelled = kind or split == "test"
                rainy = rainy_image(clean, rain, rng)
                yield f"{name} {split}", rainy_path, clean_path if labelled else None, rainy, clean


@dataclass(frozen=True)
class Simulate(Options):
    """The options of this script."""

    out: Path = option(Path("datasets/simulated"), "folder of the quick start's sets; not with --clean")
    seed: int = option(0, "random seed of crops and rain", min=0)
    clean: tuple[Path, ...] = option((), "folders of clean photographs to add rain to")
    save_path: Path = option(Path(), "new folder for the pairs", needs="clean")
    strength: float = option(
        1.0,
        "amount of rain; 1: as dense as Rain200H's, 0.1: about Rain200L's",
        needs="clean",
        min=0.01,
        max=4,
    )
    angle: float = option(
        0.0,
        "main direction of the rain, in degrees from the vertical; an image's own is within 15 of it",
        needs="clean",
        min=-90,
        max=90,
    )
    haze: float = option(
        0.0, "largest fraction of the light replaced by haze on the rainy side", needs="clean", min=0, max=0.9
    )

    def validate(self) -> str | None:
        if self.clean and self.save_path == Path():
            return "--clean needs --save_path, a new folder for the pairs"
        return super().validate()


def photographs(options: Simulate) -> Iterator[Job]:
    """Pairs of the user's photographs, below `save_path`; the last fifth is the test set.

    Raises UserError for a `save_path` that is not empty and for photographs of fewer than two scenes.
    """
    folder = options.save_path
    with file_errors(folder, done="written to"):
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty: choose a new folder as --save_path")
    found = [pair.rainy for each in options.clean for pair in find_backgrounds(each, "--clean").pairs]
    found = list(dict.fromkeys(found))
    split = len(found) - max(1, len(found) // 5)
    test = found[split:]
    seen = show_scene_of(found[:split], test)
    train = [photograph for photograph, too in zip(found[:split], seen, strict=True) if not too]
    if not train:
        raise UserError(
            f"{options.clean[0]}: --clean needs photographs of two scenes at least, to train and to test"
        )
    tilt = (options.angle - 15, options.angle + 15)
    cover = (options.strength * HEAVY.cover[0], options.strength * HEAVY.cover[1])
    rain = replace(HEAVY, tilt=tilt, cover=cover, haze=(0.0, options.haze))
    # marks the scores as simulated
    write_text(folder / SIMULATED, escape_unprintable(to_dict(options)) + "\n")
    for part, refs in (("train", train), ("test", test)):
        for number, ref in enumerate(refs, 1):
            clean = _reduced(read_side(ref))
            rainy = rainy_image(clean, rain, np.random.default_rng((options.seed, part == "test", number)))
            rainy_path, clean_path = (folder / part / side / f"{number}.png" for side in ("rain", "norain"))
            yield part, rainy_path, clean_path, rainy, clean


def _reduced(image: np.ndarray) -> np.ndarray:
    if (scale := LONGEST / max(image.shape)) >= 1:
        return image
    height, width = (max(1, round(scale * side)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def main() -> None:
    options = parse(Simulate(), __doc__)
    jobs = photographs(options) if options.clean else simulated(options.out, options.seed)
    for name, psnr in write_pairs(jobs).items():
        print(f"{name:28s} rainy PSNR {psnr:5.2f} dB (simulated rain, RGB)")
    print(f"written to {options.save_path if options.clean else options.out}")


if __name__ == "__main__":
    run(main)
