"""Every option of a training and of an evaluation does what it says: one test of its effect each.

A test that only looks whether an option is accepted would pass if nothing read it.
"""

import dataclasses
import itertools
from functools import partial
from typing import Any

import pytest
import torch

import engine
from config import STUDENTS, TEACHERS, Schedule
from DerainDataset import RealCrops, pair_crops
from engine import optimizer_of, training_step, with_steps
from machinery.checkpoints import load_checkpoint
from machinery.evaluation import score
from machinery.inference import Derainer
from machinery.lightnet import LightNet
from machinery.loading import ImageCache
from networks import Derained, DerainNet
from stages import SID, Average
from tests import layouts
from tests.small import ALONE, CPU, LIGHT, a_run, evaluation, lines, student, teacher, trained
from utils import UserError

OFF = ImageCache("off")
assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0)

# ------------------------------------------------------------------------------------------------------ data


def test_rainy_side_says_which_half_is_rainy(tmp_path):
    layouts.rain800(tmp_path / "set")
    recipe = teacher(tmp_path, data_path=(tmp_path / "set",))
    left, right = (
        pair_crops(dataclasses.replace(recipe, rainy_side=side), OFF)[0, 0] for side in ("left", "right")
    )
    assert torch.equal(left["rainy"], right["clean"])


def test_the_seed_is_that_of_weights_order_and_crops(tmp_path):
    def drawn(seed):
        run = a_run(teacher(tmp_path, seed=seed))
        real = RealCrops.of(student(tmp_path, seed=seed), OFF)
        tensors = run.net.net.head1.weight, run.crops[0][0, 0]["clean"], real[0, 0]["real_rainy"]
        return [*(each.tolist() for each in tensors), list(run.phases[0].keys(4, 0))]

    for first, again, other in zip(drawn(0), drawn(0), drawn(7), strict=True):
        assert first == again != other
    twice: Any = pair_crops(teacher(tmp_path, data_path=(tmp_path / "data",) * 2), OFF)
    assert not torch.equal(*(each[0, 0]["clean"] for each in twice.sets))  # each set draws for itself


# --------------------------------------------------------------------------------------------- the average


def test_the_average_is_what_is_validated_and_saved(tmp_path, monkeypatch):
    """And no algorithm is sought for each size of image, while the training goes on seeking."""
    validated, seeks = [], []

    def scores(derainer, *_):
        validated.append(derainer.net)
        seeks.append(torch.backends.cudnn.benchmark)
        return {"psnr": 1.0, "ssim": 0.5}, ""

    monkeypatch.setattr(engine, "mean_scores", scores)
    run = a_run(teacher(tmp_path, ema=0.9, val_every=1, steps=4))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)  # as a run on a card has it
    run.run()
    assert seeks == [False, False] and torch.backends.cudnn.benchmark
    average: Any = run.stage.aux_networks["average"]
    own = run.net.net
    assert average.steps == 4
    assert not torch.equal(average.module.net.head1.weight, own.head1.weight)
    assert all(each is average.module for each in validated)
    content = load_checkpoint(tmp_path / "teacher/net_latest")
    assert_equal(content["net"], average.module.net.state_dict())
    assert_equal(content["training"]["net"], own.state_dict())


def test_the_average_follows_slowly_and_begins_sooner():
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    average: Any = Average(net, 0.9)
    expected = 0.0
    average.update(net)  # the first is a copy
    for n in range(1, 1000):
        torch.nn.init.constant_(net.weight, float(n))
        average.update(net)
        kept = min(0.9, n / (n + 50))
        expected = kept * expected + (1 - kept) * n
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)
    assert 985 < expected < 995  # nine steps behind, as 0.9 means


# -------------------------------------------------------------------------------------------------- schedule


def test_crops_are_larger_from_a_part_of_the_run_on(tmp_path):
    late: dict[str, Any] = {"late_start": 0.5, "late_patch_size": 40, "late_batchSize": 1}
    run = a_run(teacher(tmp_path, steps=4, **late))
    shapes = [tuple(parts[0]["rainy"].shape) for parts in run.batches]
    assert shapes == [(2, 3, 32, 32)] * 2 + [(1, 3, 40, 40)] * 2
    assert [run.schedule.batch_size(step) for step in (1, 2, 3, 4)] == [2, 2, 1, 1]
    all_late = a_run(teacher(tmp_path, steps=2, **late | {"late_start": 0.0}))
    assert [parts[0]["clean"].shape[-1] for parts in all_late.batches] == [40, 40]
    mixed = a_run(teacher(tmp_path, data_path=(tmp_path / "data",) * 2, steps=2, **late))
    assert [parts[0]["clean"].shape[-1] for parts in mixed.batches] == [32, 40]


