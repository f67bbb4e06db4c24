"""The table of metrics. scores.json, the paper's tables, the page and the printed lines are all made from it.

A new metric is one more row. LPIPS and BRISQUE, which reviewers also ask for, are left out: piq 0.8.0
and pyiqa 0.1.16 download their weights, and pyiqa's license excludes commercial use.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from metrix_code.niqe import niqe
from metrix_code.psnr import psnr
from metrix_code.ssim import ssim


def brightness_change(derained: np.ndarray, rainy: np.ndarray, *_: object) -> float:
    """Mean of the derained minus mean of the rainy uint8 image, in levels of 255; negative: darker."""
    return float(derained.mean(dtype=float) - rainy.mean(dtype=float))


@dataclass(frozen=True)
class Metric:
    """A score that scores.json holds under `key`; the same score of the rainy input is under `rainy_key`."""

    key: str
    title: str
    unit: str
    digits: int  # after the decimal point, wherever the score is printed
    sign: int  # 1: higher is better; -1: lower is better; 0: neither
    protocol: str  # see protocol.py; for NIQE, which parameters
    function: Callable[..., float]
    against: str = "clean"  # the image compared with: "clean", "rainy", or "" for none
    of_output: bool = False  # of the network's float output instead of the saved 8-bit image

    @property
    def rainy_key(self) -> str:
        return f"rainy_{self.key}"

    @property
    def name(self) -> str:
        """'PSNR (RGB)'"""
        return f"{self.title} ({self.protocol}{', float' if self.of_output else ''})"

    @property
    def in_tables(self) -> bool:
        """Whether papers tabulate it."""
        return self.against != "rainy" and not self.of_output

    def __call__(self, derained: np.ndarray, other: np.ndarray | None = None) -> float:
        """Score of RGB (H, W, 3): uint8, or float in [0, 255] if `of_output`. UserError where undefined."""
        return self.function(derained, other, self.protocol) if self.against else self.function(derained)

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}f}"


METRICS = {
    metric.key: metric
    for metric in (
        Metric("psnr", "PSNR", "dB", 3, 1, "RGB", psnr),
        Metric("ssim", "SSIM", "", 4, 1, "RGB", ssim),
        Metric("psnr_y", "PSNR", "dB", 3, 1, "Y", psnr),
        Metric("ssim_y", "SSIM", "", 4, 1, "Y", ssim),
        Metric("psnr_did", "PSNR", "dB", 3, 1, "DID/DDN", psnr),
        Metric("ssim_did", "SSIM", "", 4, 1, "DID/DDN", ssim),
        Metric("psnr_float", "PSNR", "dB", 3, 1, "RGB", psnr, of_output=True),
        Metric("ssim_float", "SSIM", "", 4, 1, "RGB", ssim, of_output=True),
        Metric("niqe", "NIQE", "", 4, -1, "LIVE, Y", niqe, against=""),
        # how much an image is changed, which needs no clean image; papers print neither
        Metric("psnr_input", "PSNR to the input", "dB", 2, 0, "RGB", psnr, against="rainy"),
        Metric("brightness", "change of brightness", "of 255", 2, 0, "RGB", brightness_change, "rainy"),
    )
}
# every score that an image may have in scores.json
KEYS = (*METRICS, *(metric.rainy_key for metric in METRICS.values() if metric.in_tables))
# the page shows these; the first of them that an image has ranks it by its gain
HEADLINE_METRICS = tuple(METRICS[key] for key in ("psnr", "ssim", "niqe"))
# printed for each image
PRINTED_METRICS = (*HEADLINE_METRICS, METRICS["psnr_input"], METRICS["brightness"])
