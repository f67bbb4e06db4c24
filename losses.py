"""The terms of both stages' losses, each a pure function. `stages.py` says which stage minimises which.

Images are float32 (N, 3, H, W) in [0, 1], not clamped. The formulas follow the released code where the paper
leaves room; REPRODUCTION.md lists where.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity, averaged over images, channels and pixels: a scalar, 1 for identical images.

    Gaussian window of 11, sigma 1.5, ZERO padding, each channel separately, C1 = 0.01^2, C2 = 0.03^2, as
    released. Zero padding darkens the means at the border, so borders weigh more than in a 'valid' SSIM.
    """
    # contiguous: on CUDA, channels-last convolutions may run in TF32, too coarse for the variances
    x, y = x.contiguous(), y.contiguous()
    channels = x.shape[1]
    offsets = torch.arange(11, dtype=x.dtype, device=x.device) - 5
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = window / window.sum()
    maps = torch.cat([x, y, x * x, y * y, x * y], 1)  # (N, 5C, H, W), blurred in one call
    row = window.expand(5 * channels, 1, 1, 11)
    blurred = F.conv2d(maps, row, padding=(0, 5), groups=5 * channels)
    blurred = F.conv2d(blurred, row.transpose(2, 3), padding=(5, 0), groups=5 * channels)
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = blurred.split(channels, 1)
    variance_x, variance_y = mean_xx - mean_x**2, mean_yy - mean_y**2
    covariance = mean_xy - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)).mean()


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference, a scalar."""
    return F.l1_loss(x, y)


def psnr(x: Tensor, y: Tensor, most: float = 60.0) -> Tensor:
    """PSNR in dB per image, averaged: a scalar. Unlike MSE's, its gradient is not dominated by bad images.

    `most` is its upper limit, reached as the error nears 0; without it near-perfect images would dominate.
    """
    errors = F.mse_loss(x, y, reduction="none").mean((1, 2, 3))
    return -10 * (errors + 10 ** (-most / 10)).log10().mean()


def dark_channel(image: Tensor, window: int) -> Tensor:
    """Minus the SUM, over batch and positions, of the maximum of 1 - image over channels and a square window.

    Padding is window // 2, so an even window gives a map of (H + 1, W + 1). The maximum is separable: over
    channels, rows and columns in turn it takes 2 `window` comparisons per position, and the released
    three-dimensional pooling 3 `window` squared.
    """
    brightest = (1 - image).max(dim=1, keepdim=True).values
    brightest = F.max_pool2d(brightest, (window, 1), stride=1, padding=(window // 2, 0))
    return -F.max_pool2d(brightest, (1, window), stride=1, padding=(0, window // 2)).sum()


def total_variation(image: Tensor) -> Tensor:
    """SUM of absolute differences to the left and the upper neighbour; the image is zero-padded."""
    left = F.pad(image, (1, 0))[..., :-1]
    above = F.pad(image, (0, 0, 1, 0))[..., :-1, :]
    return (image - left).abs().sum() + (image - above).abs().sum()


def distillation(code_syn: Tensor, code_real: Tensor) -> Tensor:
    """KL divergence of the real code from the synthetic one (softmax over channels), averaged over ELEMENTS.

    Both are (N, C4, H/4, W/4); as released, both get a gradient.
    """
    target = F.softmax(code_real, 1)
    return F.kl_div(F.log_softmax(code_syn, 1), target, reduction="none").mean()
