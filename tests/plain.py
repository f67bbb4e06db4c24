"""The method in the plainest words, as its specification has it: what the project's formulation must equal.

Maps are concatenated and then fused at the finest resolution, every resizing is an interpolation, every
activation a new tensor, pooling is three-dimensional, windows are dense. The tests take it as their oracle.

The released network's five fusions that feed nothing are left out here too.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import DenseFeatures, DenseStage, Derained, DerainNet, MultiScaleFusion, PyramidFusion


class PlainNet(DerainNet):
    """`DerainNet`'s weights under the same keys; of its modules only the weights are used, no forward."""

    def forward(self, rainy: Tensor) -> Derained:
        """rainy (N, 3, H, W) to derained, streaks and code, as `DerainNet`'s."""
        height, width = rainy.shape[-2:]
        missing = (0, max(0, 32 - width), 0, max(0, 32 - height))
        streaks, code = self._streaks(F.pad(rainy, missing, mode="replicate"))
        streaks = streaks[:, :, :height, :width]
        return Derained(rainy - streaks, streaks, code)

    def _streaks(self, rainy: Tensor) -> tuple[Tensor, Tensor]:
        height, width = size1 = rainy.shape[-2:]
        size2, size4 = (height // 2, width // 2), (height // 4, width // 4)
        f1 = activated(self.head1, rainy)
        f2 = activated(self.head2, resized(rainy, size2))
        f4 = activated(self.head4, resized(rainy, size4))

        features_a, out = dense_stage(self.quarter_branch, f4)
        d4 = f4 + out

        half = self.half_branch
        features_b = dense_features(half.encode2, f2)
        features_c = dense_features(half.encode4, joined(half.down4, features_b, size4), features_a)
        features_d, out = dense_stage(half.decode2, joined(half.up2, features_c, size2), features_b)
        d2 = out + f2

        full = self.full_branch
        features_e = dense_features(full.encode1, f1)
        g = joined(full.down2, features_e, size2)
        features_f = dense_features(full.encode2, g, features_b)
        features_g = dense_features(full.encode4, joined(full.down4, features_f, size4), features_c)
        features_h, out = dense_stage(full.decode2, joined(full.up2, features_g, size2), features_d)
        x = joined(full.up1, [*features_h[:-1], out + g], size1)
        _, out = dense_stage(full.decode1, x, features_e)
        d1 = out + f1

        streaks = activated(self.tail, torch.cat([d1, resized(d2, size1), resized(d4, size1)], 1))
        return streaks, features_g[-1]


def plain(net: DerainNet) -> PlainNet:
    """The plain network of `net`'s size, device and precision, with a copy of its weights, contiguous."""
    weight = net.head1.weight
    channels = [head.out_channels for head in (net.head1, net.head2, net.head4)]
    units = [net.full_branch.decode1.n, net.half_branch.decode2.n, net.quarter_branch.n]
    twin = PlainNet(channels, units).to(weight.device, weight.dtype)
    twin.load_state_dict(net.state_dict())
    return twin


def convolved(conv: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(conv, nn.Conv2d)
    return F.conv2d(x, conv.weight, conv.bias, padding=conv.kernel_size[0] // 2)


def activated(conv: nn.Module, x: Tensor) -> Tensor:
    return F.leaky_relu(convolved(conv, x), 0.2)


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def joined(conv: nn.Conv2d, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    return activated(conv, torch.cat([resized(t, size) for t in features], 1))


def pyramid_fusion(weights: PyramidFusion, x: Tensor) -> Tensor:
    def up(level: Tensor, to: Tensor) -> Tensor:
        return F.interpolate(level, to.shape[-2:], mode="nearest")

    def chain(convs: nn.Sequential, level: Tensor) -> Tensor:
        for conv in convs:
            level = activated(conv, level)
        return level

    p2, p4, p8 = F.max_pool2d(x, 2), F.max_pool2d(x, 4), F.max_pool2d(x, 8)
    s8 = chain(weights.chain8, p8)
    s4 = chain(weights.chain4, activated(weights.fuse84, torch.cat([p4, up(s8, p4)], 1)))
    s2 = chain(weights.chain2, activated(weights.fuse42, torch.cat([p2, up(s4, p2)], 1)))
    s1 = chain(weights.chain1, activated(weights.fuse21, torch.cat([x, up(s2, x)], 1)))
    return activated(weights.fuse_all, torch.cat([s1, up(s2, x), up(s4, x), up(s8, x)], 1)) + x


def multi_scale_fusion(weights: MultiScaleFusion, x: Tensor) -> Tensor:
    both = torch.cat([activated(weights.conv3_1, x), activated(weights.conv5_1, x)], 1)
    wide = torch.cat([activated(weights.conv3_2, both), activated(weights.conv5_2, both)], 1)
    return convolved(weights.fuse, wide) + x


def dense_features(weights: DenseFeatures, x: Tensor, skips: Sequence[Tensor] = ()) -> list[Tensor]:
    pyramid, multi_scale = weights.unit
    assert isinstance(pyramid, PyramidFusion) and isinstance(multi_scale, MultiScaleFusion)
    features: list[Tensor] = []
    for i in range(weights.n):
        out = activated(weights.fusions[i - 1], torch.cat([x, *features], 1)) if features else x
        unit_in = out + skips[i] if skips else out
        features.append(multi_scale_fusion(multi_scale, pyramid_fusion(pyramid, unit_in)))
    return features


def dense_stage(weights: DenseStage, x: Tensor, skips: Sequence[Tensor] = ()) -> tuple[list[Tensor], Tensor]:
    features = dense_features(weights, x, skips)
    return features, activated(weights.fusions[-1], torch.cat([x, *features], 1))


def dark_channel(image: Tensor, window: int) -> Tensor:
    """As losses.dark_channel: one three-dimensional pooling over channels, rows and columns."""
    half = window // 2
    return -F.max_pool3d(1 - image, (image.shape[1], window, window), stride=1, padding=(0, half, half)).sum()
