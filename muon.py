"""Muon: orthogonalized momentum for the weights of hidden convolutions, Adam for the rest. Not in the paper.

K. Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024. The factor on the update and
decoupled decay: J. Liu et al., Muon is scalable for LLM training, arXiv 2502.16982, 2025.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of X, (X X^T) X and (X X^T)^2 X
ADAMS = ("head", "tail", "context")  # first and last layers, and what starts at zero


class Muon(torch.optim.Adam):
    """Adam, except for `hidden_weights`, which Muon moves. (torch.optim.Muon takes matrices only.)"""

    def __init__(self, net: nn.Module, lr: float, muon_lr: float, **adam: object) -> None:
        hidden = hidden_weights(net)
        ids = set(map(id, hidden))
        others = [weight for weight in net.parameters() if id(weight) not in ids]
        groups = [{"params": others, "hidden": False}, {"params": hidden, "hidden": True, "lr": muon_lr}]
        super().__init__(groups, lr, **adam)  # type: ignore[arg-type]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["hidden"]]
        super().step()
        self.param_groups = groups
        for group in groups:
            if group["hidden"]:
                self._orthogonal_step(group["params"], group["lr"], group["weight_decay"])

    def _orthogonal_step(self, weights: Iterable[Tensor], lr: float, decay: float) -> None:
        by_shape = defaultdict[tuple[int, int], list[Tensor]](list)  # one batched product a shape
        for weight in weights:
            if weight.grad is not None:
                by_shape[len(weight), weight[0].numel()].append(weight)
        for (rows, columns), alike in by_shape.items():
            grads = [weight.grad for weight in alike]
            for weight in alike:
                if not self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            moments = [self.state[weight]["momentum"] for weight in alike]
            torch._foreach_lerp_(moments, grads, 1 - MOMENTUM)  # type: ignore[arg-type]
            nesterov = torch._foreach_lerp(grads, moments, MOMENTUM)  # type: ignore[arg-type]
            updates = orthogonalized(torch.stack([each.flatten(1) for each in nesterov]))
            scale = lr * 0.2 * max(rows, columns) ** 0.5  # an update as large as Adam's
            torch._foreach_mul_(alike, 1 - lr * decay)
            for weight, update in zip(alike, updates, strict=True):
                weight.sub_(update.view(weight.shape), alpha=scale)


def hidden_weights(net: nn.Module) -> list[Tensor]:
    """The weights of all convolutions but those of `ADAMS`."""
    return [w for name, w in net.named_parameters() if w.ndim == 4 and not name.startswith(ADAMS)]


def orthogonalized(matrices: Tensor) -> Tensor:
    """(N, rows, columns): all singular values brought to about 1 by five Newton-Schulz steps in bfloat16."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
