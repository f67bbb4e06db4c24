"""What only a CUDA card can show; skipped without one. `make card` runs it.

No line of the project has run on a card yet. Estimates for one are in benchmarks/README.md.
"""

import copy
from collections.abc import Callable, Sized
from dataclasses import replace
from typing import Any

import pytest
import skimage.data
import torch

import losses
from config import STUDENTS, TEACHERS
from engine import optimizer_of, training_step
from machinery.backbones import AutocastModel
from machinery.checkpoints import load_checkpoint
from machinery.distributed import World, set_arithmetic
from machinery.inference import DEFAULT_MODEL, Derainer
from machinery.lightnet import Block, Level, LightNet
from machinery.loading import Batches
from metrix_code.psnr import psnr
from networks import Conv, DerainNet
from stages import SID, SSIDKD
from tests import plain
from tests.small import LIGHT, assert_same_weights, run_script, student, teacher
from utils import read_image, write_image

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
CARD = torch.device("cuda")
NETWORKS: dict[str, Callable[[], Any]] = {
    "DerainNet": lambda: DerainNet((4, 6, 8), (2, 2, 1)),
    "LightNet": lambda: LightNet((4, 6, 8), (1, 1, 1)),
}
STAGES = {"SID": (SID, TEACHERS["Rain200H"]), "SSID-KD": (SSIDKD, STUDENTS["Rain200H"])}
# rounding: 24 bits of mantissa, 11 in TF32, 8 in bfloat16: of output and terms, of the gradient
LIMITS = {"float32": (1e-4, 1e-4), "tf32": (2e-3, 0.05), "bfloat16": (1e-2, 0.2)}


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    set_arithmetic("float32")


def a_batch(device="cpu"):
    torch.manual_seed(1)
    return {name: torch.rand(2, 3, 64, 64).to(device) for name in ("rainy", "clean", "real_rainy")}


def step_of(net, name="SID", **changes):
    """A function that trains `net` by one step on the card and returns the terms."""
    kind, recipe = STAGES[name]
    stage, here = kind(replace(recipe, **changes)), a_batch(CARD)
    stage.aux_networks = torch.nn.ModuleDict(stage.make_aux_networks(net)).to(CARD)
    optimizer = optimizer_of(stage.recipe, net)
    return lambda: training_step(stage, net, optimizer, [here])


def away(ours, exact):
    """Relative L2 error."""
    exact = exact.detach().double().cpu()
    return ((ours.detach().double().cpu() - exact).norm() / exact.norm()).item()


def gradient(net):
    return torch.cat([p.grad.detach().double().cpu().flatten() for p in net.parameters()])


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("backbone", NETWORKS)
@pytest.mark.parametrize("recompute", [False, True])
def test_output_terms_and_gradient_are_those_of_float64_on_a_cpu(backbone, name, precision, recompute):
    kind, recipe = STAGES[name]
    stage, batch = kind(recipe), a_batch()
    torch.manual_seed(0)
    net = NETWORKS[backbone]()
    torch.nn.init.normal_(net.tail.weight, std=0.1)  # LightNet begins by changing nothing
    exact = copy.deepcopy(net).double()
    doubled = {key: images.double() for key, images in batch.items()}
    expected = stage.terms(exact, doubled)
    stage.total(expected).backward()
    if recompute:
        net.recompute_units()
    set_arithmetic(precision)
    ours, here = AutocastModel(net, precision).to(CARD), a_batch(CARD)
    terms = stage.terms(ours, here)
    stage.total(terms).backward()
    limit, of_gradient = LIMITS[precision]
    assert away(ours(here["rainy"]).derained, exact(doubled["rainy"]).derained) <= limit
    assert max(away(terms[each], expected[each]) for each in terms) <= limit
    assert away(gradient(ours), gradient(exact)) <= of_gradient


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_blur_of_ssim_is_float32_even_with_tf32_on(layout):
    set_arithmetic("tf32")
    x, y = torch.rand(2, 2, 3, 64, 64, dtype=torch.float64)
    x.requires_grad_()
    (exact,) = torch.autograd.grad(losses.ssim(x, y), x)
    a, b = (each.detach().float().to(CARD).contiguous(memory_format=layout) for each in (x, y))
    (ours,) = torch.autograd.grad(losses.ssim(a.requires_grad_(), b), a)
    assert away(ours, exact) <= 1e-4


def test_the_dark_channels_gradient_is_that_of_three_dimensional_pooling():
    count = 2 * 3 * 64 * 64  # no two values alike: among equals, whose gradient it is is not defined
    image = (torch.randperm(count) / count).view(2, 3, 64, 64).to(CARD).requires_grad_()
    (ours,) = torch.autograd.grad(losses.dark_channel(image, 64), image)
    exact = image.detach().double().cpu().requires_grad_()
    (expected,) = torch.autograd.grad(plain.dark_channel(exact, 64), exact)
    assert away(ours, expected) <= 1e-6


