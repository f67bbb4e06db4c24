"""Every option of a training and of an evaluation does what it says: one test of its effect each.

A test that only looks whether an option is accepted would pass if nothing read it.
"""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import backbones
import engine
from config import TEACHERS, Schedule
from datasets.layouts import find_pairs
from datasets.pairs import sample
from DerainDataset import Crops, RealCrops, pair_crops
from engine import optimizer_of, training_step
from evaluation import score, seen_in_training
from inference import Derainer
from lightnet import LightNet
from losses import l1, psnr, ssim
from machinery.checkpoints import load_checkpoint
from machinery.loading import ImageCache
from networks import Derained, DerainNet
from scoring import validation_set
from stages import SID, average_of, frozen
from tests import layouts, small
from tests.small import CPU, LIGHT, a_run, evaluation, lines, student, teacher, trained
from utils import UserError, to_tensor, write_image

OFF = ImageCache("off")


def crops_of(recipe) -> Crops:
    return pair_crops(recipe, OFF)


def whole(crop: torch.Tensor) -> np.ndarray:
    return np.round(crop.permute(1, 2, 0).numpy() * 255).astype(int)


# ------------------------------------------------------------------------------------------------------ data


def test_patch_size_is_the_side_of_the_crops_and_the_window_of_the_dark_channel(tmp_path, monkeypatch):
    trained(teacher(tmp_path, steps=1))
    windows = []

    def noted(image, window):
        windows.append(window)
        return image.sum()

    monkeypatch.setattr("stages.dark_channel", noted)
    run = a_run(student(tmp_path, patch_size=24))
    (parts, *_) = run.batches
    assert all(crop.shape[-2:] == (24, 24) for crop in parts[0].values())
    run.stage.terms(run.state.net, parts[0])
    assert windows == [24, 24]


def test_rainy_side_says_which_half_is_rainy(tmp_path):
    layouts.rain800(tmp_path / "set")
    sides = {
        side: crops_of(teacher(tmp_path, data_path=(tmp_path / "set",), rainy_side=side))[0, 0]
        for side in ("left", "right")
    }
    assert torch.equal(sides["left"]["rainy"], sides["right"]["clean"])


def test_the_seed_is_that_of_weights_order_and_crops(tmp_path):
    runs = [a_run(teacher(tmp_path, seed=seed)) for seed in (0, 0, 7)]
    weights = [run.state.net.net.head1.weight for run in runs]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    crops = [run.crops[0][0, 0]["clean"] for run in runs]
    assert torch.equal(crops[0], crops[1]) and not torch.equal(crops[0], crops[2])
    orders = [list(run.batches.streams[0]) for run in runs]
    assert orders[0] == orders[1] != orders[2]


def test_real_path_and_data_path_are_where_the_images_come_from(tmp_path):
    trained(teacher(tmp_path, steps=1))
    write_image(tmp_path / "grey/1.png", np.full((40, 40, 3), 99, np.uint8))
    batch = next(iter(a_run(student(tmp_path, real_path=(tmp_path / "grey",))).batches))[0]
    assert (whole(batch["real_rainy"][0]) == 99).all()


@pytest.mark.parametrize("option", ["augment", "mirror"])
def test_crops_are_turned_as_asked_pairs_and_real_ones(tmp_path, option):
    recipe = student(teacher(tmp_path).save_path.parent, **{option: True})
    off: dict[str, Any] = {option: False}
    plain = dataclasses.replace(recipe, **off)
    views = {"augment": [(k, f) for f in (1, -1) for k in range(4)], "mirror": [(0, 1), (0, -1)]}[option]
    for of, key in ((pair_crops, "rainy"), (RealCrops.of, "real_rainy")):
        seen = set()
        turned, straight = of(recipe, OFF), of(plain, OFF)
        for epoch in range(30):
            crop, before = whole(turned[epoch, 0][key]), whole(straight[epoch, 0][key])
            found = [n for n, (k, f) in enumerate(views) if np.array_equal(np.rot90(before, k)[:, ::f], crop)]
            assert found, "no turn of the crop that it is without"
            seen.add(found[0])
        assert len(seen) == len(views)


# ----------------------------------------------------------------------------------------- layers of streaks


def soft_streaks(folder, count=1):
    """Pairs of 200x200 whose rain is soft, falls straight down and lies on plain colours."""
    waves = (60 + 50 * np.sin(np.arange(200) / 3))[None, :, None].astype(np.uint8)
    for n in range(1, count + 1):
        clean = np.full((200, 200, 3), 20 * n, np.uint8)
        write_image(folder / f"train/norain/{n}.png", clean)
        write_image(folder / f"train/rain/{n}.png", clean + np.broadcast_to(waves, clean.shape))
    return folder


