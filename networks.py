"""The backbone of SID and SSID-KD: multi-scale fusion and pyramid fusion modules in three branches.

Teacher and student have the same architecture. Images are RGB, (N, 3, H, W), float, in [0, 1], any size from
1x1 up. C1, C2, C4: channels at full, half and quarter resolution (24, 32, 48 in the paper). n1, n2, n4: how
often a stage applies its unit there (10, 4, 2).

Some modules compute the paper's formula in a cheaper, equivalent way; their docstrings give the plain
formula, and tests/plain.py has the whole network in plain formulas. The released network computes five
fusions and discards their output; this one leaves them out.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SLOPE = 0.2  # of every LeakyReLU
SMALLEST = 32  # smallest side whose quarter resolution can be pooled by 8


class Derained(NamedTuple):
    """The network's outputs for a batch of rainy images (N, 3, H, W)."""

    derained: Tensor  # (N, 3, H, W), rainy - streaks: not clamped
    streaks: Tensor  # (N, 3, H, W)
    code: Tensor  # (N, C4, H // 4, W // 4), the features to distil; of the padded image if a side is below 32


# --------------------------------------------------------------------------------------- convolutions, sizes


def activate(x: Tensor) -> Tensor:
    # in place: the backward pass of LeakyReLU only needs the sign of its output
    return F.leaky_relu(x, SLOPE, inplace=True)


class Conv(nn.Conv2d):
    """'Same' convolution with a bias, then LeakyReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 3) -> None:
        super().__init__(channels_in, channels_out, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return activate(super().forward(x))


class Fusion(nn.Conv2d):
    """1x1 convolution of several maps with equal channels, upsampled to the size of the first; no LReLU.

    Plain formula: conv1x1(concat([nearest(map) for map in maps])). A 1x1 convolution commutes with nearest
    upsampling and is a sum over input channels, so each map is multiplied by its own slice of the weights at
    its own resolution. The wide concatenated tensor is never built.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 1)

    def forward(self, maps: Iterable[Tensor]) -> Tensor:
        """Maps (N, C_in / their number, h, w) to (N, C_out, H, W), the size of the first."""
        maps = iter(maps)
        first = next(maps)
        slices = iter(self.weight.split(first.shape[1], 1))
        fused = F.conv2d(first, next(slices), self.bias)
        for level, part in zip(maps, slices, strict=True):
            fused += nearest(F.conv2d(level, part), first.shape[-2:])
        return fused


def nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest upsampling to `size` (H, W)."""
    if x.shape[-2:] == tuple(size):
        return x
    with torch.autocast(x.device.type, enabled=False):  # on CUDA, autocast would convert to float32
        return F.interpolate(x, tuple(size))


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, without aligned corners, to `size` (H, W)."""
    height, width = x.shape[-2:]
    if (height, width) == (2 * size[0], 2 * size[1]):
        return F.avg_pool2d(x, 2)  # equal, and cheaper
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def halved(size: Sequence[int]) -> tuple[int, int]:
    return size[0] // 2, size[1] // 2


# ---------------------------------------------------------------------------------------------- the unit