def test_epochs_and_draws_go_on_in_larger_batches(tmp_path):
    late: dict[str, Any] = {"late_start": 0.5, "late_patch_size": 40, "late_batchSize": 1, "batchSize": 3}
    run = a_run(teacher(tmp_path, steps=0, epochs=4, milestone=(), val_every=1.0, **late))
    assert run.schedule.steps == 8 and run.schedule.validations == 2  # four pairs an epoch, two a step
    keys = [key for phase in run.phases for batch in phase.keys(4, 0) for key in batch]
    assert len(keys) == len(set(keys)) == 16
    assert [epoch for epoch, _ in keys] == [n // 4 for n in range(16)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ssim_weight": 0.0}, "--ssim_weight, --l1_weight, --psnr_weight are all 0"),
        ({"lr": 0.0}, "--lr 0.0 must be in [1e-09, 1]"),
    ],
)
def test_a_training_that_could_not_learn_is_refused(changes, says):
    assert says in (dataclasses.replace(TEACHERS["Rain200H"], **changes).validate() or "")


def test_a_part_of_an_epoch_is_that_part_of_its_steps():
    recipe = dataclasses.replace(TEACHERS["Rain200H"], batchSize=10)
    schedules = (Schedule(dataclasses.replace(recipe, val_every=each), 1000) for each in (0.5, 3.76))
    assert [each.validations for each in schedules] == [50, 376]