def layers(recipe, epochs=60):
    crops = crops_of(recipe)
    items = [crops[epoch, 0] for epoch in range(epochs)]
    return [(item["rainy"] - item["clean"])[0].double().numpy() * 255 for item in items]


def slant(layer: np.ndarray) -> float:
    """Degrees from the vertical, by the structure tensor."""
    y, x = np.gradient(layer)
    return float(np.degrees(np.arctan2(2 * (x * y).mean(), (x * x - y * y).mean())) / 2)


def test_recombined_streaks_are_turned_to_both_sides_zoomed_and_strengthened(tmp_path):
    recipe = teacher(tmp_path, data_path=(soft_streaks(tmp_path / "set"),), recombine=True, patch_size=64)
    (straight, *_) = layers(recipe, 1)
    assert abs(slant(straight)) < 1
    turned = [slant(each) for each in layers(dataclasses.replace(recipe, max_streak_rotation=20.0))]
    assert max(turned) > 8 and min(turned) < -8 and max(map(abs, turned)) < 21
    strong = [
        each.mean() / straight.mean() for each in layers(dataclasses.replace(recipe, streak_strength=1.5))
    ]
    assert 1.3 < max(strong) < 1.6 and 0.6 < min(strong) < 0.8

    def waves(layer):
        row = np.abs(np.fft.rfft(layer.mean(axis=0) - layer.mean(), 1024))
        return int(row.argmax())

    zoomed = [waves(each) / waves(straight) for each in layers(dataclasses.replace(recipe, streak_zoom=1.5))]
    assert 1.3 < max(zoomed) < 1.6 and 0.6 < min(zoomed) < 0.8


def test_recombined_layers_are_mirrored_and_never_turned_while_backgrounds_are(tmp_path):
    """Rain falls: whatever `augment` does to the background, the streaks stay upright."""
    folder = soft_streaks(tmp_path / "set")
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None] // 4, (200, 200, 3))
    write_image(folder / "train/norain/1.png", ramp)
    rain = (60 + 50 * np.sin(np.arange(200) ** 1.3 / 9))[None, :, None].astype(np.uint8)
    write_image(folder / "train/rain/1.png", ramp + np.broadcast_to(rain, ramp.shape))
    recipe = teacher(tmp_path, data_path=(folder,), recombine=True, augment=True, patch_size=64)
    crops = crops_of(recipe)
    items = [crops[epoch, 0] for epoch in range(40)]
    tilts = {int(np.sign(whole(item["clean"])[-1, 0, 0] - whole(item["clean"])[0, 0, 0])) for item in items}
    assert tilts == {-1, 0, 1}  # the ramp, turned
    found = [whole(item["rainy"])[..., 0] - whole(item["clean"])[..., 0] for item in items]
    assert all((layer == layer[:1]).all() for layer in found)  # the rain, never
    finer_right = {
        bool(np.abs(np.diff(each[0, :32])).sum() < np.abs(np.diff(each[0, 32:])).sum()) for each in found
    }
    assert finer_right == {True, False}  # mirrored


def test_backgrounds_are_drawn_as_often_as_there_are_of_them(tmp_path):
    folder = soft_streaks(tmp_path / "set", 2)
    for n in range(6):
        write_image(tmp_path / f"more/{n}.png", np.full((80, 80, 3), 200 + n, np.uint8))
    recipe = teacher(tmp_path, data_path=(folder,), recombine=True, backgrounds=(tmp_path / "more",))
    crops = crops_of(recipe)
    drawn = [int(whole(crops[epoch, index]["clean"]).max()) for epoch in range(100) for index in range(2)]
    assert set(drawn) == {20, 40, *range(200, 206)}
    assert 0.6 < np.mean([each >= 200 for each in drawn]) < 0.9
    without = crops_of(dataclasses.replace(recipe, backgrounds=()))
    assert all(whole(without[epoch, 0]["clean"]).max() <= 40 for epoch in range(20))


def test_layers_are_blurred_and_several_laid_as_asked(tmp_path):
    recipe = teacher(tmp_path, data_path=(soft_streaks(tmp_path / "set"),), recombine=True, patch_size=64)
    (plain, *_) = layers(recipe, 1)
    contrast = [np.ptp(each) for each in layers(dataclasses.replace(recipe, streak_blur=6.0))]
    assert max(contrast) == np.ptp(plain) and min(contrast) < np.ptp(plain) / 2
    sums = [each.mean() / plain.mean() for each in layers(dataclasses.replace(recipe, streak_layers=3))]
    assert {round(each) for each in sums} == {1, 2, 3}