class PyramidFusion(nn.Module):
    """Pools x by 1, 2, 4, 8; fuses from coarse to fine, then all levels at once. (N, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()

        def chain() -> nn.Sequential:
            return nn.Sequential(*(Conv(channels, channels) for _ in range(4)))

        self.chain1, self.chain2, self.chain4, self.chain8 = chain(), chain(), chain(), chain()
        self.fuse84 = Fusion(2 * channels, channels)
        self.fuse42 = Fusion(2 * channels, channels)
        self.fuse21 = Fusion(2 * channels, channels)
        self.fuse_all = Fusion(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        p2 = F.max_pool2d(x, 2)
        p4 = F.max_pool2d(p2, 2)  # equals pooling x by 4
        p8 = F.max_pool2d(p4, 2)
        s8 = self.chain8(p8)
        s4 = self.chain4(activate(self.fuse84([p4, s8])))
        s2 = self.chain2(activate(self.fuse42([p2, s4])))
        s1 = self.chain1(activate(self.fuse21([x, s2])))
        return activate(self.fuse_all([s1, s2, s4, s8])) + x


class MultiScaleFusion(nn.Module):
    """Parallel 3x3 and 5x5 convolutions, twice; the second pair reads both outputs. (N, C, H, W) to the same.

    Plain formula of the first pair: concat([LReLU(conv3_1(x)), LReLU(conv5_1(x))]). One convolution computes
    both, with the 3x3 kernel zero-padded to 5x5: more products in less time, since 24 output channels do not
    fill the vector units, and no concatenation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv5_1 = nn.Conv2d(channels, channels, 5, padding=2)
        self.conv3_2 = Conv(2 * channels, 2 * channels, 3)
        self.conv5_2 = Conv(2 * channels, 2 * channels, 5)
        self.fuse = Fusion(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.cat([F.pad(self.conv3_1.weight, (1, 1, 1, 1)), self.conv5_1.weight])
        bias = torch.cat([self.conv3_1.bias, self.conv5_1.bias])  # type: ignore[list-item]
        both = activate(F.conv2d(x, weight, bias, padding=2))  # (N, 2C, H, W)
        return self.fuse(conv(both) for conv in (self.conv3_2, self.conv5_2)) + x  # one at a time


class Unit(nn.Sequential):
    """A pyramid fusion module, then a multi-scale fusion module. (N, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__(PyramidFusion(channels), MultiScaleFusion(channels))

    def forward(self, x: Tensor) -> Tensor:  # overridden: torch.compile splits nn.Sequential's into graphs
        pyramid_fusion, multi_scale_fusion = self
        return multi_scale_fusion(pyramid_fusion(x))


# -------------------------------------------------------------------------------------- stages and branches


class DenseFeatures(nn.Module):
    """A dense stage without its output layer: returns the features t_1, ..., t_n only.

        out_0 = x,   t_i = unit(out_{i-1} + skip_i),   out_i = LReLU(conv1x1_i([x, t_1, ..., t_i]))

    As released, all n steps share one unit; only the 1x1 convolutions differ.
    """

    def __init__(self, channels: int, n: int) -> None:
        super().__init__()
        self.unit = Unit(channels)
        self.fusions = nn.ModuleList(Fusion((i + 1) * channels, channels) for i in range(1, n))
        self.n = n
        self.recompute = False  # activation checkpointing of the unit: slower, far less memory

    def forward(self, x: Tensor, skips: Iterator[Tensor] | None = None) -> list[Tensor]:
        """x (N, C, H, W), and the n features of another stage, to n features like x."""
        features: list[Tensor] = []
        for i in range(self.n):
            out = activate(self.fusions[i - 1]([x, *features])) if i else x
            if skips is not None:  # `is not None`, not truthiness: torch 2.11 cannot compile bool(iterator)
                out = out + next(skips)
            if self.recompute and torch.is_grad_enabled():
                # a unit draws no random numbers, so no generator state is saved
                features.append(checkpoint(self.unit, out, use_reentrant=False, preserve_rng_state=False))
            else:
                features.append(self.unit(out))
        return features


class DenseStage(DenseFeatures):
    """A dense stage: returns its features t_1, ..., t_n and its output out_n."""

    def __init__(self, channels: int, n: int) -> None:
        super().__init__(channels, n)
        self.fusions.append(Fusion((n + 1) * channels, channels))

    def forward(  # type: ignore[override]
        self, x: Tensor, skips: Iterator[Tensor] | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """x (N, C, H, W), and the n features of another stage, to n features and the output, like x."""
        features = super().forward(x, skips)
        return features, activate(self.fusions[-1]([x, *features]))


class Join(Conv):
    """Carries a stage's features to another resolution: resized, concatenated, 3x3 convolution, LReLU."""

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:  # type: ignore[override]
        if (
            size[0] > features[0].shape[-2]
        ):  # resize before or after the concat, whichever touches fewer pixels
            return super().forward(resize(torch.cat([*features], 1), size))
        return super().forward(torch.cat([resize(t, size) for t in features], 1))


def last_read(features: list[Tensor]) -> Iterator[Tensor]:
    """Pops one feature after another, so that without a backward pass each is freed once it is used.

    A full-resolution stage has ten; memory of inference peaks in the stage that reads them as skips.
    """
    while features:
        yield features.pop(0)


class HalfBranch(nn.Module):
    """Half resolution: down to a quarter and up again, with skips from the quarter branch."""

    def __init__(self, channels: Sequence[int], units: Sequence[int]) -> None:
        super().__init__()
        (_, c2, c4), (_, n2, n4) = channels, units
        self.encode2 = DenseFeatures(c2, n2)
        self.down4 = Join(c2 * n2, c4)
        self.encode4 = DenseFeatures(c4, n4)
        self.up2 = Join(c4 * n4, c2)
        self.decode2 = DenseStage(c2, n2)

    def forward(
        self, f2: Tensor, skips4: Iterator[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
        """f2 (N, C2, H/2, W/2) to the features of encode2, encode4 and decode2, and d2, which is like f2."""
        size2 = f2.shape[-2:]
        size4 = halved(size2)
        encoded2 = self.encode2(f2)
        encoded4 = self.encode4(self.down4(encoded2, size4), skips4)
        decoded2, out = self.decode2(self.up2(encoded4, size2), iter(encoded2))
        return encoded2, encoded4, decoded2, out + f2


class FullBranch(nn.Module):
    """Full resolution: down to a quarter and up again, with skips from the half branch at every level."""

    def __init__(self, channels: Sequence[int], units: Sequence[int]) -> None:
        super().__init__()
        (c1, c2, c4), (n1, n2, n4) = channels, units
        self.encode1 = DenseFeatures(c1, n1)
        self.down2 = Join(c1 * n1, c2)
        self.encode2 = DenseFeatures(c2, n2)
        self.down4 = Join(c2 * n2, c4)
        self.encode4 = DenseFeatures(c4, n4)
        self.up2 = Join(c4 * n4, c2)
        self.decode2 = DenseStage(c2, n2)
        self.up1 = Join(c2 * n2, c1)
        self.decode1 = DenseStage(c1, n1)

    def forward(
        self, f1: Tensor, skips2: Iterator[Tensor], skips4: Iterator[Tensor], skips2_up: Iterator[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """f1 (N, C1, H, W) to d1, which is like f1, and the code (N, C4, H/4, W/4)."""
        size1 = f1.shape[-2:]
        size2 = halved(size1)
        size4 = halved(size2)
        encoded1 = self.encode1(f1)
        g = self.down2(encoded1, size2)
        encoded2 = self.encode2(g, skips2)
        encoded4 = self.encode4(self.down4(encoded2, size4), skips4)
        decoded2, out = self.decode2(self.up2(encoded4, size2), skips2_up)
        x = self.up1([*decoded2[:-1], out + g], size1)  # the last feature is replaced by the stage's output
        code = encoded4[-1]
        del encoded2, encoded4, decoded2, out, g  # as `last_read`: memory peaks in the next stage
        _, out = self.decode1(x, last_read(encoded1))
        return out + f1, code


# --------------------------------------------------------------------------------------------- the network


class DerainNet(nn.Module):
    """rainy (N, 3, H, W) to `Derained`. Default: the paper's size, 4,403,195 parameters."""

    def __init__(self, channels: Sequence[int] = (24, 32, 48), units: Sequence[int] = (10, 4, 2)) -> None:
        super().__init__()
        c1, c2, c4 = channels
        self.head1, self.head2, self.head4 = Conv(3, c1), Conv(3, c2), Conv(3, c4)
        self.quarter_branch = DenseStage(c4, units[2])
        self.half_branch = HalfBranch(channels, units)
        self.full_branch = FullBranch(channels, units)
        self.tail = Conv(c1 + c2 + c4, 3)

    def forward(self, rainy: Tensor) -> Derained:
        height, width = rainy.shape[-2:]
        below = (0, max(0, SMALLEST - width), 0, max(0, SMALLEST - height))
        padded = F.pad(rainy, below, mode="replicate") if any(below) else rainy
        streaks, code = self._streaks(padded)
        streaks = streaks[..., :height, :width]
        return Derained(rainy - streaks, streaks, code)

    def _streaks(self, rainy: Tensor) -> tuple[Tensor, Tensor]:
        size1 = rainy.shape[-2:]
        size2 = halved(size1)
        size4 = halved(size2)

        f4 = self.head4(resize(rainy, size4))  # (N, C4, H/4, W/4)
        features4, out = self.quarter_branch(f4)
        d4 = out + f4

        f2 = self.head2(resize(rainy, size2))  # (N, C2, H/2, W/2)
        encoded2, encoded4, decoded2, d2 = self.half_branch(f2, last_read(features4))

        f1 = self.head1(rainy)  # (N, C1, H, W)
        skips = last_read(encoded2), last_read(encoded4), last_read(decoded2)
        d1, code = self.full_branch(f1, *skips)

        streaks = self.tail(torch.cat([d1, resize(d2, size1), resize(d4, size1)], 1))
        return streaks, code

    def recompute_units(self) -> None:
        """Recompute each unit's activations in the backward pass: slower, far less memory."""
        for stage in self.modules():
            if isinstance(stage, DenseFeatures):
                stage.recompute = True

    def compile_units(self, backend: str | Callable = "inductor", mode: str | None = None) -> None:
        """Compile each stage's unit instead of the whole network: small graphs compile fast.

        `mode` is torch.compile's. dynamic=False: inductor fails on the graph for all sizes, which torch tries
        from the second size on.
        """
        for stage in self.modules():
            if isinstance(stage, DenseFeatures):
                stage.unit.compile(backend=backend, mode=mode, dynamic=False)