def test_minutes_set_the_steps_by_a_pilot_and_a_resumed_run_keeps_them(tmp_path, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(engine.time, "perf_counter", lambda: float(next(clock)))  # a second at each look
    monkeypatch.setattr(engine, "PILOT", range(1, 3))
    recipe = teacher(tmp_path, minutes=0.1, val_every=1, late_start=0.5)
    timed = with_steps(SID, recipe, ALONE)
    assert timed.steps == 12  # two steps took a second, so a step half of one
    schedule = Schedule(timed, 4)
    assert schedule.steps == 12 and schedule.validations == 1  # a tenth of the run, a step at least
    assert Schedule(dataclasses.replace(timed, steps=200), 4).validations == 20
    monkeypatch.undo()
    trained(dataclasses.replace(recipe, minutes=0.0, steps=3))
    assert with_steps(SID, dataclasses.replace(recipe, resume=True), ALONE).steps == 3
    assert with_steps(SID, dataclasses.replace(recipe, minutes=0.0), ALONE).steps == recipe.steps


def test_the_rate_is_the_optimizers_and_drops_by_its_factor(tmp_path):
    trained(teacher(tmp_path, lr=0.002, lr_factor=0.1, epochs=10, milestone=(5,), steps=4))
    rates = [line["optimizer/lr"] for line in lines(tmp_path / "teacher")]
    assert rates == pytest.approx([0.002, 0.002, 0.0002, 0.0002])


def test_a_cosine_rises_falls_and_ends_at_a_hundredth():
    recipe = dataclasses.replace(TEACHERS["Rain200H"], cosine=True, warmup=10, steps=1000)
    schedule = Schedule(recipe, 1800)
    factors = [schedule.factor(step) for step in range(1001)]
    assert factors[:10] == pytest.approx([(n + 1) / 10 for n in range(10)], rel=1e-3)
    assert factors[500] == pytest.approx(0.505) and factors[1000] == pytest.approx(0.01)
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert Schedule(dataclasses.replace(recipe, cosine=False, warmup=4), 1800).factor(1) == 0.5


@pytest.mark.parametrize(("decay", "beta2"), [(0.0, 0.999), (0.5, 0.9)])
def test_adam_has_the_rate_the_decay_and_the_memory_asked_for(tmp_path, decay, beta2):
    net = torch.nn.Conv2d(1, 1, 1, bias=False)
    torch.nn.init.ones_(net.weight)
    optimizer = optimizer_of(teacher(tmp_path, lr=0.01, weight_decay=decay, beta2=beta2), net)
    net.weight.grad = torch.ones_like(net.weight)
    optimizer.step()
    # decoupled: of the weight, not of the gradient
    assert 1 - net.weight.item() == pytest.approx(0.01 + 0.01 * decay, rel=1e-4)
    assert optimizer.param_groups[0]["betas"] == (0.9, beta2)


def test_the_gradient_is_clipped_to_its_norm(tmp_path):
    norms = {}
    for clip in (0.0, 0.01):
        run = a_run(teacher(tmp_path, clip=clip, steps=1))
        (parts,) = run.batches
        training_step(run.stage, run.net, run.optimizer, parts)
        gradients = [p.grad for p in run.net.parameters() if p.grad is not None]
        norms[clip] = torch.cat([each.flatten() for each in gradients]).norm().item()
    assert norms[0.0] > 0.02 and norms[0.01] == pytest.approx(0.01, rel=1e-3)


# ------------------------------------------------------------------------------------------------------ loss


@pytest.mark.parametrize("of", [teacher, student])
def test_what_psnr_nears_is_the_options(tmp_path, of):
    """By what changes nothing, on pairs without rain."""
    trained(teacher(tmp_path, steps=1))
    run = a_run(of(tmp_path, save_path=tmp_path / "clear", clear_prob=1.0, psnr_cap=25.0))
    batch = next(iter(run.batches))[0]
    terms = run.stage.terms(lambda rainy: Derained(rainy, 0 * rainy, rainy), batch)
    assert terms["minus_psnr"].item() == pytest.approx(-25)


RECORDS = {teacher: TEACHERS["Rain200H"], student: STUDENTS["Rain200H"]}
WEIGHTS = [(of, name) for of, record in RECORDS.items() for name in vars(record) if name.endswith("_weight")]


@pytest.mark.parametrize(("of", "weight"), WEIGHTS)
def test_a_weight_is_that_of_its_term_and_training_by_it_alone_helps(tmp_path, of, weight):
    trained(teacher(tmp_path, steps=1))
    weights = {name: 3.0 * (name == weight) for one, name in WEIGHTS if one is of}
    run = a_run(of(tmp_path, save_path=tmp_path / "alone", steps=30, lr=2e-3, **weights))
    (parts, *_) = run.batches
    first, *_, last = [training_step(run.stage, run.net, run.optimizer, parts) for _ in range(30)]
    term = weight.removesuffix("_weight")
    name = term if term in first else f"minus_{term}"
    assert first["total"] == pytest.approx(3 * first[name].item(), rel=1e-5)
    assert last[name] < first[name]


def test_weights_and_teacher_are_what_a_run_starts_from(tmp_path):
    trained(teacher(tmp_path, steps=2))
    first = load_checkpoint(tmp_path / "teacher/net_latest")["net"]
    fresh = a_run(teacher(tmp_path, seed=3, save_path=tmp_path / "x"))
    tuned = a_run(teacher(tmp_path, seed=3, save_path=tmp_path / "x", weights=tmp_path / "teacher"))
    of_teacher = a_run(student(tmp_path, seed=3))
    for run in (tuned, of_teacher):
        assert_equal(run.net.net.state_dict(), first)
    assert any(not torch.equal(fresh.net.net.state_dict()[name], first[name]) for name in first)
    assert tuned.initialized_from.startswith(str(tmp_path / "teacher/net_latest"))
    neither = student(tmp_path, teacher=tmp_path / "nosuch", data_path=(tmp_path / "none",))
    with pytest.raises(UserError, match=r"nosuch.*python train_Rain200H\.py makes a teacher"):
        a_run(neither)  # told before the data is looked at
    with pytest.raises(UserError, match=r"size mismatch for head1\.weight.*see --backbone, --channels"):
        a_run(student(tmp_path, channels=(5, 6, 8)))


# ------------------------------------------------------------------------------------------ network, machine


def test_the_network_is_of_the_backbone_and_size_asked_for(tmp_path):
    run = a_run(teacher(tmp_path, channels=(5, 6, 7), units=(3, 2, 1)))
    net = run.net.net
    assert isinstance(net, DerainNet) and net.head1.out_channels == 5 and net.full_branch.encode1.n == 3
    built = {"channels": (5, 6, 7), "units": (3, 2, 1)}
    assert run.network == {"backbone": "DerainNet", "arguments": built}
    light = a_run(teacher(tmp_path, **LIGHT)).net.net
    levels: Any = light.encode
    assert isinstance(light, LightNet)
    assert [level.blocks[0].conv1.out_channels for level in levels] == [4, 6, 8]


@pytest.mark.parametrize("wrong", [{"channels": (4, 6)}, {"backbone": "LightNet", "units": (1, 1)}])
def test_a_network_that_cannot_be_is_refused_by_its_options(tmp_path, wrong):
    with pytest.raises(UserError, match=r"there is no .*Net with channels"):
        a_run(teacher(tmp_path, **wrong))


def test_precision_reaches_the_training_and_the_evaluation(tmp_path):
    assert a_run(teacher(tmp_path, precision="bfloat16")).net.precision == "bfloat16"
    trained(teacher(tmp_path, steps=1))
    exact, rounded = (
        score(evaluation(tmp_path, precision=precision), CPU)["mean"]["psnr"]
        for precision in ("float32", "bfloat16")
    )
    assert exact != rounded and exact == pytest.approx(rounded, abs=0.1)


@pytest.mark.parametrize("light", [{}, LIGHT])
def test_recompute_and_compile_reach_the_network(tmp_path, light, monkeypatch):
    made = [trained(teacher(tmp_path, steps=3, recompute=on, **light)).net for on in (False, True)]
    plain, recomputed = made
    flags = [each.recompute for each in recomputed.modules() if hasattr(each, "recompute")]
    assert flags and all(flags)
    torch.testing.assert_close(recomputed.state_dict(), plain.state_dict(), rtol=0, atol=1e-6)
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compiled.append(type(self).__name__))
    a_run(teacher(tmp_path, compile=True, **light))
    assert set(compiled) == ({"Level"} if light else {"Unit"})


