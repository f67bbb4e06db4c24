"""The backbones' shapes, sizes and bookkeeping, on small networks."""

import weakref
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.backends.debugging import aot_eager
from torch.utils._python_dispatch import TorchDispatchMode

from machinery.backbones import AutocastModel
from networks import DerainNet
from tests.test_lightnet import small_lightnet

OPERATIONS = 3178  # of its step, as counted; 3924 while fusions activated and added in place on views
UNITS = 2 * 2 + 4 * 2 + 3 * 1  # of a small network: 2 stages at full resolution, 4 at half, 3 at a quarter


def small_network() -> DerainNet:
    torch.manual_seed(0)
    return DerainNet((4, 6, 8), (2, 2, 1))


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (4, 4), (7, 5), (31, 33), (32, 32), (37, 51), (40, 64)])
@pytest.mark.parametrize(
    ("make", "side_of_code"),
    [(small_network, lambda side: max(32, side) // 4), (small_lightnet, lambda side: -(-side // 4))],
)
def test_any_size(make, side_of_code, size):
    rainy = torch.rand(2, 3, *size)
    output = make()(rainy)
    assert output.derained.shape == output.streaks.shape == rainy.shape
    assert torch.equal(output.derained, rainy - output.streaks)
    assert list(output.code.shape) == [2, 8, *map(side_of_code, size)]


def test_outside_training_a_skip_is_freed_once_it_is_read():
    net = DerainNet((4, 6, 8), (3, 1, 1))
    features: list[weakref.ref] = []
    alive = []
    net.full_branch.encode1.unit.register_forward_hook(lambda _, x, out: features.append(weakref.ref(out)))
    net.full_branch.decode1.unit.register_forward_hook(
        lambda _, x, out: alive.append(sum(each() is not None for each in features))
    )
    with torch.inference_mode():
        net(torch.rand(1, 3, 32, 32))
    assert alive == [2, 1, 0]


def test_nearest_upsampling_is_kept_from_autocast(monkeypatch):
    # CUDA's would have it in float32: twice the bytes, and a copy before and after
    interpolate, autocasts = F.interpolate, []

    def noted(x, *size, **how):
        if not how:
            autocasts.append(torch.is_autocast_enabled(x.device.type))
        return interpolate(x, *size, **how)

    monkeypatch.setattr(F, "interpolate", noted)
    AutocastModel(small_network(), "bfloat16")(torch.rand(1, 3, 32, 32))
    assert autocasts == [False] * 6 * UNITS


class Operations(TorchDispatchMode):
    """Counts the operations, forward and backward, that are not mere views."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if not function.is_view:
            self.counts[function.overloadpacket.__name__] += 1
        return function(*arguments, **(options or {}))


def test_a_training_step_copies_nothing_for_autograd():
    # in place on a view, autograd clones; a slice for each map is a padded gradient for each
    net = small_network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rainy = torch.rand(1, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.backends.nnpack.flags(enabled=False), Operations() as seen:  # NNPACK's maps lie otherwise
        net(rainy).derained.square().sum().backward()
    assert seen.counts["upsample_nearest2d_backward"] == 6 * UNITS  # seen at all
    for needless in ("clone", "as_strided", "slice_backward", "new_zeros"):
        assert seen.counts[needless] == 0, needless
    assert seen.counts.total() <= OPERATIONS


def test_units_compile_to_one_graph_a_resolution_and_train_to_the_same_weights():
    graphs = []

    def backend(graph, inputs):  # all of the compiler but its kernels, which would take minutes
        graphs.append(inputs)
        return aot_eager(graph, inputs)

    compiled, eager = AutocastModel(small_network()), AutocastModel(small_network())
    compiled.net.compile_units(backend)
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in (compiled, eager)]
    for _ in range(3):
        rainy = torch.rand(1, 3, 40, 48)
        for net, optimizer in zip((compiled, eager), optimizers, strict=True):
            optimizer.zero_grad()
            output = net(rainy)
            (output.derained.square().mean() + output.code.square().mean()).backward()
            optimizer.step()
    assert len(graphs) == 3
    assert not any(isinstance(each, torch.SymInt) for inputs in graphs for each in inputs)
    torch.testing.assert_close(compiled.state_dict(), eager.state_dict(), rtol=1e-5, atol=1e-7)
