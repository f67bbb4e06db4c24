"""Ways to learn from unlabelled rain that the paper does not have: what tools/study.py compares with its own.

One stage beside SSID-KD, with four further terms, each off at weight 0. None is claimed to help before the
study has measured it. Two have a mean teacher, an average of the student's weights (Tarvainen and Valpola,
2017), which sees the real rain as it is. One has the teacher itself, frozen, which sees it turned: with a
mean teacher there, each runs after the other, and away.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Student, loss
from losses import l1
from machinery.options import option
from stages import SSIDKD, Network, ema_of, frozen

BRIGHTNESS = (0.8, 1.2)  # of the views of real rain, from the first of a batch to the last
TURNS = (0, 45, 90, 135)  # degrees, of the views that a target is the mean of; upside down is not another


@dataclass(frozen=True)
class Adapting(Student):
    """A student's recipe, with the weights of the further terms."""

    momentum: float = option(0.99, "share of itself that the mean teacher keeps at each step", min=0, max=1)
    align_weight: float = loss(0.0, "of the distance between the codes' statistics")
    consistency_weight: float = loss(0.0, "of L1 to the mean teacher, on another view of real rain")
    turned_weight: float = loss(0.0, "of L1 to the teacher's mean over four turned views of real rain")
    transplant_weight: float = loss(0.0, "of L1 to the clean image under streaks taken from real rain")


class Adapted(SSIDKD):
    """The student, and what it may learn besides from real rain."""

    name = "SSID-KD adapted"
    recipe: Adapting

    def make_aux_networks(self, net: nn.Module) -> dict[str, nn.Module]:
        beside = {**super().make_aux_networks(net), "teacher": ema_of(net, self.recipe.momentum)}
        if self.weights["turned"]:
            beside["frozen"] = frozen(self.recipe.teacher, self.recipe.precision)
        return beside

    def terms(self, net: Network, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        clean, real = batch["clean"], batch["real_rainy"]
        both = net(torch.cat([batch["rainy"], real]))
        terms = super().terms(lambda _: both, batch)
        terms["align"] = statistics_gap(*both.code.chunk(2))
        terms["consistency"] = terms["turned"] = terms["transplant"] = both.derained.new_zeros(())
        if self.weights["consistency"] or self.weights["transplant"]:
            dry = self.aux_networks["teacher"](real).derained
        if self.weights["consistency"]:
            light = torch.linspace(*BRIGHTNESS, len(real), device=real.device).view(-1, 1, 1, 1)
            view = (real * light).flip(3)  # a function of the batch alone, so that a run resumes exactly
            terms["consistency"] = l1(net(view).derained, (dry * light).flip(3))
        if self.weights["turned"]:
            terms["turned"] = l1(both.derained.chunk(2)[1], over_turns(self.aux_networks["frozen"], real))
        if self.weights["transplant"]:
            streaks = (real - dry).clamp(min=0).mean(1, keepdim=True)  # grey, as rain is
            terms["transplant"] = l1(net((clean + streaks).clamp(max=1)).derained, clean)
        return terms


def over_turns(net: nn.Module, rainy: Tensor) -> Tensor:
    """Rainy (N, 3, P, P) less the mean of what `net` takes away from it as it lies and turned by `TURNS`.

    A network is surest of rain that falls as it was taught. What it takes from one view alone is halved, or
    quartered, by the others. A corner that has left a turned view does not count there.
    """
    total, seen = torch.zeros_like(rainy), torch.zeros_like(rainy[:1, :1])
    for turn in TURNS:
        view = dihedral(rainy, turn, "reflection")
        total += dihedral(view - net(view).derained, -turn, "zeros")
        seen += dihedral(torch.ones_like(seen), -turn, "zeros")
    return rainy - total / seen


def dihedral(images: Tensor, degrees: float, outside: str) -> Tensor:
    """Images (N, C, P, P) turned about their middle; what was outside is reflected, or zero."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = images.new_tensor([[cos, -sin, 0], [sin, cos, 0]]).expand(len(images), 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, "bilinear", outside, align_corners=False)


def statistics_gap(one: Tensor, other: Tensor) -> Tensor:
    """L1 between the means and the deviations of two codes' channels, (N, C, H, W) each: a scalar."""
    return sum(
        (l1(of(one, (0, 2, 3)), of(other, (0, 2, 3))) for of in (torch.mean, torch.std)), one.new_zeros(())
    )
