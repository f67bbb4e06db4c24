"""LightNet: a backbone at a fraction of the cost of the paper's, for the same two stages. Not in the paper.

A plain residual U-Net, without normalisation or attention. Its convolutions see 197 pixels at most, so a tile
gives close to what the whole image gives there; `context` alone sees the whole image, as one vector.

    head            3x3 convolution
    level 1 ... 5   `units` residual blocks each; a 2x2 convolution of stride 2 leads down to the next
    level 4 ... 1   a 1x1 convolution and a pixel shuffle lead up; plus the skip; as many blocks again
    tail            3x3 convolution: the streaks; derained = rainy - streaks

With `context`, the deepest level begins by adding a 1x1 convolution of its input's mean over the image: the
tone of the whole. The deepest level's features are the code.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from networks import SLOPE, Derained


class Encoded(NamedTuple):
    """What the encoder makes of an image (N, 3, H, W), padded to a multiple of 16."""

    deepest: Tensor  # input of the deepest level, (N, channels[-1], H / 16, W / 16)
    skips: tuple[Tensor, ...]  # the other levels' features, from full resolution down


class Block(nn.Module):
    """x + conv3x3(LReLU(conv3x3(x))): (N, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.leaky_relu(self.conv1(x), SLOPE, inplace=True))


class Level(nn.Module):
    """The blocks of one resolution, one way. (N, C, H, W) to the same."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(channels) for _ in range(blocks))
        self.recompute = False  # activation checkpointing of the blocks: slower, less memory

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x)
        return x


class LightNet(nn.Module):
    """rainy (N, 3, H, W) to `Derained`, for any size from 1x1 up. The default: 4,054,347 parameters.

    `channels` and `units`, the number of blocks, are those of each level, from full resolution down.
    `context` adds 37,056 parameters.
    The code is (N, channels[-1], H / 16, W / 16), of the image padded to a multiple of 16.
    """

    def __init__(
        self,
        channels: Sequence[int] = (24, 48, 96, 144, 192),
        units: Sequence[int] = (1, 2, 2, 2, 2),
        context: bool = False,
    ) -> None:
        super().__init__()
        if len(channels) != len(units):
            raise ValueError("as many channels as units: one of each for each level")
        steps = list(pairwise(channels))  # from each level to the next
        self.head = nn.Conv2d(3, channels[0], 3, padding=1)
        self.encode = nn.ModuleList(map(Level, channels, units))
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in steps)
        self.up = nn.ModuleList(nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in steps)
        self.decode = nn.ModuleList(map(Level, channels[:-1], units[:-1]))
        self.tail = nn.Conv2d(channels[0], 3, 3, padding=1)
        self.context = nn.Conv2d(channels[-1], channels[-1], 1) if context else None
        # an upper bound of the maps' peak in float32, without the second that it takes to measure it
        self.bytes_a_pixel = 17 * sum(each / 4**level for level, each in enumerate(channels))
        for conv in filter(None, (self.tail, self.context)):  # starts as the identity
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(
        self, rainy: Tensor, image_mean: Tensor | None = None, encoded: Encoded | None = None
    ) -> Derained:
        """`image_mean`: that of the whole image where `rainy` is a tile of it; default: that of `rainy`.

        `encoded`: `self.encoded(rainy)`, if it is known already.
        """
        height, width = rainy.shape[-2:]
        x, skips = encoded or self.encoded(rainy)
        if self.context is not None:
            x = x + self.context(x.mean((2, 3), keepdim=True) if image_mean is None else image_mean)
        code = x = self.encode[-1](x)  # (N, C5, H / 16, W / 16)
        upwards = zip(reversed(self.decode), reversed(self.up), reversed(skips), strict=True)
        for decode, up, skip in upwards:
            # the skip first: the sum takes its layout, channels last; pixel_shuffle on CUDA returns NCHW
            x = decode(skip + F.pixel_shuffle(up(x), 2))
        streaks = self.tail(x)[..., :height, :width]
        return Derained(rainy - streaks, streaks, code)

    def encoded(self, rainy: Tensor) -> Encoded:
        """The first half of `forward`; the mean of `deepest` over an image is its `image_mean`."""
        x = self.head(pad_to_multiple(rainy, 2 ** len(self.down)))  # (N, C1, H, W), padded
        skips = []
        for encode, down in zip(self.encode, self.down, strict=False):
            skips.append(encode(x))
            x = down(skips[-1])
        return Encoded(x, tuple(skips))

    def recompute_units(self) -> None:
        """Recompute each block's activations in the backward pass: slower, less memory."""
        for level in (*self.encode, *self.decode):
            level.recompute = True

    def compile_units(self, backend: str = "inductor", mode: str | None = None) -> None:
        """Compile each level separately: small graphs compile fast."""
        for level in (*self.encode, *self.decode):
            level.compile(backend=backend, mode=mode, dynamic=False)


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """(N, 3, H, W), reflected at the right and the bottom to the next multiple; replicated if too small."""
    height, width = images.shape[-2:]
    right, below = -width % multiple, -height % multiple
    if not right and not below:
        return images
    mode = "reflect" if right < width and below < height else "replicate"
    return F.pad(images, (0, right, 0, below), mode=mode)