@pytest.mark.parametrize("backbone", NETWORKS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_map_lies_channels_last_and_every_gradient_as_its_weight(backbone, precision):
    net, lies = AutocastModel(NETWORKS[backbone](), precision).to(CARD), []
    how = {"memory_format": torch.channels_last}
    for module in net.modules():
        if isinstance(module, (Conv, Block, Level)):
            module.register_forward_hook(lambda _, x, made: lies.append(made.is_contiguous(**how)))
    step_of(net)()
    assert lies and all(lies)
    assert all(p.grad is not None and p.grad.stride() == p.stride() for p in net.parameters())


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("backbone", NETWORKS)
@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon", "ema": 0.999, "clip": 1.0}])
def test_no_step_waits_for_the_card(backbone, name, changes):
    step = step_of(AutocastModel(NETWORKS[backbone](), "bfloat16").to(CARD), name, **changes)
    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.parametrize("backbone", NETWORKS)
def test_compiled_units_give_the_same_losses(backbone, mode):
    logged = []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = NETWORKS[backbone]()
        if compiled:
            net.compile_units(mode=mode)
        step = step_of(AutocastModel(net).to(CARD))
        logged.append([step()["total"].item() for _ in range(5)])
    assert logged[0] == pytest.approx(logged[1], rel=2e-2)


def test_crops_become_the_same_floats_as_on_a_cpu():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16).contiguous()

    class Levels(Sized):
        tag = 0

        def __len__(self):
            return 1

        def __getitem__(self, key):
            return {"rainy": levels[0]}

    how = {"batch_size": 1, "accumulate": 1, "seed": 0, "workers": 1}
    on_card, on_cpu = (
        next(iter(Batches([Levels()], World(0, 1, device), range(1), **how)))[0]["rainy"]
        for device in (CARD, torch.device("cpu"))
    )
    assert on_card.is_cuda and torch.equal(on_card.cpu(), on_cpu)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_shipped_model_scores_as_on_a_cpu(precision):
    rainy = skimage.data.astronaut()[:320, :480]
    ours, exact = (
        Derainer.open(DEFAULT_MODEL, device, precision=how, tile=None)(rainy)  # as derain.py does
        for device, how in ((CARD, precision), (torch.device("cpu"), "float32"))
    )
    assert psnr(ours, exact) > (60 if precision == "float32" else 45)


def test_derain_py_gives_what_it_gives_on_a_cpu(tmp_path, run_here):
    write_image(tmp_path / "1.png", skimage.data.astronaut())
    for name in ("True", "False"):
        words = "--save_path", str(tmp_path / name), "--use_GPU", name, "--precision", "float32"
        assert run_here("derain.py", str(tmp_path / "1.png"), *words) == 0
    ours, exact = (read_image(tmp_path / name / "1.png") for name in ("True", "False"))
    assert psnr(ours, exact) > 50


def scripts(recipe, name, **changes):
    """Trains in a process of its own, with loader workers."""
    done = run_script(f"train_{name}.py", recipe, **{"use_GPU": True, "workers": 2, **changes})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("light", [{}, LIGHT])
def test_a_resumed_run_on_a_card_ends_at_the_same_weights(tmp_path, light):
    given = {"deterministic": True, "lr_factor": 1.0, **light}  # the rate knows nothing of the length
    scripts(teacher(tmp_path, save_path=tmp_path / "straight", **light), "Rain200H", **given)
    stopped = teacher(tmp_path, save_path=tmp_path / "stopped", **light)
    scripts(stopped, "Rain200H", **given, steps=3)
    scripts(stopped, "Rain200H", **given, resume=True)
    assert_same_weights(tmp_path / "straight", tmp_path / "stopped")


def test_a_cpus_checkpoint_goes_on_on_a_card(tmp_path):
    recipe = teacher(tmp_path, steps=3)
    scripts(recipe, "Rain200H", use_GPU=False)
    scripts(recipe, "Rain200H", resume=True, steps=6)
    assert load_checkpoint(tmp_path / "teacher/net_latest")["step"] == 6
    scripts(student(tmp_path), "Rain200H_real")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two cards")
@pytest.mark.parametrize("stage", [teacher, student])
def test_two_cards_move_the_weights_as_one_does(tmp_path, stage):
    scripts(teacher(tmp_path), "Rain200H", gpu_id=(0,))
    name = "Rain200H" if stage is teacher else "Rain200H_real"
    for cards in ((0,), (0, 1)):
        folder = tmp_path / str(len(cards))
        scripts(stage(tmp_path, save_path=folder), name, gpu_id=cards, batchSize=4, deterministic=True)
    assert_same_weights(tmp_path / "1", tmp_path / "2", within=2e-5)
