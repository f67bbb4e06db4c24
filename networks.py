"""The backbone of SID and SSID-KD: multi-scale fusion and pyramid fusion modules in three branches.

One network serves as teacher and as student. Images are RGB, (N, 3, H, W), float, in [0, 1], of any size from
1x1 up. C1, C2, C4 are the channels at full, half and quarter resolution (24, 32, 48 in the paper) and n1, n2,
n4 how often a stage applies its unit there (10, 4, 2); both are arguments, so that a test can be small.

Three formulations here differ from the paper's figures and give the same function at less cost: a 1x1 fusion
of concatenated maps is the sum of each map's slice of it (`Fusion`), the first 3x3 and 5x5 convolutions of a
unit are one (`MultiScaleFusion`), and the five fusions whose output the released network throws away are left
out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SLOPE = 0.2  # of every LeakyReLU
SMALLEST = 32  # below this side the quarter resolution cannot be pooled by eight once more


class Derained(NamedTuple):
    """What the network makes of a batch of rainy images (N, 3, H, W)."""

    derained: Tensor  # (N, 3, H, W), rainy - streaks: not clamped
    streaks: Tensor  # (N, 3, H, W)
    code: Tensor  # (N, C4, H // 4, W // 4), of the padded image where a side is below 32: what is distilled


def activate(x: Tensor) -> Tensor:
    # in place: the backward pass of LeakyReLU needs the sign of its result alone
    return F.leaky_relu(x, SLOPE, inplace=True)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, without aligned corners, to `size` (H, W)."""
    height, width = x.shape[-2:]
    if (height, width) == (2 * size[0], 2 * size[1]):
        return F.avg_pool2d(x, 2)  # the same numbers, cheaper
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


