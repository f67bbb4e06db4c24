"""Muon: torch's own on matrices, Adam's for the rest."""

import copy
from typing import Any

import torch
from torch import nn

from machinery.muon import Muon
from tests.small import LIGHT, lines, teacher, trained

ADAM: Any = {"betas": (0.9, 0.99), "weight_decay": 1e-2, "decoupled_weight_decay": True}


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3)
        self.wide, self.alike = nn.Conv2d(8, 16, 3), nn.Conv2d(8, 16, 3)
        self.tall = nn.Conv2d(4, 64, 1)


def some_gradients(*networks: nn.Module) -> None:
    """The same ones for each."""
    for weights in zip(*(net.parameters() for net in networks), strict=True):
        gradient = torch.randn(weights[0].shape)
        for weight in weights:
            weight.grad = gradient.reshape(weight.shape).clone()


def test_hidden_weights_move_as_by_torchs_muon_and_all_others_as_by_adam():
    torch.manual_seed(0)
    net = Convolutions()
    of_adam = copy.deepcopy(net)
    hidden = [net.wide, net.alike, net.tall]
    matrices = [nn.Parameter(each.weight.detach().flatten(1).clone()) for each in hidden]
    ours = Muon(net, 1e-3, 2e-3, **ADAM)
    muon = torch.optim.Muon(matrices, 2e-3, weight_decay=1e-2, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.Adam(of_adam.parameters(), 1e-3, **ADAM)
    for _ in range(4):
        some_gradients(net, of_adam)
        for matrix, each in zip(matrices, hidden, strict=True):
            matrix.grad = each.weight.grad.flatten(1).clone()  # type: ignore[union-attr]
        for optimizer in (ours, muon, adam):
            optimizer.step()
    for matrix, each in zip(matrices, hidden, strict=True):
        torch.testing.assert_close(each.weight.flatten(1), matrix, rtol=0, atol=1e-6)
    for name, weight in net.named_parameters():
        if name.startswith("head") or name.endswith("bias"):
            assert torch.equal(weight, of_adam.get_parameter(name))


def test_first_last_and_context_layers_are_adams(tmp_path):
    how: Any = {"lr": 1e-3, "optimizer": "muon", "muon_lr": 2e-3, "context": True, "steps": 1}
    run = trained(teacher(tmp_path, **LIGHT, **how, cosine=True))
    adams, hidden = run.optimizer.param_groups
    names = {id(weight): name for name, weight in run.net.net.named_parameters()}
    assert {names[id(w)] for w in adams["params"] if w.ndim == 4} == {
        f"{x}.weight" for x in ("head", "tail", "context")
    }
    assert all(weight.ndim == 4 for weight in hidden["params"]) and len(hidden["params"]) == 14
    assert (adams["lr"], hidden["lr"]) == (1e-3, 2e-3)
    (line,) = lines(tmp_path / "teacher")
    assert (line["optimizer/lr"], line["optimizer/muon_lr"]) == (1e-3, 2e-3)


def test_a_weight_without_a_gradient_stays():
    net = Convolutions()
    before = copy.deepcopy(net.state_dict())
    Muon(net, 1e-3, 1e-3, weight_decay=0.1).step()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
