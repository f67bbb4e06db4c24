#!/usr/bin/env python3
"""Draw the README's pictures, docs/figure.jpg and docs/failure.jpg: `make figure`.

Columns: rainy, derained by the model of plain `derain.py`, clean. Reads the simulated rain that
datasets/simulate.py has written, on scikit-image's photographs of a cat and a rocket (CC0, public domain).
"""

import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))  # imports work from any folder

from machinery.inference import DEFAULT_MODEL, Derainer
from metrix_code.psnr import psnr
from utils import read_image, run

SETS = {
    "heavy": "Simulated200H/rain_data_test_Heavy",
    "light": "Simulated200L/rain_data_test_Light",
}
FIGURE = (("heavy", 4), ("light", 1))  # set, number of the test pair
FAILURE = (("heavy", 3),)  # of the six test pairs the one with the lowest PSNR
GAP = 6  # pixels between the images


def row(derain: Derainer, rain: str, number: int) -> np.ndarray:
    """uint8 RGB (H, 3W + 2 GAP, 3): rainy, derained, clean. Prints the PSNR of the first two."""
    folder = Path("datasets/simulated") / SETS[rain]
    rainy = read_image(folder / f"rain/X2/norain-{number}x2.png")
    clean = read_image(folder / f"norain/norain-{number}.png")
    derained = derain(rainy)
    before, after = (psnr(image, clean) for image in (rainy, derained))
    print(f"{rain} rain, test pair {number}: {before:.1f} to {after:.1f} dB (simulated rain, RGB)")
    white = np.full((len(rainy), GAP, 3), 255, np.uint8)
    return np.hstack([rainy, white, derained, white, clean])


def draw(folder: Path) -> None:
    """Write figure.jpg and failure.jpg into `folder`."""
    derain = Derainer.open(DEFAULT_MODEL)
    for name, rows in (("figure", FIGURE), ("failure", FAILURE)):
        images = [
            np.pad(row(derain, *each), ((0, GAP), (0, 0), (0, 0)), constant_values=255) for each in rows
        ]
        picture = np.vstack(images)[:-GAP, :, ::-1]  # OpenCV writes BGR
        cv2.imwrite(str(folder / f"{name}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 92])


if __name__ == "__main__":
    run(lambda: draw(Path(__file__).parent))
