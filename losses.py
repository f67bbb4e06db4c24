"""The losses of both stages, each term a function of its own.

Images are float (N, 3, H, W) in [0, 1], not clamped. Each stage's criterion returns its terms by name and
their weighted total, so that one place sums, weights and logs them. The formulas follow the released code
where the paper leaves room; `REPRODUCTION.md` lists where.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from networks import Derained


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity, averaged over images, channels and pixels: a scalar, 1 for identical images.

    Gaussian window of 11, sigma 1.5, ZERO padding, each channel by itself, C1 = 0.01^2, C2 = 0.03^2: the
    released code's, which darkens the border's means and so weighs borders more than a 'valid' SSIM would.
    """
    channels = x.shape[1]
    offsets = torch.arange(11, dtype=x.dtype, device=x.device) - 5
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = window / window.sum()
    maps = torch.cat([x, y, x * x, y * y, x * y], 1)  # (N, 5C, H, W): one blur for all
    row = window.expand(5 * channels, 1, 1, 11)
    blurred = F.conv2d(maps, row, padding=(0, 5), groups=5 * channels)
    blurred = F.conv2d(blurred, row.transpose(2, 3), padding=(5, 0), groups=5 * channels)
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = blurred.split(channels, 1)
    variance_x, variance_y = mean_xx - mean_x**2, mean_yy - mean_y**2
    covariance = mean_xy - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)).mean()


def dark_channel(image: Tensor, window: int) -> Tensor:
    """Minus the SUM, over batch and positions, of the maximum of 1 - image over channels and a square window.

    The window is padded by half of itself, so that an even one gives a map of (H + 1, W + 1). A maximum is
    separable: over channels, rows and columns in turn it costs 2 `window` comparisons a position where the
    released three-dimensional pooling makes 3 `window` squared.
    """
    brightest = (1 - image).max(dim=1, keepdim=True).values
    brightest = F.max_pool2d(brightest, (window, 1), stride=1, padding=(window // 2, 0))
    return -F.max_pool2d(brightest, (1, window), stride=1, padding=(0, window // 2)).sum()


def total_variation(image: Tensor) -> Tensor:
    """SUM of the absolute differences to the left and the upper neighbour; beyond the image is 0."""
    left = F.pad(image, (1, 0))[..., :-1]
    above = F.pad(image, (0, 0, 1, 0))[..., :-1, :]
    return (image - left).abs().sum() + (image - above).abs().sum()


def distillation(code_syn: Tensor, code_real: Tensor) -> Tensor:
    """KL divergence of the real code's channels (softmax) from the synthetic one's, averaged over ELEMENTS.

    Both are (N, C4, H/4, W/4), and both get a gradient, as released.
    """
    target = F.softmax(code_real, 1)
    return F.kl_div(F.log_softmax(code_syn, 1), target, reduction="none").mean()


class TeacherCriterion:
    """Stage 1, SID: minus SSIM to the clean image, nothing else."""

    TERMS = ("ssim",)

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = weights

    def __call__(self, output: Derained, clean: Tensor) -> dict[str, Tensor]:
        """The unweighted term and `total`, scalars, from the network's output for a synthetic batch."""
        return _with_total({"ssim": ssim(output.derained.float(), clean)}, {"ssim": -self.weights["ssim"]})


class StudentCriterion:
    """Stage 2, SSID-KD: L1 on synthetic pairs, dark channel, total variation and distillation with real rain.

    `window` is that of the dark channel, the patch size as released. `processes` shares one batch among so
    many: the terms that are sums over the batch are scaled by it, so that the average over the processes,
    which is what data parallelism takes of gradients and the log of terms, is the sum over the whole batch.
    """

    TERMS = ("l1", "dark_syn", "dark_real", "tv_syn", "tv_real", "kl")

    def __init__(self, weights: Mapping[str, float], window: int, processes: int = 1) -> None:
        self.weights = {term: weights[term] for term in self.TERMS}
        self.window, self.processes = window, processes

    def __call__(self, output: Derained, clean: Tensor) -> dict[str, Tensor]:
        """The unweighted terms and `total`, from the output for synthetic images, then as many real ones."""
        derained_syn, derained_real = output.derained.float().chunk(2)
        code_syn, code_real = output.code.float().chunk(2)
        terms = {
            "l1": F.l1_loss(derained_syn, clean),
            # (x + 1) / 2: the released term takes its images to be in [-1, 1], which they are not
            "dark_syn": self.processes * dark_channel((derained_syn + 1) / 2, self.window),
            "dark_real": self.processes * dark_channel((derained_real + 1) / 2, self.window),
            "tv_syn": self.processes * total_variation(derained_syn),
            "tv_real": self.processes * total_variation(derained_real),
            "kl": distillation(code_syn, code_real),
        }
        return _with_total(terms, self.weights)


def _with_total(terms: dict[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
    # a term weighted 0 is logged, and not followed back
    total = sum(weight * terms[name] for name, weight in weights.items() if weight)
    logged = {name: term.detach() for name, term in terms.items()}
    return {**logged, "total": torch.as_tensor(total)}