def test_streaks_are_layers_of_their_own_on_the_pairs_clean_sides(tmp_path):
    streaks = np.zeros((80, 80, 3), np.uint8)
    streaks[:, ::7] = 33
    write_image(tmp_path / "streaks/1.png", streaks)
    recipe = teacher(
        tmp_path,
        data_path=(soft_streaks(tmp_path / "set"),),
        recombine=True,
        streaks=(tmp_path / "streaks",),
    )
    crops = crops_of(recipe)
    assert len(crops) == 2
    crop = crops[0, 1]
    assert set(np.unique(whole(crop["rainy"] - crop["clean"]))) == {0, 33}
    assert (whole(crop["clean"]) == 20).all()
    write_image(tmp_path / "streaks/2.png", np.full((80, 80, 3), (9, 8, 7), np.uint8))
    with pytest.raises(UserError, match=r"2\.png is no streak layer: --streaks takes grey streaks on black"):
        crops_of(recipe)


def test_clear_haze_and_jpeg_come_as_often_as_asked_and_on_both_sides(tmp_path):
    plain = teacher(tmp_path, patch_size=24)
    expected = [crops_of(plain)[epoch, 0] for epoch in range(200)]

    def items(**share):
        crops = crops_of(dataclasses.replace(plain, **share))
        return [crops[epoch, 0] for epoch in range(200)]

    clear = [torch.equal(item["rainy"], item["clean"]) for item in items(clear_share=0.25)]
    assert 0.15 < np.mean(clear) < 0.35
    for share in ("veil_share", "jpeg_share"):
        changed = []
        for item, before in zip(items(**{share: 0.25}), expected, strict=True):
            both = [not torch.equal(item[side], before[side]) for side in ("rainy", "clean")]
            assert both[0] == both[1]
            changed.append(both[0])
        assert 0.15 < np.mean(changed) < 0.35
    for item, before in zip(items(veil_share=1.0), expected, strict=True):
        for side in ("rainy", "clean"):  # less contrast, on both sides
            assert np.ptp(whole(item[side])) <= 0.95 * np.ptp(whole(before[side])) + 1
    for item, before in zip(items(jpeg_share=1.0), expected, strict=True):
        error = np.abs(whole(item["clean"]) - whole(before["clean"])).mean()
        assert 0 < error < 30
        assert abs(whole(item["clean"]).mean() - whole(before["clean"]).mean()) < 3  # its colours in order


def test_without_recombine_the_layer_options_are_refused():
    for name, value in (
        ("max_streak_rotation", 5.0),
        ("streak_zoom", 1.2),
        ("streak_strength", 1.2),
        ("streak_blur", 1.0),
        ("streak_layers", 2),
        ("streaks", (Path("x"),)),
    ):
        given: dict[str, Any] = {name: value}
        recipe = dataclasses.replace(TEACHERS["Rain200H"], **given)
        assert f"--{name}" in (recipe.contradiction() or "")
        assert dataclasses.replace(recipe, recombine=True).contradiction() is None


# ---------------------------------------------------------------------------------------------- several sets


def flat(folder, grey, count, streak):
    """Pairs of plain `grey`; the rain is one streak, added, or of another colour."""
    for n in range(count):
        clean = np.full((60, 60, 3), grey + n, np.uint8)
        rainy = clean.copy()
        rainy[:, 30] += np.array(streak, np.uint8)
        write_image(folder / f"train/norain/{n}.png", clean)
        write_image(folder / f"train/rain/{n}.png", rainy)
    return folder


def test_several_sets_are_mixed_by_size_or_by_shares(tmp_path):
    one, two = flat(tmp_path / "one", 20, 4, (50, 50, 50)), flat(tmp_path / "two", 120, 8, (40, 40, 40))
    recipe = teacher(tmp_path, data_path=(one, two), patch_size=16)
    crops = crops_of(recipe)
    assert len(crops) == 12 and crops.counts["pairs 1"][0] == 4 and crops.counts["pairs 2"][0] == 8
    greys = [int(whole(crops[0, index]["clean"]).max()) for index in range(12)]
    assert sorted(greys) == [*range(20, 24), *range(120, 128)]
    shared = crops_of(dataclasses.replace(recipe, shares=(3.0, 1.0)))
    drawn = [int(whole(shared[e, index]["clean"]).max()) for e in range(4) for index in range(len(shared))]
    assert len(shared) == 12
    assert [drawn.count(grey) for grey in range(20, 24)] == [9] * 4
    # of each set every pair comes before any comes again; the first is not the first file
    assert sorted(drawn.count(grey) for grey in range(120, 128)) == [1] * 4 + [2] * 4
    assert [grey for grey in drawn if grey >= 120][:3] != [120, 121, 122]
    refused = dataclasses.replace(recipe, shares=(1.0,)).contradiction()
    assert refused == "--shares takes a number a set, 2, not 1"
    with pytest.raises(UserError, match=r"--shares leaves .*two.* none of 12 crops: give it more"):
        crops_of(dataclasses.replace(recipe, shares=(100.0, 1.0)))
    assert "--data_path names no folder" in (dataclasses.replace(recipe, data_path=()).contradiction() or "")


