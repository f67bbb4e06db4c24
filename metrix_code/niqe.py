"""NIQE of images without a clean reference, with the parameters of the LIVE release; lower is 'better'.

python metrix_code/niqe.py --res_path results/Real275/SSID-KD

Untouched rainy images of Real-275 already score 3.66, so NIQE alone proves little. MATLAB's own `niqe` has
other parameters: its scores belong in another column.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from scipy.special import gamma

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs as a script from any folder

from metrix_code.protocol import luma, size
from utils import UserError

BLOCK = 96
WINDOW = np.exp(-np.square(np.arange(-3, 4)) / (2 * (7 / 6) ** 2))
WINDOW /= WINDOW.sum()
# MATLAB's imresize by one half: the cubic kernel (a = -1/2) stretched over eight pixels against aliasing.
HALVING = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # (down, right) offsets of the four products
SHAPES = np.arange(0.2, 10, 0.001)
RATIOS = gamma(2 / SHAPES) ** 2 / (gamma(1 / SHAPES) * gamma(3 / SHAPES))  # increases with the shape
ZERO = 1e-9  # in flat areas rounding leaves values of 1e-14, which are neither above nor below zero


def niqe(image: np.ndarray) -> float:
    """The natural image quality evaluator of Mittal, Soundararajan and Bovik (2013), on the luma.

    `image` is uint8 RGB (H, W, 3). The score is the distance of the 36 features of its 96x96 blocks from
    those of pristine photographs; rows and columns beyond the last whole block are ignored.
    Raises UserError for fewer than two blocks, or fewer than two with texture.
    """
    rows, columns = image.shape[0] // BLOCK, image.shape[1] // BLOCK
    if rows * columns < 2:
        raise UserError(f"{size(image)} pixels are too few for NIQE: it needs two blocks of 96x96")
    full = luma(image)[: rows * BLOCK, : columns * BLOCK]
    half = cv2.sepFilter2D(full, cv2.CV_64F, HALVING, HALVING, anchor=(3, 3), borderType=cv2.BORDER_REFLECT)
    features = np.hstack([_features(full, BLOCK), _features(half[::2, ::2], BLOCK // 2)])
    whole = features[np.isfinite(features).all(axis=1)]
    if len(whole) < 2:
        raise UserError("NIQE is not defined here: fewer than two blocks of 96x96 have any texture")
    pristine = np.load(Path(__file__).with_name("niqe_live.npz"))
    covariance = (pristine["cov_pris_param"] + np.cov(whole, rowvar=False)) / 2
    distance = pristine["mu_pris_param"][0] - np.nanmean(features, axis=0)
    return float(np.sqrt(distance @ np.linalg.pinv(covariance) @ distance))


def _features(luma: np.ndarray, block: int) -> np.ndarray:
    """(blocks, 18): statistics of the normalised luminance and of its products with four neighbours."""
    mean, square = (
        cv2.sepFilter2D(x, cv2.CV_64F, WINDOW, WINDOW, borderType=cv2.BORDER_REPLICATE)
        for x in (luma, luma * luma)
    )
    normalised = (luma - mean) / (np.sqrt(np.abs(square - mean * mean)) + 1)
    height, width = luma.shape
    blocks = normalised.reshape(height // block, block, width // block, block).swapaxes(1, 2)
    blocks = blocks.reshape(-1, block, block)
    shape, left, right = _asymmetric_gaussian(blocks)
    columns = [shape, (left + right) / 2]
    for step in NEIGHBOURS:
        shape, left, right = _asymmetric_gaussian(blocks * np.roll(blocks, step, axis=(1, 2)))
        columns += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]
    return np.stack(columns, axis=1)


def _asymmetric_gaussian(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Asymmetric generalised Gaussian, fitted by moments: shape, left and right scale, each (blocks,)."""
    x = blocks.reshape(len(blocks), -1)
    squares = x * x
    with np.errstate(invalid="ignore", divide="ignore"):  # a flat block gives nan; see `whole` above
        left = np.sqrt((squares * (x < -ZERO)).sum(axis=1) / (x < -ZERO).sum(axis=1))
        right = np.sqrt((squares * (x > ZERO)).sum(axis=1) / (x > ZERO).sum(axis=1))
        skew = left / right
        ratio = np.abs(x).mean(axis=1) ** 2 / squares.mean(axis=1)
        ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    # rounded as the LIVE release does, which changes the third digit of the score
    shape = np.interp(ratio, RATIOS, SHAPES).round(3)
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * scale, right * scale


if __name__ == "__main__":
    from metrix_code.folders import main
    from utils import run

    run(lambda: main("niqe", __doc__))
