"""The authors' released network and losses, run on a CPU in float32, are what ours must give.

The files in tests/golden were made with weights that are a function of each released key, see
`released_weights`, on images in the released network's own channel order, BGR.
"""

import dataclasses
import gzip
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from config import STUDENTS, TEACHERS
from engine import optimizer_of, training_step
from losses import dark_channel, distillation, ssim, total_variation
from machinery.backbones import AutocastModel
from machinery.released import from_released
from networks import DerainNet
from stages import SID, SSIDKD

GOLDEN = Path(__file__).parent / "golden"
NETWORK, LOSSES, TRAINING = (np.load(GOLDEN / f"{name}.npz") for name in ("network", "losses", "training"))


def released_weights() -> dict[str, torch.Tensor]:
    """A released state_dict, 2,204 entries, keys prefixed as DataParallel does."""
    shapes = json.loads(gzip.decompress((GOLDEN / "released_state_dict.json.gz").read_bytes()))
    drawn: dict[str, torch.Tensor] = {}
    weights = {}
    for key, shape in shapes.items():
        canonical = re.sub(r"units\.\d+\.", "units.0.", key)
        if canonical not in drawn:
            r = np.random.RandomState(zlib.crc32(f"a{canonical}".encode()))
            scale = 0.9 / np.sqrt(np.prod(shape[1:])) if len(shape) == 4 else 0.02
            drawn[canonical] = torch.from_numpy((r.standard_normal(shape) * scale).astype(np.float32))
        weights[f"module.{key}"] = drawn[canonical]
    return weights


def golden_network() -> DerainNet:
    net = DerainNet()
    net.load_state_dict(from_released(released_weights(), Path("net_latest")))
    return net


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy())


def swapped(array: np.ndarray) -> torch.Tensor:
    """Between BGR and RGB."""
    return tensor(array[:, ::-1])


def test_the_network_has_the_papers_size():
    weights = released_weights()
    assert len(weights) == 2204
    assert sum(p.numel() for p in golden_network().parameters()) == 4_403_195


@pytest.mark.parametrize("case", ["even", "odd", "small", "mod4"])
def test_network(case):
    with torch.no_grad():
        output = golden_network()(swapped(NETWORK[f"{case}_in"]))
    for name, ours in (("derained", output.derained.flip(1)), ("streaks", output.streaks.flip(1))):
        assert np.abs(ours.numpy() - NETWORK[f"{case}_{name}"]).max() < 1e-4
    assert np.abs(output.code.numpy() - NETWORK[f"{case}_code"]).max() < 1e-4


@pytest.mark.parametrize(
    ("name", "term", "gradients"),
    [
        ("ssim", lambda x: ssim(x, tensor(LOSSES["y"])), {"x": "ssim_grad"}),
        ("dark16", lambda x: dark_channel(x, 16), {"x": "dark16_grad"}),
        ("dark48", lambda x: dark_channel(x, 48), {"x": "dark48_grad"}),
        ("tv", total_variation, {"x": "tv_grad"}),
        ("kl", distillation, {"code_syn": "kl_grad_syn", "code_real": "kl_grad_real"}),
    ],
)
def test_losses(name, term, gradients):
    inputs = [tensor(LOSSES[each]).requires_grad_() for each in gradients]
    value = term(*inputs)
    assert value.item() == pytest.approx(float(LOSSES[name]), rel=1e-4)
    for ours, gradient in zip(torch.autograd.grad(value, inputs), gradients.values(), strict=True):
        expected = LOSSES[gradient]
        assert np.abs(ours.numpy() - expected).max() < 1e-4 * np.abs(expected).max()


def test_teacher_steps():
    net = AutocastModel(golden_network())
    batch = {"rainy": swapped(TRAINING["rainy"]), "clean": swapped(TRAINING["clean"])}
    stage = SID(TEACHERS["Rain200H"])
    optimizer = optimizer_of(stage.recipe, net)
    for expected in TRAINING["teacher_losses"]:
        total = training_step(stage, net, optimizer, [batch])["total"]
        assert total.item() == pytest.approx(float(expected), rel=2e-3)
    with torch.no_grad():
        derained = net(batch["rainy"]).derained.flip(1).numpy()
    assert np.abs(derained - TRAINING["teacher_derained"]).max() < 1e-2


def test_student_steps():
    net = AutocastModel(golden_network())
    rainy, clean, real = (swapped(TRAINING[name]) for name in ("rainy", "clean", "real"))
    stage = SSIDKD(dataclasses.replace(STUDENTS["Rain200H"], patch_size=64))
    optimizer = optimizer_of(stage.recipe, net)
    for row in TRAINING["student_terms"]:
        batch = {"rainy": rainy, "clean": clean, "real_rainy": real}
        terms = training_step(stage, net, optimizer, [batch])
        expected = dict(zip(TRAINING["student_term_names"].tolist(), row.tolist(), strict=True))
        expected["minus_ssim"] = -expected.pop("ssim")
        del terms["minus_psnr"]  # the released code knows none
        assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=2e-3)
    with torch.no_grad():
        derained = net(rainy).derained.flip(1).numpy()
    assert np.abs(derained - TRAINING["student_derained"]).max() < 1e-3