def test_layers_fall_on_every_sets_backgrounds_and_other_rain_stays_where_it_is(tmp_path):
    added, coloured = (
        flat(tmp_path / "one", 20, 3, (50, 50, 50)),
        flat(tmp_path / "two", 120, 3, (60, 20, 90)),
    )
    recipe = teacher(tmp_path, data_path=(added, coloured), recombine=True, augment=True, patch_size=60)
    crops = crops_of(recipe)
    assert any("the rain stays on its own images" in note and "two" in note for note in crops.notes)
    on = {int(whole(crops[epoch, 0]["clean"]).max()) for epoch in range(100)}
    assert on == {20, 21, 22, 120, 121, 122}
    for epoch in range(30):
        item = crops[epoch, 4]
        layer = whole(item["rainy"]) - whole(item["clean"])
        assert whole(item["clean"]).max() in (120, 121, 122)
        assert {tuple(colour) for colour in layer[:, 30 if layer[0, 30, 0] else 29]} == {
            (60, 20, 90)
        }  # upright
    with pytest.raises(UserError, match="--recombine needs rain that is an exact grey addition"):
        crops_of(dataclasses.replace(recipe, data_path=(coloured, coloured)))


def mixed(tmp_path, **changes):
    """A recipe of all that can be mixed."""
    one, two = flat(tmp_path / "one", 20, 3, (50, 50, 50)), flat(tmp_path / "two", 120, 3, (60, 20, 90))
    streaks = np.zeros((60, 60, 3), np.uint8)
    streaks[:, ::9] = 40
    for n in range(2):
        write_image(tmp_path / f"streaks/{n}.png", streaks)
        write_image(tmp_path / f"clean/{n}.png", np.full((60, 60, 3), 200 + n, np.uint8))
    how: dict[str, Any] = {
        "recombine": True,
        "streak_layers": 2,
        "streak_blur": 1.0,
        "max_streak_rotation": 9.0,
    }
    how |= {
        "clear_share": 0.2,
        "veil_share": 0.2,
        "jpeg_share": 0.2,
        "shares": (1.0, 1.0, 2.0),
        "hold_back": 1,
    }
    how |= {"streaks": (tmp_path / "streaks",), "backgrounds": (tmp_path / "clean",)}
    return teacher(tmp_path, data_path=(one, two), **{**how, **changes})


def test_a_run_on_several_sets_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    trained(mixed(tmp_path, save_path=tmp_path / "whole", steps=4))
    stopped = mixed(tmp_path, save_path=tmp_path / "parts", steps=4)
    run = a_run(stopped)

    class AfterTwo:
        asked = property(lambda _: run.state.step == 2)

    monkeypatch.setattr(run, "stop", AfterTwo())
    assert not run.run()
    for other in ({"data_path": stopped.data_path[::-1]}, {"backgrounds": (tmp_path / "streaks",)}):
        with pytest.raises(UserError, match=r"was begun on .* (pairs|backgrounds) 1, and here are"):
            trained(dataclasses.replace(stopped, resume=True, **other))
    trained(dataclasses.replace(stopped, resume=True))
    small.assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_backgrounds_are_clean_images_alone_and_seen(tmp_path):
    layouts.rain200(tmp_path / "data", test=2)
    with pytest.raises(UserError, match=r"data holds pairs: --backgrounds takes the folder of their clean"):
        crops_of(teacher(tmp_path, recombine=True, backgrounds=(tmp_path / "data",)))
    clean = tmp_path / "data/rain_data_test_Heavy/norain"
    data = crops_of(teacher(tmp_path, recombine=True, backgrounds=(clean,))).found_in_words
    trained_on = {"data": data, "real_path": [], "released": False}
    assert "it was trained on the images in" in seen_in_training("Rain200H", clean.parent, trained_on, "SID")
    assert not seen_in_training("Rain200H", tmp_path / "elsewhere", trained_on, "SID")


