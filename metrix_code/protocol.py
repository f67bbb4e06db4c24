"""Protocols of PSNR and SSIM: on the saved RGB image (our scores of record), or on its luma, in two ways.

    RGB      uint8 as saved, all three channels: SSID-KD's README, MSGNN, HCN, Derain-toolbox
    Y        luma of uint8, rounded as by MATLAB's rgb2ycbcr: MPRNet, Restormer; for Rain200H, Rain200L
             and SPA DRSformer and NeRD-Rain
    DID/DDN  luma, not rounded; SSIM of large images on downsampled ones: for Rain1200 and Rain1400
             RCDNet, DRSformer and NeRD-Rain

RGB and Y differ by about 1.3 dB, the last two by 0.06 in SSIM at 512x512, so every score names its protocol.
"""

import math
from collections.abc import Iterable

import cv2
import numpy as np

from utils import UserError

PROTOCOLS = ("RGB", "Y", "DID/DDN")


def luma(image: np.ndarray) -> np.ndarray:
    """The Y of ITU-R BT.601 in studio range, 16 (black) to 235 (white), as float64 (H, W).

    16 + 65.481 R + 128.553 G + 24.966 B for R, G, B in [0, 1]. Rounded to integers, halves up, for uint8 RGB
    (H, W, 3), as by MATLAB's rgb2ycbcr; not rounded for float RGB in [0, 255].
    """
    if image.dtype != np.uint8:
        return 16 + image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255
    # the same weights as integers: exact halves occur, and floats would miss them
    weighted = image.astype(np.int64) @ np.array([299, 587, 114])
    return (16 + (219 * weighted + 127_500) // 255_000).astype(np.float64)


def in_protocol(derained: np.ndarray, clean: np.ndarray, protocol: str) -> tuple[np.ndarray, np.ndarray]:
    """Both images as float64 in [0, 255], (H, W, 3) for "RGB", else (H, W).

    Raises UserError for an unknown protocol, two shapes or types, or anything but (H, W, 3).
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
        return luma(derained), luma(clean)
    derained, clean = derained.astype(np.float64), clean.astype(np.float64)
    return (derained, clean) if protocol == "RGB" else (luma(derained), luma(clean))  # not rounded


def ssim_downsample(image: np.ndarray) -> np.ndarray:
    """Float64 (H, W), downsampled as for the SSIM of DID/DDN: box means, about 256 on the shorter side.

    This is the automatic downsampling of Wang's ssim.m. The step and the box's width are min(H, W) / 256,
    rounded, halves up. Borders are mirrored with their edge; a box of even width extends further right and
    down, as in MATLAB's imfilter.
    """
    step = int(min(image.shape) / 256 + 0.5)
    if step <= 1:
        return image
    anchor = ((step + 1) // 2 - 1,) * 2
    return cv2.blur(image, (step, step), anchor=anchor, borderType=cv2.BORDER_REFLECT)[::step, ::step]


def mean(values: Iterable[float | None]) -> tuple[float | None, int]:
    """Mean of the finite values, and the number of infinite ones. Infinite if all are, None for no value."""
    measured = [value for value in values if value is not None]
    finite = [value for value in measured if math.isfinite(value)]
    infinite = len(measured) - len(finite)
    if not finite:
        return (math.inf if infinite else None), infinite
    return math.fsum(finite) / len(finite), infinite


def size(image: np.ndarray) -> str:
    """'481x321', width first."""
    return "x".join(str(n) for n in image.shape[1::-1])
