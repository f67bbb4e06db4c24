"""The backbone's shapes, sizes and bookkeeping, on a small network."""

import pytest
import torch

from networks import DenseFeatures, DenseStage, DerainNet


def small_network(recompute: bool = False) -> DerainNet:
    torch.manual_seed(0)
    net = DerainNet((4, 6, 8), (2, 2, 1))
    if recompute:
        net.recompute_units()
    return net


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (7, 5), (31, 33), (32, 32), (37, 51), (40, 64)])
def test_any_size(size):
    rainy = torch.rand(2, 3, *size)
    output = small_network()(rainy)
    assert output.derained.shape == output.streaks.shape == rainy.shape
    assert torch.equal(output.derained, rainy - output.streaks)
    padded = [max(32, side) // 4 for side in size]
    assert list(output.code.shape) == [2, 8, *padded]


def test_small_images_are_padded_by_their_edge():
    rainy = torch.rand(1, 3, 20, 24)
    by_hand = torch.nn.functional.pad(rainy, (0, 8, 0, 12), mode="replicate")
    net = small_network()
    assert torch.equal(net(rainy).derained, net(by_hand).derained[..., :20, :24])


def test_every_parameter_gets_a_gradient():
    # plain DistributedDataParallel stops on a parameter without one
    net = small_network()
    output = net(torch.rand(1, 3, 32, 40))
    (output.derained.sum() + output.code.sum()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_a_stage_ties_its_unit():
    assert len([m for m in small_network().modules() if isinstance(m, DenseFeatures)]) == 9
    stage = DenseStage(4, 3)
    assert sum(name.startswith("unit.1.") for name, _ in stage.named_parameters()) == 10  # five convolutions
    features, _ = stage(torch.rand(1, 4, 32, 32))
    assert len(features) == 3 and len(stage.fusions) == 3


def test_images_of_a_batch_do_not_meet():
    net = small_network()
    rainy = torch.rand(2, 3, 33, 40)
    both, alone = net(rainy).derained[1:], net(rainy[1:]).derained
    assert torch.allclose(both, alone, atol=1e-6)


def test_recomputation_changes_no_gradient():
    gradients = []
    for recompute in (False, True):
        net = small_network(recompute=recompute)
        torch.manual_seed(1)
        net(torch.rand(1, 3, 36, 36)).derained.square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, rtol=1e-5, atol=1e-7)
