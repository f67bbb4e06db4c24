"""SSIM of derained images against the clean ones; identical images score 1.

python metrix_code/ssim.py --res_path results/Rain200H/SID --gt_path datasets/Rain200H/.../norain
"""

import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs as a script from any folder

from metrix_code.protocol import in_protocol, size, ssim_downsample
from utils import UserError

RADIUS = 5  # an 11-tap window
WINDOW = np.exp(-np.square(np.arange(-RADIUS, RADIUS + 1)) / (2 * 1.5**2))
WINDOW /= WINDOW.sum()


def ssim(derained: np.ndarray, clean: np.ndarray, protocol: str = "RGB") -> float:
    """Mean structural similarity (Wang et al., 2004): Gaussian window of 11, sigma 1.5, K1 = 0.01, K2 = 0.03.

    `derained` and `clean` are RGB (H, W, 3), both uint8, or both float in [0, 255]. "RGB" pads with zeros, as
    the training loss does, and averages over all pixels and channels; "Y" averages the luma's map over
    'valid' window positions; "DID/DDN" does so on a smaller luma, see `ssim_downsample`.
    Raises UserError for two shapes or types, or a luma that is smaller than the window.
    """
    x, y = in_protocol(derained, clean, protocol)
    if protocol == "DID/DDN":
        x, y = ssim_downsample(x), ssim_downsample(y)
    mean_x, mean_y = _blur(x), _blur(y)
    product, squares = mean_x * mean_y, np.square(mean_x) + np.square(mean_y)
    covariance, variances = _blur(x * y) - product, _blur(x * x + y * y) - squares
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))
    if protocol != "RGB":
        similarity = similarity[RADIUS:-RADIUS, RADIUS:-RADIUS]
        if not similarity.size:
            raise UserError(f"{size(x)} pixels are too few for SSIM ({protocol}): its window is 11x11")
    return float(similarity.mean())


def _blur(image: np.ndarray) -> np.ndarray:
    return cv2.sepFilter2D(image, cv2.CV_64F, WINDOW, WINDOW, borderType=cv2.BORDER_CONSTANT)


if __name__ == "__main__":
    from metrix_code.folders import main
    from utils import run

    run(lambda: main("ssim", __doc__))
