"""PSNR of derained images against the clean ones, in dB.

python metrix_code/psnr.py --res_path results/Rain200H/SID --gt_path datasets/Rain200H/.../norain
"""

import math
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))  # found as a script too, whatever folder one is in

from metrix_code.protocol import in_protocol


def psnr(derained: np.ndarray, clean: np.ndarray, protocol: str = "RGB", peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB, infinite for identical images (the released script says 100).

    `derained` and `clean` are (H, W, 3) RGB, both uint8, or both float in [0, `peak`]: give peak=1.0
    for what the network returns. "RGB" takes one mean square over all pixels and channels, "Y" and
    "DID/DDN" take it over the luma.
    Raises UserError where the two differ in shape or type.
    """
    one, other, peak = in_protocol(derained, clean, protocol, peak)
    mse = float(np.mean(np.square(one - other)))
    return 10 * math.log10(peak**2 / mse) if mse else math.inf


if __name__ == "__main__":
    from metrix_code.folders import main
    from utils import run

    run(lambda: main(psnr, "PSNR", __doc__, digits=3))
