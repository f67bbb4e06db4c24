"""Ways to learn from unlabelled rain that the paper does not have: what tools/study.py compares with its own.

One stage beside SSID-KD, with three further terms, each off at weight 0. None is claimed to help before the
study has measured it. Two have a mean teacher, an average of the student's weights (Tarvainen and Valpola,
2017), which sees the real rain as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from config import Student, loss
from losses import l1
from machinery.options import option
from stages import SSIDKD, Network, average_of

BRIGHTNESS = (0.8, 1.2)  # of the views of real rain, from the first of a batch to the last


@dataclass(frozen=True)
class Adapting(Student):
    """A student's recipe, with the weights of the further terms."""

    momentum: float = option(
        0.99, "share of itself that the mean teacher keeps at each step", least=0, most=1
    )
    align_weight: float = loss(0.0, "of the distance between the codes' statistics")
    consistency_weight: float = loss(0.0, "of L1 to the mean teacher, on another view of real rain")
    transplant_weight: float = loss(0.0, "of L1 to the clean image under streaks taken from real rain")


class Adapted(SSIDKD):
    """The student, and what it may learn besides from real rain."""

    name = "SSID-KD adapted"
    recipe: Adapting

    def held_beside(self, net: nn.Module) -> dict[str, nn.Module]:
        return {**super().held_beside(net), "teacher": average_of(net, self.recipe.momentum)}

    def terms(self, net: Network, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        clean, real = batch["clean"], batch["real_rainy"]
        both = net(torch.cat([batch["rainy"], real]))
        terms = super().terms(lambda _: both, batch)
        terms["align"] = statistics_gap(*both.code.chunk(2))
        terms["consistency"] = terms["transplant"] = both.derained.new_zeros(())
        if self.weights["consistency"] or self.weights["transplant"]:
            dry = self.beside["teacher"](real).derained
        if self.weights["consistency"]:
            light = torch.linspace(*BRIGHTNESS, len(real), device=real.device).view(-1, 1, 1, 1)
            view = (real * light).flip(3)  # a function of the batch alone, so that a run resumes exactly
            terms["consistency"] = l1(net(view).derained, (dry * light).flip(3))
        if self.weights["transplant"]:
            streaks = (real - dry).clamp(min=0).mean(1, keepdim=True)  # grey, as rain is
            terms["transplant"] = l1(net((clean + streaks).clamp(max=1)).derained, clean)
        return terms


def statistics_gap(one: Tensor, other: Tensor) -> Tensor:
    """L1 between the means and the deviations of two codes' channels, (N, C, H, W) each: a scalar."""
    return sum(
        (l1(of(one, (0, 2, 3)), of(other, (0, 2, 3))) for of in (torch.mean, torch.std)), one.new_zeros(())
    )
