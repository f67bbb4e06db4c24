"""The gradient that is recorded once and replayed is the eager one. The recording itself needs a card."""

import copy
import dataclasses
from collections.abc import Mapping
from functools import partial

import pytest
import torch

import networks
from config import STUDENTS, TEACHERS
from engine import backward, training_step
from inference import Prepared
from machinery.fast import FastGradient
from stages import SID, SSIDKD, Stage
from tests.attack.scripts import OneConvolution
from tests.small import assert_same_weights, teacher, trained
from tests.test_networks import small_network


def a_stage(name: str) -> Stage:
    if name == "teacher":
        return SID(TEACHERS["Rain200H"])
    return SSIDKD(dataclasses.replace(STUDENTS["Rain200H"], patch_size=32))


def batches(count: int) -> list[Mapping[str, torch.Tensor]]:
    return [
        dict(zip(("rainy", "clean", "real_rainy"), torch.rand(3, 1, 3, 32, 32), strict=True))
        for _ in range(count)
    ]


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", ["teacher", "student"])
def test_fast_steps_are_the_eager_ones(name, parts):
    torch.manual_seed(0)
    stage, eager = a_stage(name), Prepared(small_network())
    replayed = copy.deepcopy(eager)
    fast = FastGradient(partial(backward, stage, replayed, parts=parts), replayed.parameters())
    optimizers = [torch.optim.Adam(net.parameters(), 1e-3) for net in (eager, replayed)]
    for _ in range(3):
        batch = batches(parts)
        expected = training_step(stage, eager, optimizers[0], batch)
        terms = training_step(stage, replayed, optimizers[1], batch, fast=fast)
        assert {name: value.item() for name, value in terms.items()} == {
            name: value.item() for name, value in expected.items()
        }
    for ours, theirs in zip(replayed.parameters(), eager.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_flat_gradients_lie_as_the_weights_do():
    net = Prepared(small_network())  # channels last
    fast = FastGradient(lambda batch: {}, net.parameters())
    fast.flat.copy_(torch.arange(len(fast.flat)))
    seen = []
    for p in net.parameters():
        assert p.grad is not None and p.grad.stride() == p.stride()
        seen.append(p.grad.flatten())
    assert torch.equal(torch.cat(seen).sort().values, fast.flat)  # each place is one weight's


def test_the_terms_of_a_step_outlive_the_next_one(monkeypatch):
    stage, net = a_stage("teacher"), Prepared(small_network())
    fast = FastGradient(partial(backward, stage, net, parts=1), net.parameters())
    first, second = batches(2)
    fast([first])
    memory = fast.values

    def replay():  # as a CUDA graph does, to the same place each time
        fast._work()
        fast.values = memory.copy_(fast.values)

    monkeypatch.setattr(fast, "replay", replay)
    (kept,) = fast([first])
    before = kept["total"].item()
    assert fast([second])[0]["total"].item() != before
    assert kept["total"].item() == before


def test_with_compile_the_network_is_one_graph_and_validation_is_eager(tmp_path, monkeypatch):
    """A validation has images of other sizes. The compiler's front alone: its kernels would take minutes."""
    graphs, asked = [], []

    def front(graph, inputs):
        graphs.append(inputs)
        return graph

    def compiled_by_front(net, **how):
        asked.append(how)
        real(net, backend=front, **how)

    real = OneConvolution.compile
    monkeypatch.setitem(networks.BACKBONES, "OneConvolution", OneConvolution)
    monkeypatch.setattr(OneConvolution, "compile", compiled_by_front)
    eager = teacher(tmp_path, steps=4, val_every=1, backbone="OneConvolution", save_path=tmp_path / "eager")
    trained(eager)
    fast = dataclasses.replace(eager, fast=True, compile=True, save_path=tmp_path / "fast")
    assert trained(fast).state.validated == 4
    assert asked == [{"dynamic": False, "fullgraph": True}]
    assert len(graphs) == 1
    assert_same_weights(eager.save_path, fast.save_path, within=1e-6)
