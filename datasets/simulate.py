#!/usr/bin/env python3
"""Makes the simulated datasets of the quick start: rendered rain on photographs that ship with scikit-image.

    python datasets/simulate.py                 writes datasets/simulated/
        Simulated200H/, Simulated200L/          pairs in Rain200's own layout, exactly additive as that is
        SimulatedReal/train/rain/               unlabelled: other streaks under a veil of haze play real rain
        SimulatedReal/test/rain/, norain/       the same, with the clean images kept aside for the score

A set is a function of the seed. Train and test share no photograph. A number measured on these sets says
that the code works; it says nothing about a benchmark.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started as a script, from any folder

from datasets.catalogue import CATALOGUE
from machinery.options import Options, option, parse
from utils import run, write_image

# public domain (astronaut, rocket: NASA) or CC0 (coffee, chelsea)
PHOTOGRAPHS = {"train": ("astronaut", "coffee"), "test": ("chelsea", "rocket")}
WIDTH, HEIGHT = 240, 160

Range = tuple[float, float]


@dataclass(frozen=True)
class Rain:
    """What one image's rain is drawn from; each range is uniform. Lengths and widths in pixels."""

    layers: tuple[int, int]  # depths and directions that are rendered apart
    tilt: Range  # main direction, degrees from the vertical
    spread: float  # standard deviation of a layer's direction around it, degrees
    length: Range
    width: Range
    cover: Range  # area of all streaks of a layer over the image's area
    opacity: Range  # of the brightest streaks of a layer, 1: white
    veil: Range = (0.0, 0.0)  # share of the light that haze replaces, at the top of the image


# Opacity and cover are set so that rainy PSNR comes near Rain200H's 12.3 and Rain200L's 25.9 dB (the means
# of 118 and 50 true training pairs).
HEAVY = Rain((4, 7), (-35, 35), 5, (20, 80), (0.7, 1.6), (0.1, 0.25), (0.14, 0.38))
LIGHT = Rain((3, 5), (-30, 30), 3, (10, 35), (0.6, 1.2), (0.004, 0.016), (0.22, 0.6))
REAL = Rain((5, 8), (-15, 15), 2, (6, 60), (0.4, 1.4), (0.01, 0.04), (0.06, 0.35), veil=(0.15, 0.4))


@dataclass(frozen=True)
class Set:
    """One simulated dataset. `kind` is the word in its official folders' names; "" for the plain layout."""

    name: str
    kind: str
    rain: Rain
    count: dict[str, int]


SETS = tuple(
    Set(name, kind, rain, CATALOGUE[name].counts)
    for name, kind, rain in (
        ("Simulated200H", "Heavy", HEAVY),
        ("Simulated200L", "Light", LIGHT),
        ("SimulatedReal", "", REAL),
    )
)


def streaks(rain: Rain, rng: np.random.Generator) -> np.ndarray:
    """One grey layer of rain, float32 (HEIGHT, WIDTH) in [0, 1]: what is added to the light."""
    layer = np.zeros((HEIGHT, WIDTH), np.float32)
    tilt = rng.uniform(*rain.tilt)
    for _ in range(rng.integers(rain.layers[0], rain.layers[1] + 1)):
        depth = rng.uniform()  # 0 is near: long, wide, bright and few
        length, width, opacity = (
            high - (high - low) * depth for low, high in (rain.length, rain.width, rain.opacity)
        )
        drops = rng.poisson(rng.uniform(*rain.cover) / (length * width), (HEIGHT, WIDTH)) > 0
        strengths = drops * rng.uniform(0.3, 1, (HEIGHT, WIDTH))
        kernel = _motion_blur(rng.normal(tilt, rain.spread), length, width)
        layer += opacity * cv2.filter2D(strengths.astype(np.float32), -1, kernel)
    return np.clip(layer, 0, 1)


