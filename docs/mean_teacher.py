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

from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[1]))  # started as a script, from any folder

from config import STUDENTS, Student
from engine import train
from losses import l1
from machinery.options import option
from stages import SSIDKD, Network, average_of


@dataclasses.dataclass(frozen=True)
class MeanTeacherRecipe(Student):
    consistency_weight: float = option(1.0, "of L1 to the averaged teacher on real rain", least=0)
    momentum: float = option(0.999, "share of itself that the teacher keeps at each step", least=0, most=1)


class MeanTeacher(SSIDKD):
    name = "mean teacher"
    recipe: MeanTeacherRecipe

    def held_beside(self, net: nn.Module) -> dict[str, nn.Module]:
        return {**super().held_beside(net), "teacher": average_of(net, self.recipe.momentum)}

    def terms(self, net: Network, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        target = self.beside["teacher"](batch["real_rainy"]).derained.detach()
        derained = net(batch["real_rainy"].flip(3)).derained.flip(3)  # the student sees another view
        return {**super().terms(net, batch), "consistency": l1(derained, target)}


def recipe(dataset: str, **changes: Any) -> MeanTeacherRecipe:
    save_path = Path("trained_model") / f"{dataset}+MeanTeacher"
    return MeanTeacherRecipe(**{**vars(STUDENTS[dataset]), "save_path": save_path, **changes})


if __name__ == "__main__":
    train(MeanTeacher, recipe("Rain200H"))