def test_of_several_sets_each_has_pairs_held_back(tmp_path):
    folders = tuple(flat(tmp_path / name, 20, 5, (9, 9, 9)) for name in ("one", "two"))
    crops = crops_of(teacher(tmp_path, data_path=folders, hold_back=2))
    assert crops.held_back and len(crops) == 6
    assert [pair.name for pair in crops.held_back.pairs] == ["1-0", "1-4", "2-0", "2-4"]


def test_several_sets_are_validated_on_the_test_pairs_of_those_that_have_any(tmp_path):
    layouts.rain200(tmp_path / "data", test=3)
    other = flat(tmp_path / "two", 120, 3, (40, 40, 40))
    recipe = teacher(tmp_path, data_path=(tmp_path / "data", other), val_every=1.0)
    found, notes = validation_set(recipe, crops_of(recipe))
    assert found and len(found.pairs) == 3
    assert any(note.startswith("not validated on") and "two" in note for note in notes)


# --------------------------------------------------------------------------------- what it is validated on


def test_pairs_that_are_held_back_are_validated_on_and_not_trained_on(tmp_path):
    layouts.rain200(tmp_path / "data", train=9)
    crops = crops_of(teacher(tmp_path, hold_back=3))
    assert crops.held_back and len(crops.held_back.pairs) == 3 and len(crops) == 6
    held = {pair.name for pair in crops.held_back.pairs}
    assert held == {"norain-1x2", "norain-5x2", "norain-9x2"}  # spread evenly
    assert not held & {pair.name for pair in crops.pairs}
    found, _ = validation_set(teacher(tmp_path, hold_back=3), crops)
    assert found is crops.held_back
    with pytest.raises(UserError, match="--hold_back 9 leaves none"):
        crops_of(teacher(tmp_path, hold_back=9))


def test_a_scene_is_held_back_with_all_its_rains(tmp_path):
    """Of Rain1400 fourteen rainy images go with one clean one, which must not be trained on."""
    layouts.rain1400(tmp_path / "set")
    recipe = dataclasses.replace(
        TEACHERS["Rain1400"], data_path=(tmp_path / "set",), hold_back=1, patch_size=16
    )
    crops = crops_of(recipe)
    assert crops.held_back
    held = {pair.clean for pair in crops.held_back.pairs}
    assert held and not held & {pair.clean for pair in crops.pairs}
    everything = crops_of(dataclasses.replace(recipe, hold_back=0))
    assert len(everything) - len(crops) > len(held)


def test_val_images_are_spread_evenly(tmp_path):
    layouts.rain200(tmp_path / "data", test=9)
    recipe = teacher(tmp_path, val_every=1.0, val_images=3)
    found, _ = validation_set(recipe, crops_of(recipe))
    assert found and [pair.name for pair in found.pairs] == ["norain-1x2", "norain-5x2", "norain-9x2"]
    assert sample(100, 4) == [0, 33, 66, 99]


def test_the_average_is_what_is_validated_and_saved(tmp_path, monkeypatch):
    validated = []

    def scores(derainer, *_):
        validated.append(derainer.net)
        return {"psnr": 1.0, "ssim": 0.5}, ""

    monkeypatch.setattr(engine, "mean_scores", scores)
    run = trained(teacher(tmp_path, ema=0.9, val_every=1, steps=4))
    average: Any = run.stage.beside["average"]
    assert int(average.n_averaged) == 4 and not torch.equal(
        average.module.net.head1.weight, run.state.net.net.head1.weight
    )
    assert validated and all(each is average.module for each in validated)
    content = load_checkpoint(tmp_path / "teacher/net_latest")
    for name, value in average.module.net.state_dict().items():
        assert torch.equal(content["net"][name], value)
        assert torch.equal(content["training"]["net"][name], run.state.net.net.state_dict()[name])


def test_the_average_follows_slowly_and_begins_sooner():
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    average: Any = average_of(net, 0.9)
    expected = 0.0
    average.update_parameters(net)  # the first is a copy
    for n in range(1, 1000):
        torch.nn.init.constant_(net.weight, float(n))
        average.update_parameters(net)
        kept = min(0.9, n / (n + 50))
        expected = kept * expected + (1 - kept) * n
    assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)
    assert 985 < expected < 995  # nine steps behind, as 0.9 means


# -------------------------------------------------------------------------------------------------- schedule


def test_the_batch_and_the_length_are_as_asked(tmp_path):
    run = a_run(teacher(tmp_path, batchSize=3, steps=0, epochs=9, milestone=()))
    assert run.schedule.steps == 9 * 4 // 3
    batches = list(run.batches)
    assert len(batches) == 12 and all(parts[0]["rainy"].shape[0] == 3 for parts in batches)
    assert a_run(teacher(tmp_path, steps=5)).schedule.steps == 5


