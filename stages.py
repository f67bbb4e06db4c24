"""The two stages of the method, each one class: SID, the teacher, and SSID-KD, the student.

A stage defines which crops a step draws, how they pass through the network, the named terms of the loss, the
initial weights and auxiliary networks. The loop (`engine.py`) knows no term by name. It minimises

    total = sum of recipe.<term>_weight * terms[<term>]        (of "minus_ssim" the weight is ssim_weight)

and stops where a term has no weight, or a weight no term. To change the method, change this file or write a
new stage in another: docs/changing_the_method.md.
"""

import abc
import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from config import Student, Teacher, Training
from DerainDataset import Crops, RealCrops, pair_crops
from losses import dark_channel, distillation, l1, psnr, ssim, total_variation
from machinery.backbones import AutocastModel, network_from
from machinery.checkpoints import find_checkpoint, load_checkpoint
from machinery.loading import ImageCache
from networks import Derained
from utils import UserError

WARM_UP = 50  # steps in which the average forgets the initial weights
Network = Callable[[Tensor], Derained]  # rainy (N, 3, H, W) to float32 outputs


class Stage(abc.ABC):
    """The interface between the training loop and a stage.

    `micro_batches`: how many a step's batch is split into, over processes and accumulation steps. The loop
    averages over them, so a term that is a sum over the batch is multiplied by `micro_batches`.
    """

    name = ""

    def __init__(self, recipe: Training, micro_batches: int = 1) -> None:
        self.recipe, self.micro_batches = recipe, micro_batches
        fields = vars(recipe).items()
        self.weights = {name[: -len("_weight")]: value for name, value in fields if name.endswith("_weight")}
        self.aux_networks = nn.ModuleDict()  # the networks of `make_aux_networks`, by name

    @abc.abstractmethod
    def crops(self, cache: ImageCache) -> list[Crops]:
        """The sources of a step's batch: each gives batchSize crops under the names that `terms` reads."""

    @abc.abstractmethod
    def first_weights(self) -> Path | None:
        """The checkpoint to start from; None: random weights."""

    def make_aux_networks(self, net: nn.Module) -> dict[str, nn.Module]:
        """Networks besides the one in training: an average of its weights (`Average`), a teacher (`frozen`).

        They get no gradient. The loop moves them to the device, updates averages after each step and saves
        all in the checkpoint; `terms` finds them in `self.aux_networks`.
        """
        return {"average": Average(net, self.recipe.ema)} if self.recipe.ema else {}

    @abc.abstractmethod
    def terms(self, net: Network, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The named terms of the loss: unweighted scalars, to be minimised."""

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of the terms. Raises UserError where terms and weights do not have the same names."""
        named = {name.removeprefix("minus_"): term for name, term in terms.items()}
        if alone := sorted(named.keys() ^ self.weights.keys()):
            raise UserError(
                f"{self.name}: a term without a weight, or a weight without a term: {', '.join(alone)}; "
                "each term of the stage needs a field <term>_weight in its recipe"
            )
        # a term of weight 0 is logged, and costs no backward pass
        return torch.stack([weight * named[name] for name, weight in self.weights.items() if weight]).sum()

    def after_step(self, net: nn.Module) -> None:
        """Runs after each optimizer step."""
        for each in self.aux_networks.values():
            if isinstance(each, Average):
                each.update(net)

    def result(self, net: nn.Module) -> nn.Module:
        """The network to validate and save: the average of the weights if there is one."""
        average = dict(self.aux_networks).get("average")
        return average.module if isinstance(average, Average) else net


class SID(Stage):
    """Stage 1, image deraining supervised by synthetic pairs: the teacher."""

    name = "SID"
    recipe: Teacher

    def crops(self, cache: ImageCache) -> list[Crops]:
        return [pair_crops(self.recipe, cache)]

    def first_weights(self) -> Path | None:
        return self.recipe.weights if self.recipe.weights != Path() else None

    def terms(self, net: Network, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return supervised(net(batch["rainy"]).derained, batch["clean"], self.recipe.psnr_cap)


class SSIDKD(Stage):
    """Stage 2, the student: starts from the teacher's weights; each step takes pairs and as many real crops.

    Both pass through the same network in one batch. The paper's distillation term is the KL divergence
    between the codes of synthetic and real rain.
    """

    name = "SSID-KD"
    recipe: Student

    def crops(self, cache: ImageCache) -> list[Crops]:
        return [pair_crops(self.recipe, cache), RealCrops.of(self.recipe, cache)]

    def first_weights(self) -> Path:
        return self.recipe.teacher

    def terms(self, net: Network, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        derained, _, code = net(torch.cat([batch["rainy"], batch["real_rainy"]]))
        derained_syn, derained_real = derained.chunk(2)  # (N, 3, P, P) each
        code_syn, code_real = code.chunk(2)  # (N, C4, P / 4, P / 4)
        window = derained.shape[-1]  # as released: the side of the crops
        return {
            **supervised(derained_syn, batch["clean"], self.recipe.psnr_cap),
            # sums over the batch, as released: see `micro_batches`
            "dark_syn": self.micro_batches * dark_channel((derained_syn + 1) / 2, window),
            "dark_real": self.micro_batches * dark_channel((derained_real + 1) / 2, window),
            "tv_syn": self.micro_batches * total_variation(derained_syn),
            "tv_real": self.micro_batches * total_variation(derained_real),
            "kl": distillation(code_syn, code_real),
        }


def supervised(derained: Tensor, clean: Tensor, psnr_cap: float) -> dict[str, Tensor]:
    """The supervised terms, of derained and clean (N, 3, P, P)."""
    return {
        "minus_ssim": -ssim(derained, clean),
        "l1": l1(derained, clean),
        "minus_psnr": -psnr(derained, clean, psnr_cap),
    }


# ---------------------------------------------------------------------------------------- auxiliary networks


class Average(nn.Module):
    """Exponential moving average of a network's weights, in `module`.

    Warm-up: decay = min(decay, n / (n + WARM_UP)) after n steps, so initial weights are forgotten quickly.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__()
        self.module, self.decay, self.steps = copy.deepcopy(net), decay, 0

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        decay = min(self.decay, self.steps / (self.steps + WARM_UP))
        torch._foreach_lerp_([*self.module.parameters()], [*net.parameters()], 1 - decay)
        self.steps += 1

    def forward(self, rainy: Tensor) -> Derained:
        return self.module(rainy)

    def get_extra_state(self) -> int:
        return self.steps  # a Python number: reading one from the device would make each step wait

    def set_extra_state(self, state: int) -> None:
        self.steps = state


def frozen(logdir: Path, precision: str = "float32") -> AutocastModel:
    """The network of a checkpoint, any backbone and size, in eval mode. Raises UserError if there is none."""
    path = find_checkpoint(logdir, "train one first")
    return AutocastModel(network_from(load_checkpoint(path), path), precision).eval()
