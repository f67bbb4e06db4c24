"""The two stages of the method, each one class: SID, the teacher, and SSID-KD, the student.

A stage says which crops a step draws, what it does with the network, which terms come of it, what the network
starts from and what happens after a step. The loop (`engine.py`) knows no term by name: it minimises

    total = sum of recipe.<term>_weight * terms[<term>]

and stops where a term has no weight, or a weight no term. Whoever changes the method changes this file, or
writes a stage of their own in another: docs/changing_the_method.md.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from config import Student, Teacher, Training
from DerainDataset import Crops, PairCrops, RealCrops
from losses import dark_channel, distillation, l1, psnr, ssim, total_variation
from machinery.loading import ImageCache
from networks import Derained
from utils import UserError

Network = Callable[[Tensor], Derained]  # rainy (N, 3, H, W) to what it makes of it, float32


class Stage(abc.ABC):
    """What the loop asks of a stage.

    `parts`: a step's batch is worked on in so many, by processes or one after the other. The loop averages
    over them: a term that is a sum over the batch is multiplied by `parts`.
    """

    name = ""

    def __init__(self, recipe: Training, parts: int = 1) -> None:
        self.recipe, self.parts = recipe, parts
        fields = vars(recipe).items()
        self.weights = {name[: -len("_weight")]: value for name, value in fields if name.endswith("_weight")}
        self.average: AveragedModel | None = None

    @abc.abstractmethod
    def crops(self, cache: ImageCache) -> list[Crops]:
        """What a step's batch is drawn from: each gives batchSize crops, by the names that `terms` reads."""

    @abc.abstractmethod
    def first_weights(self) -> Path | None:
        """The checkpoint that the network starts from; None: fresh weights."""

    def start(self, net: nn.Module) -> None:
        """Once, when the network has its first weights, and before `load_state_dict`."""
        if self.recipe.ema:
            self.average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(self.recipe.ema))

    @abc.abstractmethod
    def terms(self, net: Network, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The named terms of the loss, unweighted scalars, each to be made small."""

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Their weighted sum. Raises UserError where terms and weights do not have the same names."""
        if alone := sorted(terms.keys() ^ self.weights.keys()):
            raise UserError(
                f"{self.name}: a term without a weight, or a weight without a term: {', '.join(alone)}; "
                "each term of the stage needs a field <term>_weight in its recipe"
            )
        # a term weighted 0 is logged, and not followed back
        return torch.stack([weight * terms[name] for name, weight in self.weights.items() if weight]).sum()

    def after_step(self, net: nn.Module) -> None:
        """Once the optimizer has moved the weights."""
        if self.average:
            self.average.update_parameters(net)

    def result(self, net: nn.Module) -> nn.Module:
        """The network that is validated and handed on: the average of the weights where one is kept."""
        return self.average.module if self.average else net

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of the stage besides the network."""
        return {"average": self.average.state_dict()} if self.average else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.average:
            self.average.load_state_dict(state["average"])


class SID(Stage):
    """Stage 1, semi-supervised deraining's teacher: supervised by synthetic pairs."""

    name = "SID"
    recipe: Teacher

    def crops(self, cache: ImageCache) -> list[Crops]:
        return [PairCrops.of(self.recipe, cache)]

    def first_weights(self) -> Path | None:
        return self.recipe.weights if self.recipe.weights != Path() else None

    def terms(self, net: Network, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        derained, clean = net(batch["rainy"]).derained, batch["clean"]  # (N, 3, P, P)
        return {
            "ssim": -ssim(derained, clean),
            "l1": l1(derained, clean),
            "psnr": -psnr(derained, clean),
        }


class SSIDKD(Stage):
    """Stage 2, the student: the teacher's weights, trained on with as many unlabelled real crops as pairs.

    Both go through the one network at once. The teacher's knowledge comes with its weights; what the paper
    calls distillation is the KL divergence between the codes of synthetic and of real rain.
    """

    name = "SSID-KD"
    recipe: Student

    def crops(self, cache: ImageCache) -> list[Crops]:
        return [PairCrops.of(self.recipe, cache), RealCrops.of(self.recipe, cache)]

    def first_weights(self) -> Path:
        return self.recipe.teacher

    def terms(self, net: Network, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        derained, _, code = net(torch.cat([batch["rainy"], batch["real_rainy"]]))
        derained_syn, derained_real = derained.chunk(2)  # (N, 3, P, P) each
        code_syn, code_real = code.chunk(2)  # (N, C4, P / 4, P / 4)
        window = self.recipe.patch_size
        return {
            "l1": l1(derained_syn, batch["clean"]),
            # sums over the batch, as released: see `parts`
            "dark_syn": self.parts * dark_channel((derained_syn + 1) / 2, window),
            "dark_real": self.parts * dark_channel((derained_real + 1) / 2, window),
            "tv_syn": self.parts * total_variation(derained_syn),
            "tv_real": self.parts * total_variation(derained_real),
            "kl": distillation(code_syn, code_real),
        }
