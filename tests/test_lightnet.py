"""LightNet: its size and price, any image, any tile, both stages by the same code as DerainNet."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.run import macs
from config import LIGHT as RECIPE
from machinery.backbones import AutocastModel
from machinery.checkpoints import load_checkpoint
from machinery.evaluation import score
from machinery.lightnet import LightNet
from networks import DerainNet
from tests.small import CPU, LIGHT, assert_resumes_alike, evaluation, student, teacher, trained


def test_it_is_as_small_and_as_cheap_as_it_says():
    net = LightNet()
    parameters = sum(each.numel() for each in net.parameters())
    assert parameters == 4_054_347 and f"{parameters:,} parameters" in (LightNet.__doc__ or "")
    assert 2 * parameters < 8.2e6  # bytes in float16
    assert macs(net, (256, 256)) < 12e9 and 20 * macs(net, (256, 256)) < macs(DerainNet(), (256, 256))
    assert (RECIPE["channels"], RECIPE["units"]) == ((24, 48, 96, 144, 192), (1, 2, 2, 2, 2))


def small_lightnet(context: bool = False) -> LightNet:
    torch.manual_seed(0)
    net = LightNet((4, 6, 8), (1, 2, 1), context)
    for each in filter(None, (net.tail, net.context)):
        torch.nn.init.normal_(each.weight, std=0.3)  # as if it were trained
    return net


@pytest.mark.parametrize("context", [False, True])
def test_fresh_it_changes_nothing_and_learns_from_there(context):
    rainy = torch.rand(1, 3, 32, 32)
    net = LightNet((4, 6, 8), (1, 1, 1), context)
    assert torch.equal(net(rainy).derained, rainy)
    (net(rainy).derained - 0.5).square().mean().backward()
    assert net.tail.weight.grad is not None and net.tail.weight.grad.abs().sum() > 0


def test_images_of_a_batch_do_not_meet_whatever_their_layout_in_memory():
    net, rainy = small_lightnet(context=True), torch.rand(2, 3, 37, 51)
    both, alone = net(rainy).derained, torch.cat([net(image[None]).derained for image in rainy])
    last = net(rainy.contiguous(memory_format=torch.channels_last)).derained
    assert torch.allclose(both, alone, atol=1e-5) and torch.allclose(both, last, atol=1e-5)


def test_sides_that_are_no_multiple_are_reflected():
    net, rainy = small_lightnet(), torch.rand(1, 3, 30, 26)
    by_hand = net(F.pad(rainy, (0, 2, 0, 2), mode="reflect")).derained
    torch.testing.assert_close(net(rainy).derained, by_hand[..., :30, :26])


def test_a_tile_gives_what_the_whole_image_gives_inside():
    """It looks no further than its convolutions do."""
    net, rainy = small_lightnet(), torch.rand(1, 3, 160, 160)
    with torch.no_grad():
        whole = net(rainy).derained
        part = net(rainy[..., 32:128, 32:128]).derained
    assert torch.allclose(whole[..., 72:88, 72:88], part[..., 40:56, 40:56], atol=1e-5)
    assert not torch.allclose(whole[..., 32:128, 32:128], part, atol=1e-5)  # at the edges it cannot


def test_the_context_is_the_whole_images_and_a_tile_is_given_it():
    net, rainy = small_lightnet(context=True), torch.rand(1, 3, 96, 96)
    brighter = rainy.clone()
    brighter[..., 80:, 80:] += 1  # further away than the convolutions see
    with torch.no_grad():
        whole, mean = net(rainy).derained, net.encoded(rainy).deepest.mean((2, 3), keepdim=True)
        told, alone = (net(rainy[..., :64, :64], image_mean=each).derained for each in (mean, None))
        seen = net(brighter).derained
    inside = (..., slice(0, 24), slice(0, 24))
    torch.testing.assert_close(told[inside], whole[inside], rtol=0, atol=1e-5)
    assert (alone - whole[..., :64, :64])[inside].abs().max() > 1e-4
    assert (seen - whole)[inside].abs().max() > 1e-4
    assert AutocastModel(small_lightnet()).encoded(rainy) is None


MUON: dict[str, Any] = {"optimizer": "muon", "muon_lr": 2e-3, "context": True}
MUON |= {"late_start": 0.25, "late_patch_size": 48, "late_batchSize": 1}  # it stops and resumes among these


@pytest.mark.parametrize("more", [{}, MUON], ids=["adam", "muon"])
@pytest.mark.parametrize("stage", [teacher, student])
def test_both_stages_train_resume_and_are_evaluated(tmp_path, stage, more):
    light = {**LIGHT, "ema": 0.9, "clip": 1.0, "cosine": True, "warmup": 2, "mirror": True, **more}
    trained(teacher(tmp_path, **light))
    assert_resumes_alike(stage(tmp_path, save_path=tmp_path / "straight", **light))
    content = load_checkpoint(tmp_path / "straight/net_latest")
    assert content["network"]["backbone"] == "LightNet"
    scores = score(evaluation(tmp_path, logdir=tmp_path / "straight"), CPU)
    assert scores["mean"]["psnr"] > 0
    assert scores["method"] == f"{content['recipe']['stage']}-LightNet"  # never taken for the paper's
