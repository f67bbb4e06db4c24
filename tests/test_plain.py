"""The project's formulation equals the plain one: outputs, gradients, losses, in float64."""

from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio

import losses
from networks import DerainNet
from tests import plain

SIZES = [(32, 32), (37, 51), (64, 40), (33, 66), (20, 45), (7, 5)]


def network(recompute: bool) -> DerainNet:
    torch.manual_seed(0)
    net = DerainNet((4, 6, 8), (3, 2, 1))
    if recompute:
        net.recompute_units()
    return net.double()


def outputs_and_gradients(net: DerainNet, rainy: torch.Tensor) -> list[torch.Tensor]:
    """What the network gives, and the gradients of a function that sees all of it, by name of parameter."""
    rainy = rainy.clone(memory_format=torch.preserve_format).requires_grad_()
    output = net(rainy)
    (output.derained.square().sum() + output.streaks.sin().sum() + output.code.exp().sum()).backward()
    parameters = sorted(net.named_parameters())
    # DistributedDataParallel stops on a parameter without a gradient
    assert rainy.grad is not None and all(p.grad is not None for _, p in parameters)
    return [*output, rainy.grad, *(p.grad for _, p in parameters if p.grad is not None)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("size", "recompute"), [*((size, False) for size in SIZES), ((37, 51), True)])
def test_network_equals_the_plain_one(size, layout, recompute, monkeypatch):
    # nothing in a unit is random: to keep the generator's state would cost a copy
    monkeypatch.setattr(torch, "get_rng_state", lambda: pytest.fail("a generator's state is kept"))
    net = network(recompute)
    rainy = torch.rand(2, 3, *size, dtype=torch.float64)
    expected = outputs_and_gradients(plain.plain(net), rainy)
    net = net.to(memory_format=layout)  # type: ignore[call-overload]
    ours = outputs_and_gradients(net, rainy.contiguous(memory_format=layout))
    for mine, theirs in zip(ours, expected, strict=True):
        assert theirs.abs().max() > 1e-6  # a network that gives nothing would equal itself
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    with torch.inference_mode():
        for mine, theirs in zip(net(rainy), expected[:3], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("window", [1, 2, 5, 8, 15, 16])
@pytest.mark.parametrize("size", [(16, 16), (17, 29)])
def test_dark_channel_equals_three_dimensional_pooling(window, size):
    # distinct values: where two tie for a maximum, which of them gets the gradient is not defined
    count = 2 * 3 * size[0] * size[1]
    torch.manual_seed(0)
    image = (torch.randperm(count).double() / count).view(2, 3, *size).requires_grad_()
    values = [of(image, window) for of in (losses.dark_channel, plain.dark_channel)]
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(each, image) for each in values), rtol=1e-12, atol=0)


def test_ssim_blurs_contiguous_maps_whatever_it_is_given(monkeypatch):
    # of such maps PyTorch's own depthwise kernel convolves each channel, in float32 whatever TF32 is set to
    convolved = Mock(wraps=F.conv2d)
    monkeypatch.setattr(losses.F, "conv2d", convolved)
    x, y = (each.contiguous(memory_format=torch.channels_last) for each in torch.rand(2, 2, 3, 24, 20))
    losses.ssim(x, y)
    assert [call.args[0].is_contiguous() for call in convolved.call_args_list] == [True, True]


def test_psnr_is_the_mean_of_the_images_own():
    torch.manual_seed(0)
    x, y = torch.rand(2, 3, 3, 16, 20)
    y[1] = x[1] + 0.01 * torch.randn(3, 16, 20)
    own = [peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1) for a, b in zip(x, y, strict=True)]
    assert own[1] > own[0] + 25
    assert losses.psnr(x, y, 100).item() == pytest.approx(sum(own) / 3, abs=1e-3)
    x.requires_grad_()
    losses.psnr(x, x.detach()).backward()
    assert x.grad is not None and not x.grad.any()  # finite, where there is nothing to be gained


@pytest.mark.parametrize(("most", "reached"), [(60, 39.957), (40, 36.990), (30, 29.586)])
def test_psnr_of_images_that_hardly_err_nears_its_most(most, reached):
    x = torch.zeros(1, 3, 16, 20)
    assert losses.psnr(x, x, most) == pytest.approx(most)
    assert losses.psnr(x, x + 0.01, most).item() == pytest.approx(reached, abs=2e-3)  # 40 dB by itself
