"""5x5 convolutions by the Fourier transform, on processors where products of transforms take less time.

PyTorch carries NNPACK, which transforms tiles of 8x8 or 16x16 pixels, and so needs a sixth of the
multiplications at 5x5. PyTorch by itself calls it with oneDNN switched off and sixteen images at once, or
never. Here it is called wherever it `pays`, for the gradients too: the same numbers but for rounding.
`torch.backends.nnpack.flags(enabled=False)`, PyTorch's own switch, leaves everything to F.conv2d.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

REACH = 2  # of a 5x5 kernel
TILE = 16  # of NNPACK's larger transform, in pixels
BAND = 2**15  # pixels of all images that are transformed at once, in 2 KB or so each
MOST_THREADS = 2  # with one a training step takes two thirds of the time, with two five sixths of it


def pays(x: Tensor) -> bool:
    """Whether 5x5 convolutions of x (N, C, H, W), and their gradients, are to go by this module.

    Where F.conv2d has wider vectors (AVX-512), or bfloat16, or a card, it does not pay; nor on smaller maps.
    """
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor  # and none of those that only stand for one
        and (x.device.type, x.dtype) == ("cpu", torch.float32)
        and not torch.is_autocast_enabled("cpu")
        and min(x.shape[-2:]) >= TILE
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
        and torch.get_num_threads() <= MOST_THREADS
        and torch._C._get_nnpack_enabled()
        and torch._nnpack_available()  # it also makes NNPACK ready: without it every convolution fails
    )


def convolve(x: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    """LeakyReLU of this `slope` of the 'same' convolution of x (N, C, H, W), float32, with 5x5 kernels.

    `weight` (C_out, C, 5, 5), `bias` (C_out,). The result (N, C_out, H, W) is contiguous, not channels last,
    and is differentiable once.
    """
    return _Convolution.apply(x, weight, bias, slope)


class _Convolution(torch.autograd.Function):
    """The activation is within, so that what autograd keeps, and the gradient, lie as NNPACK takes them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
        x = x.contiguous()
        out = F.leaky_relu(_same(x, weight, bias), slope, inplace=True)
        ctx.save_for_backward(x, weight, out)
        ctx.slope = slope
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, out = ctx.saved_tensors
        gradient = torch.ops.aten.leaky_relu_backward(gradient.contiguous(), out, ctx.slope, True)
        by_x = _same(gradient, weight.flip(2, 3).transpose(0, 1)) if ctx.needs_input_grad[0] else None
        return by_x, _by_weight(x, gradient), gradient.sum((0, 2, 3)), None


def _same(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """In bands of rows: the transforms of a whole photograph would take more memory than all else."""
    weight = weight.contiguous()
    count, _, height, width = x.shape
    rows = max(TILE, BAND // (count * width))
    if rows >= height:
        return torch._nnpack_spatial_convolution(x, weight, bias, REACH)
    out = x.new_empty(count, len(weight), height, width)
    for top in range(0, height, rows):
        bottom, first = min(top + rows, height), max(top - REACH, 0)
        band = x[:, :, first : bottom + REACH].contiguous()
        band = torch._nnpack_spatial_convolution(band, weight, bias, REACH)
        out[:, :, top:bottom] = band[:, :, top - first : bottom - first]
    return out


def _by_weight(x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient by the weight, (C_out, C, 5, 5), from x (N, C, H, W) and the gradient (N, C_out, H, W).

    That is a convolution too: of x with the gradient for a kernel, summed over the images. NNPACK's kernels
    are small, so the gradient is cut to tiles, which are summed over like the images: both are its channels,
    and the channels are its images.
    """
    side = TILE - 2 * REACH
    right, below = -x.shape[-1] % side, -x.shape[-2] % side
    x = F.pad(x, (REACH, REACH + right, REACH, REACH + below))
    gradient = F.pad(gradient, (0, right, 0, below))
    tiles, kernels = (
        each.unfold(2, wide, side).unfold(3, wide, side).transpose(0, 1).flatten(1, 3)
        for each, wide in ((x, TILE), (gradient, side))
    )
    return torch._nnpack_spatial_convolution(tiles, kernels, None, 0).transpose(0, 1)
