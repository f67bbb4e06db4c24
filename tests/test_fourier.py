"""5x5 convolutions by the Fourier transform. The oracles: F.conv2d, autograd, and the golden network."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks import plain
from machinery import fourier
from networks import DerainNet
from tests.test_golden import NETWORK, golden_network, swapped

pytestmark = pytest.mark.skipif(not torch._nnpack_available(), reason="this torch has no NNPACK")

SIZES = [(16, 16), (37, 51), (64, 40), (17, 130)]


@pytest.fixture
def everywhere(monkeypatch):
    """On whatever processor the tests run: as on one where it pays."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


def value_and_gradients(convolve, x, weight, bias):
    leaves = [each.clone(memory_format=torch.preserve_format).requires_grad_() for each in (x, weight, bias)]
    out = convolve(*leaves)
    out.sin().sum().backward()
    return [out, *(leaf.grad for leaf in leaves)]


def directly(x, weight, bias):
    return F.leaky_relu(F.conv2d(x, weight, bias, padding=2), 0.2)


def transformed(x, weight, bias):
    return fourier.convolve(x, weight, bias, 0.2)


@pytest.mark.parametrize("band", [2**15, 900])  # the second: several bands, the last a short one
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", SIZES)
def test_convolution_and_gradients_are_those_of_products(size, layout, count, band, monkeypatch):
    monkeypatch.setattr(fourier, "BAND", band)
    torch.manual_seed(0)
    # none near zero, where the activation's slope hangs on the rounding
    bias = torch.tensor([4.0, -4.0, 4.0, -4.0, 4.0, -4.0, 4.0])
    x = torch.rand(count, 5, *size).contiguous(memory_format=layout)
    weight = torch.randn(7, 5, 5, 5) / 20
    exact = value_and_gradients(directly, x.double(), weight.double(), bias.double())
    for ours, expected in zip(value_and_gradients(transformed, x, weight, bias), exact, strict=True):
        assert expected.abs().max() > 0.1
        assert (ours - expected).abs().max() < 2e-6 * expected.abs().max()


def test_pays_in_float32_on_a_cpu_with_avx2_alone(everywhere, monkeypatch):
    x = torch.rand(1, 3, 16, 40)
    assert fourier.pays(x)
    assert not fourier.pays(x[..., :15])
    assert not fourier.pays(x.double()) and not fourier.pays(x.bfloat16()) and not fourier.pays(x.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not fourier.pays(x)
    with torch.backends.nnpack.flags(enabled=False):
        assert not fourier.pays(x)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert not fourier.pays(x)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert fourier.pays(x)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert not fourier.pays(x)


def test_compiled_and_exported_networks_are_of_products(everywhere):
    net, rainy = DerainNet((4, 6, 8), (1, 1, 1)), torch.rand(1, 3, 32, 32)
    graph = torch.export.export(net, (rainy,), strict=False).graph
    called = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert "aten.conv2d.default" in called and not any("nnpack" in each for each in called)


@pytest.mark.parametrize("case", ["even", "odd", "mod4"])
def test_golden_network(case, everywhere):
    net, rainy = golden_network(), swapped(NETWORK[f"{case}_in"])
    with torch.no_grad():
        output = net(rainy)
        with torch.backends.nnpack.flags(enabled=False):
            direct = net(rainy)
    assert not torch.equal(output.derained, direct.derained)  # or nothing was tested
    assert abs(output.derained.flip(1).numpy() - NETWORK[f"{case}_derained"]).max() < 1e-4
    assert abs(output.code.numpy() - NETWORK[f"{case}_code"]).max() < 1e-4


@pytest.mark.parametrize("recompute", [False, True])
def test_networks_gradients_are_the_plain_ones(recompute, everywhere):
    torch.manual_seed(0)
    net, rainy = DerainNet((4, 6, 8), (2, 1, 1)), torch.rand(2, 3, 70, 90)
    if recompute:
        net.recompute_units()
    exact = plain.plain(net.double())
    exact(rainy.double()).derained.square().sum().backward()
    net.float()(rainy).derained.square().sum().backward()
    expected = dict(exact.named_parameters())
    for name, weight in net.named_parameters():
        ours, theirs = weight.grad, expected[name].grad
        assert ours is not None and theirs is not None
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max(), name