def _motion_blur(tilt: float, length: float, width: float) -> np.ndarray:
    """The path of one drop during the exposure: a line with soft ends and sides, 1 in its middle."""
    radius = int(np.ceil(length / 2 + 2 * width))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float32)
    angle = np.deg2rad(tilt)
    along, across = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
    fade = np.clip((length / 2 - np.abs(along)) / (0.25 * length) + 0.5, 0, 1)
    return (fade * np.exp(-0.5 * (across / (0.5 * width)) ** 2)).astype(np.float32)


def clean_image(photograph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random part of a photograph, uint8 (HEIGHT, WIDTH, 3)."""
    rows, columns = photograph.shape[:2]
    height = int(rng.uniform(0.6, 1) * min(rows, columns * HEIGHT / WIDTH))
    width = height * WIDTH // HEIGHT
    top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
    part = photograph[top : top + height, left : left + width]
    part = part[:, ::-1] if rng.integers(2) else part
    return cv2.resize(np.ascontiguousarray(part), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)


def rainy_image(clean: np.ndarray, rain: Rain, rng: np.random.Generator) -> np.ndarray:
    """`clean` behind haze (if the rain has any) and streaks, uint8 (HEIGHT, WIDTH, 3)."""
    layer = np.round(255 * streaks(rain, rng)).astype(np.uint16)[..., None]
    veiled = clean
    if rain.veil[1]:
        airlight = rng.uniform(170, 230)
        thickness = rng.uniform(*rain.veil) * np.linspace(1, 0.4, HEIGHT)[:, None, None]  # far is mostly up
        veiled = np.round(clean * (1 - thickness) + airlight * thickness).astype(np.uint8)
    return np.minimum(255, veiled + layer).astype(np.uint8)


def paths(made: Set, split: str, out: Path, number: int) -> tuple[Path, Path | None]:
    """Where a rainy image goes, and its clean one: nowhere for unlabelled training images."""
    if made.kind:
        folder = out / made.name / f"rain_data_{split}_{made.kind}"
        return folder / f"rain/X2/norain-{number}x2.png", folder / f"norain/norain-{number}.png"
    folder = out / made.name / split
    return folder / f"rain/{number}.png", folder / f"norain/{number}.png" if split == "test" else None


def simulate(out: Path, seed: int, sets: Sequence[Set] = SETS) -> dict[str, float]:
    """Writes the sets below `out`; returns each split's mean PSNR of rainy against clean, in dB."""
    jobs = [(made, split, i) for made in sets for split, count in made.count.items() for i in range(count)]
    errors: dict[str, list[float]] = {}
    for made, split, i in tqdm(jobs, desc="simulated images", unit="image", leave=False):
        rng = np.random.default_rng((seed, *made.name.encode(), split == "test", i))
        photograph = getattr(skimage.data, PHOTOGRAPHS[split][i % len(PHOTOGRAPHS[split])])()
        clean = clean_image(photograph, rng)
        rainy = rainy_image(clean, made.rain, rng)
        rainy_path, clean_path = paths(made, split, out, i + 1)
        write_image(rainy_path, rainy)
        if clean_path:
            write_image(clean_path, clean)
        error = np.mean((rainy.astype(np.float64) - clean) ** 2)
        errors.setdefault(f"{made.name} {split}", []).append(10 * np.log10(255**2 / error))
    return {name: float(np.mean(each)) for name, each in errors.items()}


@dataclass(frozen=True)
class Simulate(Options):
    """The options of this script."""

    out: Path = option(Path("datasets/simulated"), "folder to write to")
    seed: int = option(0, "another seed, other crops and rain", min=0)


def main() -> None:
    options = parse(Simulate(), __doc__)
    for name, psnr in simulate(options.out, options.seed).items():
        print(f"{name:20s} rainy PSNR {psnr:5.2f} dB (simulated rain, RGB)")
    print(f"written to {options.out}")


if __name__ == "__main__":
    run(main)
