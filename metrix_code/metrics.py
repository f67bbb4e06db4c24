"""The one table of metrics: scores.json, the tables, the page, the printed lines and the scripts all read it.

A new metric is one more line here. LPIPS and BRISQUE, which reviewers ask for too, are left out: piq 0.8.0
and pyiqa 0.1.16 carry the weights of neither and download them (and pyiqa is not for commercial use).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from metrix_code.niqe import niqe
from metrix_code.psnr import psnr
from metrix_code.ssim import ssim


@dataclass(frozen=True)
class Metric:
    """A number that an image has in scores.json under `key`; the rainy input's is under `rainy_key`."""

    key: str
    title: str
    unit: str
    digits: int  # in every place where it is printed
    sign: int  # 1: more is better; -1: less is
    protocol: str  # see protocol.py; of NIQE, which parameters
    function: Callable[..., float]
    paired: bool = True  # measured against the clean image
    of_output: bool = False  # of the network's float output, not of the 8-bit image as saved

    @property
    def rainy_key(self) -> str:
        return f"rainy_{self.key}"

    @property
    def name(self) -> str:
        """'PSNR (RGB)'"""
        return f"{self.title} ({self.protocol}{', float' if self.of_output else ''})"

    def __call__(self, derained: np.ndarray, clean: np.ndarray | None = None) -> float:
        """Of RGB (H, W, 3), uint8, or float in [0, 1] where `of_output`. Raises UserError if it has none."""
        if not self.paired:
            return self.function(derained)
        return self.function(derained, clean, self.protocol, 1.0 if self.of_output else 255.0)

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
        Metric("niqe", "NIQE", "", 4, -1, "LIVE, Y", niqe, paired=False),
    )
}
# the numbers that an image may have in scores.json
KEYS = (*METRICS, *(metric.rainy_key for metric in METRICS.values() if not metric.of_output))
# shown a line an image and on the page; the first of them that there is tells what was gained
HEADLINE_METRICS = tuple(METRICS[key] for key in ("psnr", "ssim", "niqe"))