def test_the_rate_is_the_optimizers_and_drops_by_its_factor(tmp_path):
    trained(teacher(tmp_path, lr=0.002, lr_factor=0.1, epochs=10, milestone=(5,), steps=4))
    rates = [line["optimizer/lr"] for line in lines(tmp_path / "teacher")]
    assert rates == pytest.approx([0.002, 0.002, 0.0002, 0.0002])


def test_a_cosine_rises_falls_and_ends_at_a_hundredth():
    recipe = dataclasses.replace(TEACHERS["Rain200H"], cosine=True, warmup=10, steps=1000)
    schedule = Schedule.of(recipe, 1800)
    factors = [schedule.factor(step) for step in range(1001)]
    assert factors[:10] == pytest.approx([(n + 1) / 10 for n in range(10)], rel=1e-3)
    assert factors[500] == pytest.approx(0.505) and factors[1000] == pytest.approx(0.01)
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert Schedule.of(dataclasses.replace(recipe, cosine=False, warmup=4), 1800).factor(1) == 0.5


def moved(tmp_path, **changes):
    """How far one step with a gradient of ones moves weights of 1."""
    recipe = teacher(tmp_path, **changes)
    net = torch.nn.Conv2d(1, 1, 1, bias=False)
    torch.nn.init.ones_(net.weight)
    optimizer = optimizer_of(recipe, net)
    net.weight.grad = torch.ones_like(net.weight)
    optimizer.step()
    return 1 - net.weight.item(), optimizer


def test_adam_has_the_rate_the_decay_and_the_memory_asked_for(tmp_path):
    far, optimizer = moved(tmp_path, lr=0.01)
    assert far == pytest.approx(0.01, rel=1e-4) and optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    far, optimizer = moved(tmp_path, lr=0.01, weight_decay=0.5, beta2=0.9)
    assert far == pytest.approx(0.01 + 0.01 * 0.5, rel=1e-4)  # decoupled: of the weight, not of the gradient
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.9)


def test_the_gradient_is_clipped_to_its_norm(tmp_path):
    norms = {}
    for clip in (0.0, 0.01):
        run = a_run(teacher(tmp_path, clip=clip, steps=1))
        (parts,) = run.batches
        training_step(run.stage, run.state.net, run.state.optimizer, parts)
        gradients = [p.grad for p in run.state.net.parameters() if p.grad is not None]
        norms[clip] = math.sqrt(sum(float(each.square().sum()) for each in gradients))
    assert norms[0.0] > 0.02 and norms[0.01] == pytest.approx(0.01, rel=1e-3)


# ------------------------------------------------------------------------------------------------------ loss


def test_the_supervised_terms_fall_where_images_come_closer():
    stage = SID(TEACHERS["Rain200H"])
    clean = torch.rand(2, 3, 32, 32)
    batch = {"rainy": clean, "clean": clean}

    def terms(far):
        given = clean + far * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        made = stage.terms(lambda rainy: Derained(given, given, given), batch)
        assert made["minus_ssim"] == -ssim(given, clean) and made["l1"] == l1(given, clean)
        assert made["minus_psnr"] == -psnr(given, clean)
        return made

    near, far = terms(0.01), terms(0.1)
    assert all(near[name] < far[name] for name in near)


@pytest.mark.parametrize("term", ["ssim", "l1", "psnr"])
def test_a_weight_is_that_of_its_term_and_training_by_it_alone_helps(tmp_path, term):
    recipe = teacher(tmp_path, **{f"{name}_weight": 3.0 * (name == term) for name in ("ssim", "l1", "psnr")})
    run = a_run(dataclasses.replace(recipe, steps=30, lr=2e-3))
    (parts, *_) = run.batches
    name = term if term == "l1" else f"minus_{term}"
    first, *_, last = [training_step(run.stage, run.state.net, run.state.optimizer, parts) for _ in range(30)]
    assert first["total"] == pytest.approx(3 * first[name].item(), rel=1e-5)
    assert last[name] < first[name]


@pytest.mark.parametrize("term", ["dark_syn", "dark_real", "tv_syn", "tv_real", "kl", "l1", "ssim", "psnr"])
def test_each_weight_of_the_student_is_that_of_its_term(tmp_path, term):
    trained(teacher(tmp_path, steps=1))
    recipe = student(tmp_path)
    none: dict[str, Any] = {name: 0.0 for name in vars(recipe) if name.endswith("_weight")}
    run = a_run(dataclasses.replace(recipe, **{**none, f"{term}_weight": 2.0}))
    (parts, *_) = run.batches
    terms = run.stage.terms(run.state.net, parts[0])
    name = f"minus_{term}" if term in ("ssim", "psnr") else term
    assert run.stage.total(terms).item() == pytest.approx(2 * terms[name].item())
    real = a_run(recipe).stage
    assert real.total(terms).item() == pytest.approx(
        sum(getattr(recipe, f"{n.removeprefix('minus_')}_weight") * t.item() for n, t in terms.items())
    )


