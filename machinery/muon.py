"""Muon: orthogonalized momentum for the weights of hidden convolutions, Adam for the rest. Not in the paper.

K. Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024. The factor on the update and
decoupled decay: J. Liu et al., Muon is scalable for LLM training, arXiv 2502.16982, 2025.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
A, B, C = 3.4445, -4.7750, 2.0315  # of X, (X X^T) X and (X X^T)^2 X in a Newton-Schulz step
ADAMS = ("head", "tail", "context")  # first and last layers, and one that starts at zero


class Muon(torch.optim.Adam):
    """Adam, except for hidden convolutions' weights. (torch.optim.Muon takes matrices only.)"""

    def __init__(self, net: nn.Module, lr: float, muon_lr: float, **adam: Any) -> None:
        adams: list[Tensor] = []
        hidden: list[Tensor] = []
        for name, weight in net.named_parameters():
            is_adams = any(part.startswith(ADAMS) for part in name.split("."))  # `net` may be wrapped
            (hidden if weight.ndim == 4 and not is_adams else adams).append(weight)
        super().__init__([{"params": adams, "lr": lr}, {"params": hidden, "lr": muon_lr}], **adam)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        adams, hidden = self.param_groups
        self.param_groups = [adams]
        super().step()
        self.param_groups = [adams, hidden]
        by_shape = defaultdict[tuple[int, int], list[Tensor]](list)  # one batched product a shape
        for weight in hidden["params"]:
            if weight.grad is not None:
                by_shape[len(weight), weight[0].numel()].append(weight)
        for shape, weights in by_shape.items():
            directions = torch.stack([self._nesterov(weight).flatten(1) for weight in weights])
            scale = hidden["lr"] * 0.2 * max(shape) ** 0.5  # an update as large as Adam's
            for weight, update in zip(weights, orthogonalized(directions), strict=True):
                weight.mul_(1 - hidden["lr"] * hidden["weight_decay"])
                weight.sub_(update.view(weight.shape), alpha=scale)

    def _nesterov(self, weight: Tensor) -> Tensor:
        state, gradient = self.state[weight], weight.grad
        if not state:  # "step" is not read here, but by Adam's load_state_dict
            state.update(momentum=torch.zeros_like(weight), step=torch.zeros(()))
        return gradient.lerp(state["momentum"].lerp_(gradient, 1 - MOMENTUM), MOMENTUM)  # type: ignore[union-attr]


def orthogonalized(matrices: Tensor) -> Tensor:
    """(N, rows, columns): all singular values brought to about 1, by five Newton-Schulz steps in bfloat16."""
    x = (matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return (x.mT if matrices.shape[1] > matrices.shape[2] else x).to(matrices.dtype)
