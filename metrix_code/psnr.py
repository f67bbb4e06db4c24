"""PSNR of derained images against the clean ones, in dB.

python metrix_code/psnr.py --res_path results/Rain200H/SID --gt_path datasets/Rain200H/.../norain
"""

import math
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs as a script from any folder

from metrix_code.protocol import in_protocol


def psnr(derained: np.ndarray, clean: np.ndarray, protocol: str = "RGB", peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB, infinite for identical images (100 in the released script).

    `derained` and `clean` are RGB (H, W, 3), both uint8, or both float in [0, `peak`]; `peak` is 1.0 for the
    network's output. "RGB" averages the squared error over all pixels and channels, "Y" and "DID/DDN" over
    the luma. Raises UserError if the two differ in shape or type.
    """
    one, other, peak = in_protocol(derained, clean, protocol, peak)
    mse = float(np.mean(np.square(one - other)))
    return 10 * math.log10(peak**2 / mse) if mse else math.inf


if __name__ == "__main__":
    from metrix_code.folders import main
    from utils import run

    run(lambda: main(psnr, "PSNR", 3, __doc__))