def test_weights_and_teacher_are_what_a_run_starts_from(tmp_path):
    trained(teacher(tmp_path, steps=2))
    first = load_checkpoint(tmp_path / "teacher/net_latest")["net"]
    fresh = a_run(teacher(tmp_path, seed=3, save_path=tmp_path / "x"))
    tuned = a_run(teacher(tmp_path, seed=3, save_path=tmp_path / "x", weights=tmp_path / "teacher"))
    of_teacher = a_run(student(tmp_path, seed=3))
    for name, value in first.items():
        assert torch.equal(tuned.state.net.net.state_dict()[name], value)
        assert torch.equal(of_teacher.state.net.net.state_dict()[name], value)
    assert any(not torch.equal(fresh.state.net.net.state_dict()[name], first[name]) for name in first)
    assert tuned.state.initialized_from.startswith(str(tmp_path / "teacher/net_latest"))


# ------------------------------------------------------------------------------------------ network, machine


def test_the_network_is_of_the_backbone_and_size_asked_for(tmp_path):
    run = a_run(teacher(tmp_path, channels=(5, 6, 7), units=(3, 2, 1)))
    net = run.state.net.net
    assert isinstance(net, DerainNet) and net.head1.out_channels == 5 and net.full_branch.encode1.n == 3
    assert run.state.network == {
        "backbone": "DerainNet",
        "arguments": {"channels": (5, 6, 7), "units": (3, 2, 1)},
    }
    light: Any = a_run(teacher(tmp_path, **LIGHT)).state.net.net
    assert isinstance(light, LightNet)
    levels: Any = light.encode
    assert [level.blocks[0].conv1.out_channels for level in levels] == [4, 6, 8]


@pytest.mark.parametrize("wrong", [{"channels": (4, 6)}, {"backbone": "LightNet", "units": (1, 1)}])
def test_a_network_that_cannot_be_is_refused_by_its_options(tmp_path, wrong):
    with pytest.raises(UserError, match=r"there is no .*Net with channels"):
        a_run(teacher(tmp_path, **wrong))


@pytest.mark.parametrize("value", [None, (-1, 6, 8), (5000, 6, 8)])
def test_a_network_that_could_not_be_loaded_again_is_not_trained(value):
    class Odd(torch.nn.Module):
        def __init__(self, channels):
            super().__init__()

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backbones.BACKBONES, "Odd", Odd)
        with pytest.raises(UserError, match="does not say how to build its network"):
            backbones.build({"backbone": "Odd", "arguments": {"channels": value}})


def test_only_fields_of_the_architecture_reach_a_constructor(tmp_path):
    class Odd(torch.nn.Module):
        def __init__(self, channels, weights=None, lr=7):
            super().__init__()

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backbones.BACKBONES, "Odd", Odd)
        made = backbones.architecture_of(teacher(tmp_path, backbone="Odd"))
    assert made == {"backbone": "Odd", "arguments": {"channels": (4, 6, 8)}}


def test_precision_reaches_the_training_and_the_evaluation(tmp_path, monkeypatch):
    assert a_run(teacher(tmp_path, precision="bfloat16")).state.net.precision == "bfloat16"
    trained(teacher(tmp_path, steps=1))
    used = []
    forward = backbones.AutocastModel.forward

    def noted(self, rainy):
        used.append(self.precision)
        return forward(self, rainy)

    monkeypatch.setattr(backbones.AutocastModel, "forward", noted)
    for precision in ("float32", "bfloat16"):
        score(evaluation(tmp_path, precision=precision), CPU)
    assert used == ["float32"] * 2 + ["bfloat16"] * 2


@pytest.mark.parametrize("light", [{}, LIGHT])
def test_recompute_and_compile_reach_the_network(tmp_path, light, monkeypatch):
    run = a_run(teacher(tmp_path, recompute=True, **light))
    flags = [each.recompute for each in run.state.net.modules() if hasattr(each, "recompute")]
    assert flags and all(flags)
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compiled.append(type(self).__name__))
    a_run(teacher(tmp_path, compile=True, **light))
    assert set(compiled) == ({"Level"} if light else {"Unit"})


