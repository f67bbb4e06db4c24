"""What a score is measured on: the RGB image as saved (of record here), or its luma Y as MATLAB rounds it.

The two differ by about 1.3 dB, so every score says which one it used.
"""

from __future__ import annotations

import numpy as np

from utils import UserError

PROTOCOLS = ("RGB", "Y")


def luma(image: np.ndarray, peak: float = 255.0) -> np.ndarray:
    """The Y of ITU-R BT.601 in studio range, 16 (black) to 235 (white), as float64 (H, W).

    16 + 65.481 R + 128.553 G + 24.966 B for R, G, B in [0, 1]. For uint8 RGB (H, W, 3) it is rounded to whole
    numbers, halves up, as MATLAB's rgb2ycbcr rounds it; for float RGB in [0, `peak`] it is not rounded.
    """
    if image.dtype != np.uint8:
        return 16 + image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / peak
    # The same weights over their common divisor, in whole numbers: exact halves occur, and floats miss them.
    weighted = image.astype(np.int64) @ np.array([299, 587, 114])
    return (16 + (219 * weighted + 127_500) // 255_000).astype(np.float64)


def in_protocol(
    derained: np.ndarray, clean: np.ndarray, protocol: str, peak: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Both images as float64, (H, W, 3) for "RGB" or (H, W) for "Y", and the peak that goes with them.

    Raises UserError for another protocol, two shapes, or anything but (H, W, 3).
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"no protocol is called {protocol!r}: use {' or '.join(PROTOCOLS)}")
    if derained.ndim != 3 or derained.shape[2] != 3 or not derained.size:
        raise UserError(f"an RGB image is (H, W, 3), not {derained.shape}")
    if derained.shape != clean.shape:
        raise UserError(f"the derained image is {size(derained)}, the clean one {size(clean)}: not one pair")
    if derained.dtype != clean.dtype:
        raise UserError(f"the derained image is {derained.dtype}, the clean one {clean.dtype}: use one type")
    if protocol == "Y":
        return luma(derained, peak), luma(clean, peak), 255.0
    return derained.astype(np.float64), clean.astype(np.float64), peak


def size(image: np.ndarray) -> str:
    """'481x321', width first, as people say it."""
    return "x".join(str(n) for n in image.shape[1::-1])
