"""Another distillation: an averaged copy of the student is the target for its own view of real rain.

    python docs/mean_teacher.py --data_path datasets/Rain200H --real_path datasets/Real

An example of how far the method can be changed without touching a file of the project: see
changing_the_method.md. It is not in the paper, and no result of it is claimed.
"""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

sys.path.append(str(Path(__file__).resolve().parents[1]))  # started as a script, from any folder

from config import STUDENTS, Student
from engine import train
from losses import l1
from machinery.options import option
from stages import SSIDKD, Network


@dataclasses.dataclass(frozen=True)
class MeanTeacherRecipe(Student):
    consistency_weight: float = option(1.0, "of L1 to the averaged teacher on real rain", least=0)
    momentum: float = option(0.999, "share of itself that the teacher keeps at each step", least=0, most=1)


class MeanTeacher(SSIDKD):
    name = "mean teacher"
    recipe: MeanTeacherRecipe

    def start(self, net: nn.Module) -> None:
        super().start(net)
        self.teacher = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(self.recipe.momentum))

    def terms(self, net: Network, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            target = self.teacher(batch["real_rainy"]).derained
        derained = net(batch["real_rainy"].flip(3)).derained.flip(3)  # the student sees another view
        return {**super().terms(net, batch), "consistency": l1(derained, target)}

    def after_step(self, net: nn.Module) -> None:
        super().after_step(net)
        self.teacher.update_parameters(net)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.teacher.load_state_dict(state["teacher"])


def recipe(dataset: str, **changes: Any) -> MeanTeacherRecipe:
    save_path = Path("trained_model") / f"{dataset}+MeanTeacher"
    return MeanTeacherRecipe(**{**vars(STUDENTS[dataset]), "save_path": save_path, **changes})


if __name__ == "__main__":
    train(MeanTeacher, recipe("Rain200H"))
