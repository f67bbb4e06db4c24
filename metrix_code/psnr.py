"""PSNR of derained images against the clean ones, in dB.

python metrix_code/psnr.py --res_path results/Rain200H/SID --gt_path datasets/Rain200H/.../norain
"""

import math
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs as a script from any folder

from metrix_code.protocol import in_protocol


def psnr(derained: np.ndarray, clean: np.ndarray, protocol: str = "RGB") -> float:
    """Peak signal-to-noise ratio in dB, infinite for identical images (100 in the released script).

    `derained` and `clean` are RGB (H, W, 3), both uint8, or both float in [0, 255]. "RGB" averages the
    squared error over all pixels and channels, "Y" and "DID/DDN" over the luma.
    Raises UserError for two shapes or types.
    """
    one, other = in_protocol(derained, clean, protocol)
    mse = float(np.mean(np.square(one - other)))
    return 10 * math.log10(255**2 / mse) if mse else math.inf


if __name__ == "__main__":
    from metrix_code.folders import main
    from utils import run

    run(lambda: main("psnr", __doc__))