@pytest.mark.parametrize("light", [{}, LIGHT])
def test_recomputed_units_train_to_the_same_weights(tmp_path, light):
    for recompute in (False, True):
        trained(teacher(tmp_path, steps=3, recompute=recompute, save_path=tmp_path / str(recompute), **light))
    one, other = (load_checkpoint(tmp_path / str(r) / "net_latest")["net"] for r in (False, True))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_how_often_it_logs_saves_and_keeps(tmp_path):
    recipe = teacher(tmp_path, steps=7, log_every=3, save_every=100, keep_every=4)
    trained(recipe)
    assert [line["step"] for line in lines(tmp_path / "teacher")] == [3, 6, 7]
    assert sorted(path.name for path in (tmp_path / "teacher").glob("net_*")) == ["net_4", "net_latest"]


def test_a_kept_step_is_there_before_what_resumes_beyond_it(tmp_path, monkeypatch):
    saved = []
    save = engine.Run._save

    def noted(self, name):
        saved.append(name)
        save(self, name)

    monkeypatch.setattr(engine.Run, "_save", noted)
    trained(teacher(tmp_path, steps=4, keep_every=2, save_every=2))
    assert saved.index("net_2") < saved.index("net_latest")


def test_cache_and_workers_are_as_asked(tmp_path):
    run = a_run(teacher(tmp_path, cache="off", workers=0))
    assert run.crops[0].notes[-1].endswith("images are not cached: as asked") and run.batches.workers == 0
    assert a_run(teacher(tmp_path, workers=1)).batches.workers == 1


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
    for y, x in ((16, 17), (16, 15), (17, 16), (15, 16)):
        expected[:, y, x] = 0.25
    assert torch.allclose(made, expected, atol=1e-6)


def test_tiles_are_blended_where_they_overlap():
    class Numbers(torch.nn.Module):
        """Gives every tile a value of its own."""

        def __init__(self):
            super().__init__()
            self.count = 0

        def forward(self, rainy):
            self.count += 1
            made = torch.full_like(rainy, float(self.count))
            return Derained(made, made, made)

    made = Derainer(Numbers(), tile=256).derained(torch.zeros(3, 64, 448))[0, 32]
    assert made[0] == 1 and made[-1] == 2
    steps = made.diff()
    assert (steps >= 0).all() and steps.max() < 0.05  # a ramp, not an edge


def test_a_frozen_teacher_of_another_size_is_held_beside(tmp_path):
    trained(teacher(tmp_path, steps=1))
    net = frozen(tmp_path / "teacher")
    assert not net.training and net(torch.rand(1, 3, 32, 32)).code.shape[1] == 8

    class Distilled(SID):
        def held_beside(self, net):
            return {**super().held_beside(net), "teacher": frozen(tmp_path / "teacher")}

        def terms(self, net, batch):
            target = self.beside["teacher"](batch["rainy"]).derained
            assert not target.requires_grad
            return {**super().terms(net, batch), "l1": l1(net(batch["rainy"]).derained, target)}

    recipe = teacher(tmp_path, save_path=tmp_path / "light", steps=2, l1_weight=1.0, **LIGHT)
    run = engine.Run(Distilled, recipe, a_run(recipe).world)
    before = {name: value.clone() for name, value in run.stage.beside.state_dict().items()}
    run.run()
    assert all(torch.equal(value, before[name]) for name, value in run.stage.beside.state_dict().items())
    kept = load_checkpoint(tmp_path / "light/net_latest")["training"]["beside"]
    assert kept.keys() == before.keys()


def test_a_released_student_is_marked_on_real_275(tmp_path):
    trained_on = {"data": [], "real_path": [], "released": True}
    assert "Real-275" in seen_in_training("Real275", tmp_path, trained_on, "unknown")
    assert not seen_in_training("Real275", tmp_path, trained_on, "SID")
    assert not seen_in_training("Real275", tmp_path, {**trained_on, "released": False}, "unknown")


def test_what_an_image_weighs_in_a_validation_is_its_own(tmp_path):
    """The mean is over images, each of which is scored once."""
    run = trained(teacher(tmp_path, steps=1, val_every=1))
    found = find_pairs(tmp_path / "data", "test")
    derainer = Derainer(run.state.net)
    by_hand = []
    for rainy, clean in (engine.read_pair(pair) for pair in found.pairs):
        assert clean is not None
        saved = (derainer.derained(to_tensor(rainy)).clamp(0, 1) * 255).round() / 255
        by_hand.append(psnr(saved[None], to_tensor(clean)[None]).item())
    logged = next(line for line in lines(tmp_path / "teacher") if "validation/psnr" in line)
    assert logged["validation/psnr"] == pytest.approx(np.mean(by_hand), abs=0.01)