class Fusion(nn.Conv2d):
    """1x1 convolution of several maps, concatenated, all brought to the size of the first (nearest).

    It commutes with nearest upsampling and is a sum over its input channels: so each map meets its own slice
    of the weights at its own resolution, and the wide concatenated tensor is never built. For maps that lie
    channels last each slice is a product of two matrices as they are, added to the sum in place.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 1)

    def forward(self, maps: Iterable[Tensor]) -> Tensor:
        maps = iter(maps)
        first = next(maps)
        count, channels, height, width = first.shape
        # cast once: autocast leaves operations in place alone, and would cast every slice anew
        weight = self.weight.flatten(1).t().to(first.dtype)  # (C_in, C_out)
        fused = torch.addmm(self.bias, pixels(first), weight[:channels])  # type: ignore[arg-type]
        del first
        for level in maps:
            part = weight[channels : channels + level.shape[1]]
            channels += level.shape[1]
            rows, columns = level.shape[-2:]
            if (rows, columns) == (height, width):
                fused.addmm_(pixels(level), part)
            else:
                small = (pixels(level) @ part).unflatten(0, (count, rows, columns)).permute(0, 3, 1, 2)
                fused += pixels(F.interpolate(small, (height, width)))
            del level  # the next one may only now be made
        return fused.unflatten(0, (count, height, width)).permute(0, 3, 1, 2)


def pixels(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N H W, C), a row a pixel: a view of maps that lie channels last."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


class Conv(nn.Conv2d):
    """'Same' convolution with a bias, then LeakyReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 3) -> None:
        super().__init__(channels_in, channels_out, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return activate(super().forward(x))


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
        p4 = F.max_pool2d(p2, 2)  # of x by 4: the maximum of maxima
        s8 = self.chain8(F.max_pool2d(p4, 2))
        s4 = self.chain4(activate(self.fuse84([p4, s8])))
        s2 = self.chain2(activate(self.fuse42([p2, s4])))
        s1 = self.chain1(activate(self.fuse21([x, s2])))
        return activate(self.fuse_all([s1, s2, s4, s8])) + x


class MultiScaleFusion(nn.Module):
    """3x3 and 5x5 convolutions side by side, twice, each pair seeing both. (N, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv5_1 = nn.Conv2d(channels, channels, 5, padding=2)
        self.conv3_2 = Conv(2 * channels, 2 * channels, 3)
        self.conv5_2 = Conv(2 * channels, 2 * channels, 5)
        self.fuse = Fusion(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        # One convolution makes both, the 3x3 as a 5x5 with a rim of zeros. More products, yet less time: it
        # fills the vector units, which 24 output channels do not, and nothing is left to concatenate.
        weight = torch.cat([F.pad(self.conv3_1.weight, (1, 1, 1, 1)), self.conv5_1.weight])
        bias = torch.cat([self.conv3_1.bias, self.conv5_1.bias])  # type: ignore[list-item]
        both = activate(F.conv2d(x, weight, bias, padding=2))  # (N, 2C, H, W)
        fused = self.fuse(conv(both) for conv in (self.conv3_2, self.conv5_2))  # one at a time
        fused += x  # no activation here
        return fused


class DenseStage(nn.Module):
    """Applies ONE unit n times, its weights tied as the authors released it; only the 1x1 fusions differ.

    `gives_output`: whether anything reads the stage's output, or its features alone. Without it the last
    fusion would get no gradient, so it is not made.
    """

    def __init__(self, channels: int, n: int, gives_output: bool) -> None:
        super().__init__()
        self.unit = nn.Sequential(PyramidFusion(channels), MultiScaleFusion(channels))
        self.fusions = nn.ModuleList(
            Fusion((i + 1) * channels, channels) for i in range(1, n + int(gives_output))
        )
        self.n = n
        self.recompute = False  # the unit's inner maps in the backward pass: slower, and far smaller

    def forward(self, x: Tensor, skips: list[Tensor] | None = None) -> tuple[list[Tensor], Tensor]:
        """x (N, C, H, W) and another stage's n features to this stage's n features and its output.

        `skips` is emptied as it is read: outside training, each is then freed where it is read last.

        Where the output is not given, what stands in its place is the last unit's input: do not read it.
        """
        features: list[Tensor] = []
        out = x
        for i in range(self.n):
            if skips:
                out = out + skips.pop(0)
            if self.recompute and torch.is_grad_enabled():
                features.append(checkpoint(self.unit, out, use_reentrant=False))
            else:
                features.append(self.unit(out))
            if i < len(self.fusions):
                out = activate(self.fusions[i]([x, *features]))
        return features, out


class Join(Conv):
    """Carries a stage's features to another resolution: resized, concatenated, 3x3 convolution, LReLU."""

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:  # type: ignore[override]
        if size[0] > features[0].shape[-2]:  # whichever comes first is done on the smaller maps
            return super().forward(resize(torch.cat([*features], 1), size))
        return super().forward(torch.cat([resize(t, size) for t in features], 1))


class HalfBranch(nn.Module):
    """Half resolution: down to a quarter and up again, with skips from the quarter branch."""

    def __init__(self, channels: Sequence[int], units: Sequence[int]) -> None:
        super().__init__()
        (_, c2, c4), (_, n2, n4) = channels, units
        self.encode2 = DenseStage(c2, n2, gives_output=False)
        self.down4 = Join(c2 * n2, c4)
        self.encode4 = DenseStage(c4, n4, gives_output=False)
        self.up2 = Join(c4 * n4, c2)
        self.decode2 = DenseStage(c2, n2, gives_output=True)

    def forward(self, f2: Tensor, skips4: list[Tensor], size4: Sequence[int]) -> tuple[list[Tensor], ...]:
        """f2 (N, C2, H/2, W/2) to the features of encode2, encode4, decode2, and [d2]."""
        encoded2, _ = self.encode2(f2)
        encoded4, _ = self.encode4(self.down4(encoded2, size4), skips4)
        decoded2, out = self.decode2(self.up2(encoded4, f2.shape[-2:]), list(encoded2))
        return encoded2, encoded4, decoded2, [out + f2]


class FullBranch(nn.Module):
    """Full resolution: down to a quarter and up again, with skips from the half branch at every level."""

    def __init__(self, channels: Sequence[int], units: Sequence[int]) -> None:
        super().__init__()
        (c1, c2, c4), (n1, n2, n4) = channels, units
        self.encode1 = DenseStage(c1, n1, gives_output=False)
        self.down2 = Join(c1 * n1, c2)
        self.encode2 = DenseStage(c2, n2, gives_output=False)
        self.down4 = Join(c2 * n2, c4)
        self.encode4 = DenseStage(c4, n4, gives_output=False)
        self.up2 = Join(c4 * n4, c2)
        self.decode2 = DenseStage(c2, n2, gives_output=True)
        self.up1 = Join(c2 * n2, c1)
        self.decode1 = DenseStage(c1, n1, gives_output=True)

    def forward(self, f1: Tensor, half: Sequence[list[Tensor]]) -> tuple[Tensor, Tensor]:
        """f1 and the half branch's features to d1 (N, C1, H, W) and the code (N, C4, H/4, W/4)."""
        skips2, skips4, skips2_up = half
        size2, size4 = skips2[0].shape[-2:], skips4[0].shape[-2:]
        encoded1, _ = self.encode1(f1)
        g = self.down2(encoded1, size2)
        encoded2, _ = self.encode2(g, skips2)
        encoded4, _ = self.encode4(self.down4(encoded2, size4), skips4)
        decoded2, out = self.decode2(self.up2(encoded4, size2), skips2_up)
        x = self.up1([*decoded2[:-1], out + g], f1.shape[-2:])  # the last feature gives way to the output
        del encoded2, decoded2, out, g  # inference: the next stage is where memory peaks
        _, out = self.decode1(x, encoded1)
        return out + f1, encoded4[-1]


class DerainNet(nn.Module):
    """rainy (N, 3, H, W) to `Derained`. The paper's size is the default: 4,403,195 parameters."""

    def __init__(
        self,
        channels: Sequence[int] = (24, 32, 48),
        units: Sequence[int] = (10, 4, 2),
        recompute: bool = False,
    ) -> None:
        super().__init__()
        c1, c2, c4 = channels
        self.head1, self.head2, self.head4 = Conv(3, c1), Conv(3, c2), Conv(3, c4)
        self.quarter_branch = DenseStage(c4, units[2], gives_output=True)
        self.half_branch = HalfBranch(channels, units)
        self.full_branch = FullBranch(channels, units)
        self.tail = Conv(c1 + c2 + c4, 3)
        for stage in self.modules():
            if isinstance(stage, DenseStage):
                stage.recompute = recompute

    def compile_units(self) -> None:
        """Has torch compile each stage's unit, not the network: one small graph a stage compiles fast."""
        for stage in self.modules():
            if isinstance(stage, DenseStage):
                stage.unit.compile()

    def forward(self, rainy: Tensor) -> Derained:
        height, width = rainy.shape[-2:]
        below = (0, max(0, SMALLEST - width), 0, max(0, SMALLEST - height))
        padded = F.pad(rainy, below, mode="replicate") if any(below) else rainy
        streaks, code = self._streaks(padded)
        streaks = streaks[..., :height, :width]
        return Derained(rainy - streaks, streaks, code)

    def _streaks(self, rainy: Tensor) -> tuple[Tensor, Tensor]:
        height, width = size1 = rainy.shape[-2:]
        size2, size4 = (height // 2, width // 2), (height // 4, width // 4)
        f4 = self.head4(resize(rainy, size4))  # (N, C4, H/4, W/4)
        quarter, out = self.quarter_branch(f4)
        d4 = f4 + out
        *half, (d2,) = self.half_branch(self.head2(resize(rainy, size2)), quarter, size4)
        d1, code = self.full_branch(self.head1(rainy), half)
        streaks = self.tail(torch.cat([d1, resize(d2, size1), resize(d4, size1)], 1))
        return streaks, code