def test_how_often_it_logs_saves_and_keeps(tmp_path, monkeypatch):
    saved, save = [], engine.Run._save

    def noted(self, name):
        saved.append(f"{self.step} {name}")
        save(self, name)

    monkeypatch.setattr(engine.Run, "_save", noted)
    monkeypatch.setattr(engine, "mean_scores", lambda *_: ({"psnr": 1.0, "ssim": 0.5}, ""))
    trained(teacher(tmp_path, steps=7, log_every=3, save_every=4, keep_every=2, val_every=1.5))
    # and where it saves, which it does once where it validates, at steps 3, 6 and 7
    assert [line["step"] for line in lines(tmp_path / "teacher")] == [3, 3, 4, 6, 6, 7, 7]
    # what is kept comes before what resumes beyond it
    latest = [f"{step} net_latest" for step in (3, 4, 6, 7)]
    assert saved == ["2 net_2", "3 net_best", latest[0], "4 net_4", latest[1], "6 net_6", *latest[2:]]
    assert {path.name for path in (tmp_path / "teacher").glob("net_*")} == {each.split()[1] for each in saved}


def test_cache_and_workers_are_as_asked(tmp_path):
    run = a_run(teacher(tmp_path, cache="off", workers=0))
    assert run.crops[0].messages[-1].endswith("images are not cached: as asked")
    assert run.phases[0].workers == 0
    assert a_run(teacher(tmp_path, workers=1)).phases[0].workers == 1


# -------------------------------------------------------------------------------------------- at inference


def test_the_self_ensemble_undoes_each_turn():
    class Shifts(torch.nn.Module):
        """Moves an image to the right: of eight turns of that, the mean is symmetric, if each is undone."""

        def forward(self, rainy):
            moved = torch.roll(rainy, 1, 3)
            return Derained(moved, rainy - moved, moved)

    rainy = torch.zeros(3, 32, 32)
    rainy[:, 16, 16] = 1
    made = Derainer(Shifts(), self_ensemble=True).derained(rainy)
    expected = torch.zeros_like(rainy)
    expected[:, (16, 16, 17, 15), (17, 15, 16, 16)] = 0.25
    assert torch.allclose(made, expected, atol=1e-6)


def test_tiles_are_blended_where_they_overlap():
    class Numbers(torch.nn.Module):
        """Gives every tile a value of its own."""

        count = 0

        def forward(self, rainy):
            self.count += 1
            return Derained(*[torch.full_like(rainy, float(self.count))] * 3)

    made = Derainer(Numbers(), tile=256).derained(torch.zeros(3, 64, 448))[0, 32]
    assert made[0] == 1 and made[-1] == 2
    steps = made.diff()
    assert (steps >= 0).all() and steps.max() < 0.05  # a ramp, not an edge
