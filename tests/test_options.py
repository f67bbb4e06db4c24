"""Every option of a training and of an evaluation does what it says: one test of its effect each.

A test that only looks whether an option is accepted would pass if nothing read it.
"""

import dataclasses
import itertools
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

import DerainDataset
import engine
from config import TEACHERS, Schedule
from datasets.layouts import find_pairs
from datasets.pairs import ImageRef, ListedPairs, PairSet, read_pair, sample
from datasets.scenes import show_scene_of
from DerainDataset import Crops, RealCrops, pair_crops
from engine import optimizer_of, training_step, with_steps
from machinery import backbones
from machinery.checkpoints import LATEST, load_checkpoint
from machinery.evaluation import score, seen_in_training, validation_set
from machinery.inference import Derainer
from machinery.lightnet import LightNet
from machinery.loading import ImageCache
from machinery.options import validate
from networks import Derained, DerainNet
from stages import SID, Average
from tests import layouts, small
from tests.small import CPU, LIGHT, a_run, evaluation, lines, student, teacher, trained
from tests.test_training import a_run_stopped_after_three
from utils import UserError, write_image

OFF = ImageCache("off")
assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0)


def crops_of(recipe) -> Crops:
    return pair_crops(recipe, OFF)


def whole(crop: torch.Tensor) -> np.ndarray:
    return crop.permute(1, 2, 0).numpy().astype(int)


def plain_image(colour, side=200) -> np.ndarray:
    return np.full((side, side, 3), colour, np.uint8)


# ------------------------------------------------------------------------------------------------------ data


def test_rainy_side_says_which_half_is_rainy(tmp_path):
    layouts.rain800(tmp_path / "set")
    recipe = teacher(tmp_path, data_path=(tmp_path / "set",))
    left, right = (crops_of(dataclasses.replace(recipe, rainy_side=side))[0, 0] for side in ("left", "right"))
    assert torch.equal(left["rainy"], right["clean"])


def test_the_seed_is_that_of_weights_order_and_crops(tmp_path):
    runs = [a_run(teacher(tmp_path, seed=seed)) for seed in (0, 0, 7)]
    weights = [run.net.net.head1.weight.tolist() for run in runs]
    crops = [run.crops[0][0, 0]["clean"].tolist() for run in runs]
    orders = [list(run.phases[0].streams[0]) for run in runs]
    real = [
        RealCrops.of(student(tmp_path, seed=seed), OFF)[0, 0]["real_rainy"].tolist() for seed in (0, 0, 7)
    ]
    for first, again, other in (weights, crops, orders, real):
        assert first == again != other
    twice: Any = crops_of(teacher(tmp_path, data_path=(tmp_path / "data",) * 2))
    assert not torch.equal(*(each[0, 0]["clean"] for each in twice.sets))  # each set draws for itself


def test_real_path_and_data_path_are_where_the_images_come_from(tmp_path):
    trained(teacher(tmp_path, steps=1))
    write_image(tmp_path / "grey/1.png", plain_image(99, 40))
    batch = next(iter(a_run(student(tmp_path, real_path=(tmp_path / "grey",))).batches))[0]
    assert batch["real_rainy"].shape == batch["rainy"].shape and (batch["real_rainy"] == 99 / 255).all()


@pytest.mark.parametrize("option", ["augment", "mirror"])
def test_crops_are_turned_as_asked_pairs_and_real_ones(tmp_path, option):
    teacher(tmp_path)  # and its data
    views = {"augment": [(k, f) for f in (1, -1) for k in range(4)], "mirror": [(0, 1), (0, -1)]}[option]
    for of, key in ((pair_crops, "rainy"), (RealCrops.of, "real_rainy")):
        seen = set()
        turned, straight = (of(student(tmp_path, **{option: on}), OFF) for on in (True, False))
        for epoch in range(30):
            crop, before = whole(turned[epoch, 0][key]), whole(straight[epoch, 0][key])
            found = [n for n, (k, f) in enumerate(views) if np.array_equal(np.rot90(before, k)[:, ::f], crop)]
            assert found, "no turn of the crop that it is without"
            seen.add(found[0])
        assert len(seen) == len(views)


# ----------------------------------------------------------------------------------------- layers of streaks


def pairs_of(folder, rain, *cleans):
    """A set of `cleans`, each with the same `rain` added."""
    for n, clean in enumerate(cleans):
        write_image(folder / f"train/norain/{n}.png", clean)
        write_image(folder / f"train/rain/{n}.png", clean + np.broadcast_to(rain, clean.shape))
    return folder


# soft rain that falls straight down
SOFT = (60 + 50 * np.sin(np.arange(200) / 3))[None, :, None].astype(np.uint8)


def recombined(tmp_path, **changes):
    """Crops of soft streaks, swapped between plain backgrounds."""
    paths = {"data_path": (pairs_of(tmp_path / "set", SOFT, plain_image(20)),)}
    return teacher(tmp_path, **{**paths, "recombine": True, "patch_size": 64, **changes})


def layers(recipe, epochs=60, **changes):
    crops = crops_of(dataclasses.replace(recipe, **changes))
    items = [crops[epoch, 0] for epoch in range(epochs)]
    return [(item["rainy"] - item["clean"])[0].double().numpy() for item in items]


def slant(layer: np.ndarray) -> float:
    """Degrees from the vertical, by the structure tensor."""
    y, x = np.gradient(layer)
    return float(np.degrees(np.arctan2(2 * (x * y).mean(), (x * x - y * y).mean())) / 2)


def waves(layer: np.ndarray) -> int:
    """How close its streaks are."""
    return int(np.abs(np.fft.rfft(layer.mean(axis=0) - layer.mean(), 1024)).argmax())


def test_streaks_are_turned_to_both_sides_zoomed_strengthened_blurred_and_laid_over_each_other(tmp_path):
    recipe = recombined(tmp_path)
    (straight,) = layers(recipe, 1)
    assert abs(slant(straight)) < 1
    turned = [slant(each) for each in layers(recipe, max_streak_rotation=20.0)]
    assert max(turned) > 8 and min(turned) < -8 and max(map(abs, turned)) < 21
    strong = [each.mean() / straight.mean() for each in layers(recipe, streak_strength=1.5)]
    zoomed = [waves(each) / waves(straight) for each in layers(recipe, streak_zoom=1.5)]
    for times in (strong, zoomed):
        assert 1.3 < max(times) < 1.6 and 0.6 < min(times) < 0.8
    contrast = [np.ptp(each) for each in layers(recipe, streak_blur=6.0)]
    assert max(contrast) == np.ptp(straight) and min(contrast) < np.ptp(straight) / 2
    sums = [each.mean() / straight.mean() for each in layers(recipe, streak_layers=3)]
    assert {round(each) for each in sums} == {1, 2, 3}


def test_recombined_layers_are_mirrored_and_never_turned_while_backgrounds_are(tmp_path):
    """Rain falls: whatever `augment` does to the background, the streaks stay upright."""
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None] // 4, (200, 200, 3))
    rain = (60 + 50 * np.sin(np.arange(200) ** 1.3 / 9))[None, :, None].astype(np.uint8)
    crops = crops_of(recombined(tmp_path, data_path=(pairs_of(tmp_path / "ramp", rain, ramp),), augment=True))
    both = [[whole(side)[..., 0] for side in crops[epoch, 0].values()] for epoch in range(200)]
    assert {int(np.sign(clean[-1, 0] - clean[0, 0])) for _, clean in both} == {-1, 0, 1}  # the ramp, turned
    found = [rainy - clean for rainy, clean in both]
    assert all((layer == layer[:1]).all() for layer in found)  # the rain, never
    changes = [np.abs(np.diff(layer[0])) for layer in found]
    assert 0.4 < np.mean([each[:31].sum() < each[32:].sum() for each in changes]) < 0.6  # half are mirrored


def test_backgrounds_are_drawn_as_often_as_there_are_of_them(tmp_path):
    for n in range(6):
        write_image(tmp_path / f"more/{n}.png", plain_image(200 + n, 80))
    set_ = pairs_of(tmp_path / "two", SOFT, plain_image(20), plain_image(40))
    recipe = recombined(tmp_path, data_path=(set_,), backgrounds=(tmp_path / "more",))
    crops, without = crops_of(recipe), crops_of(dataclasses.replace(recipe, backgrounds=()))
    drawn = [int(whole(crops[epoch, index]["clean"]).max()) for epoch in range(100) for index in range(2)]
    assert set(drawn) == {20, 40, *range(200, 206)}
    assert 0.6 < np.mean([each >= 200 for each in drawn]) < 0.9
    assert all(whole(without[epoch, 0]["clean"]).max() <= 40 for epoch in range(20))


def test_streaks_are_layers_of_their_own_on_the_pairs_clean_sides(tmp_path):
    streaks = plain_image(0, 80)
    streaks[:, ::7] = 33
    write_image(tmp_path / "streaks/1.png", streaks)
    recipe = recombined(tmp_path, streaks=(tmp_path / "streaks",))
    crops = crops_of(recipe)
    assert len(crops) == 2
    crop = crops[0, 1]
    assert set(np.unique(whole(crop["rainy"] - crop["clean"]))) == {0, 33}
    assert (whole(crop["clean"]) == 20).all()
    write_image(tmp_path / "streaks/2.png", plain_image((9, 8, 7), 80))
    with pytest.raises(
        UserError, match=r"2\.png is not a streak layer: --streaks takes grey streaks on black"
    ):
        crops_of(recipe)


def test_clear_haze_sharpening_and_jpeg_come_as_often_as_asked_and_on_both_sides(tmp_path):
    recipe = teacher(tmp_path, patch_size=24)

    def sides(**share):
        crops = crops_of(dataclasses.replace(recipe, **share))
        return [[whole(crop) for crop in crops[epoch, 0].values()] for epoch in range(200)]

    before = sides()
    assert 0.15 < np.mean([np.array_equal(*both) for both in sides(clear_prob=0.25)]) < 0.35
    for share in ("haze_prob", "sharpen_prob", "jpeg_prob"):
        changed = np.array(sides(**{share: 0.25})) != np.array(before)
        rainy, clean = changed.any(axis=(2, 3, 4)).T
        assert np.array_equal(rainy, clean) and 0.15 < np.mean(rainy) < 0.35
    for each, was in zip(sides(haze_prob=1.0), before, strict=True):  # less contrast, on both sides
        assert all(np.ptp(side) <= 0.95 * np.ptp(one) + 1 for side, one in zip(each, was, strict=True))
    for each, was in zip(sides(sharpen_prob=1.0), before, strict=True):  # steeper edges
        for side, one in zip(each, was, strict=True):
            assert np.abs(np.diff(side, axis=1)).mean() > np.abs(np.diff(one, axis=1)).mean()
    for (_, clean), (_, was) in zip(sides(jpeg_prob=1.0), before, strict=True):
        assert 0 < np.abs(clean - was).mean() < 30
        assert abs(clean.mean() - was.mean()) < 3  # its colours in order


def test_a_fraction_of_the_crops_is_as_the_set_has_it(tmp_path):
    options: dict[str, Any] = {
        "max_streak_rotation": 30.0,
        "streak_layers": 3,
        "haze_prob": 1.0,
        "downscale": 2.0,
    }
    plain = recombined(tmp_path)
    own, varied, half = (
        crops_of(each)
        for each in (
            plain,
            dataclasses.replace(plain, **options),
            dataclasses.replace(plain, **options, unvaried_prob=0.5),
        )
    )
    like_own, like_varied = 0, 0
    for key in itertools.product(range(100), range(len(own))):
        rainy = half[key]["rainy"]
        like_own += torch.equal(rainy, own[key]["rainy"])
        like_varied += torch.equal(rainy, varied[key]["rainy"])
    assert like_own + like_varied == 100 * len(own)
    assert 0.4 < like_own / (100 * len(own)) < 0.6


def test_pairs_are_shrunk_streaks_and_background_alike(tmp_path):
    ramp = np.repeat(np.arange(240, dtype=np.uint8)[None, :, None], 240, axis=0).repeat(3, axis=2)
    streaks = np.zeros_like(ramp)
    streaks[:, ::2] = 10  # so close that any window has 5 of it on the mean
    where = (pairs_of(tmp_path / "set", streaks, ramp, ramp),)
    for swapped in (False, True):
        recipe = teacher(tmp_path, data_path=where, patch_size=32, downscale=4.0, recombine=swapped)
        crops = crops_of(recipe)
        factors = []
        for key in itertools.product(range(40), range(2)):
            crop = crops[key]
            rainy, clean = whole(crop["rainy"]), whole(crop["clean"])
            assert clean.shape == (32, 32, 3) and abs((rainy - clean).mean() - 5) < 0.7
            factors.append((clean[0, -1, 0] - clean[0, 0, 0]) / 31)
        assert np.mean(np.array(factors[::2]) == factors[1::2]) < 0.2  # each crop its own
        assert min(factors) >= 1 and max(factors) < 4.1
        assert 1.5 < np.median(factors) < 2.7 and np.ptp(factors) > 2  # as often by half as twice by half


def test_without_recombine_the_layer_options_are_refused():
    given: dict[str, Any] = {"max_streak_rotation": 5.0, "streak_zoom": 1.2, "streak_strength": 1.2}
    given |= {"streak_blur": 1.0, "streak_layers": 2, "streaks": (Path("x"),), "backgrounds": (Path("x"),)}
    for name, value in given.items():
        recipe = dataclasses.replace(TEACHERS["Rain200H"], **{name: value})
        assert validate(recipe) == f"--{name} only applies with --recombine"
        assert validate(dataclasses.replace(recipe, recombine=True)) is None


# ---------------------------------------------------------------------------------------------- several sets


def flat(folder, grey, count, streak):
    """Pairs of plain `grey` and on; the rain is one streak, added, or of another colour."""
    rain = plain_image(0, 60)
    rain[:, 30] = streak
    return pairs_of(folder, rain, *(plain_image(grey + n, 60) for n in range(count)))


def test_several_sets_are_mixed_by_size_or_by_shares(tmp_path):
    one, two = flat(tmp_path / "one", 20, 4, 50), flat(tmp_path / "two", 120, 8, 40)
    recipe = teacher(tmp_path, data_path=(one, two), patch_size=16)

    def drawn(crops, epochs):
        return [int(whole(crops[e, n]["clean"]).max()) for e in range(epochs) for n in range(len(crops))]

    crops, shared = crops_of(recipe), crops_of(dataclasses.replace(recipe, shares=(3.0, 1.0)))
    assert len(crops) == len(shared) == 12
    assert crops.counts["pairs 1"][0] == 4 and crops.counts["pairs 2"][0] == 8
    assert sorted(drawn(crops, 1)) == [*range(20, 24), *range(120, 128)]
    greys = drawn(shared, 4)
    assert [greys.count(grey) for grey in range(20, 24)] == [9] * 4
    # of each set every pair comes before any comes again; the first is not the first file
    assert sorted(greys.count(grey) for grey in range(120, 128)) == [1] * 4 + [2] * 4
    assert [grey for grey in greys if grey >= 120][:3] != [120, 121, 122]
    refused = dataclasses.replace(recipe, shares=(1.0,)).validate()
    assert refused == "--shares needs one number per dataset, 2, not 1"
    endless = dataclasses.replace(recipe, shares=(1e308, 1e308))  # their sum
    assert "--shares is not a finite number" in (validate(endless) or "")
    with pytest.raises(UserError, match=r"--shares leaves .*two.* none of 12 crops: give it more"):
        crops_of(dataclasses.replace(recipe, shares=(100.0, 1.0)))
    assert "--data_path is empty" in (dataclasses.replace(recipe, data_path=()).validate() or "")


COLOURED = (60, 20, 90)


def test_layers_fall_on_every_sets_backgrounds_and_other_rain_stays_where_it_is(tmp_path):
    added, coloured = flat(tmp_path / "one", 20, 3, 50), flat(tmp_path / "two", 120, 3, COLOURED)
    recipe = teacher(tmp_path, data_path=(added, coloured), recombine=True, augment=True, patch_size=60)
    crops = crops_of(recipe)
    assert any("no layers are swapped in this set" in note and "two" in note for note in crops.messages)
    on = {int(whole(crops[epoch, 0]["clean"]).max()) for epoch in range(100)}
    assert on == {20, 21, 22, 120, 121, 122}
    for epoch in range(30):
        rainy, clean = (whole(crops[epoch, 4][side]) for side in ("rainy", "clean"))
        layer = rainy - clean
        assert clean.max() in (120, 121, 122)
        assert {tuple(colour) for colour in layer[:, 30 if layer[0, 30, 0] else 29]} == {COLOURED}  # upright
    with pytest.raises(UserError, match=r"--recombine needs .*grey addition; .*/0\.png is not: the channels"):
        crops_of(dataclasses.replace(recipe, data_path=(coloured, coloured)))


def test_more_layers_come_from_all_pairs(tmp_path):
    for n, rain in enumerate((50, 90)):
        write_image(tmp_path / f"two/train/norain/{n}.png", plain_image(20))
        write_image(tmp_path / f"two/train/rain/{n}.png", plain_image(20 + rain))
    crops = crops_of(recombined(tmp_path, data_path=(tmp_path / "two",), streak_layers=2))
    items = [crops[epoch, 0] for epoch in range(60)]
    assert {int(whole(c["rainy"] - c["clean"]).max()) for c in items} == {50, 100, 140}


def test_real_rain_stays_upright_beside_recombined_pairs(tmp_path):
    ramp = np.arange(0, 200, 2, dtype=np.uint8)[:, None, None].repeat(100, 1).repeat(3, 2)
    write_image(tmp_path / "real/1.png", ramp)
    teacher(tmp_path)
    crops = RealCrops.of(student(tmp_path, augment=True, recombine=True), OFF)
    for epoch in range(30):
        crop = whole(crops[epoch, 0]["real_rainy"])[..., 0]
        assert crop[-1, 0] > crop[0, 0] and (crop == crop[:, :1]).all()


def test_a_run_on_several_sets_goes_on_where_it_was_stopped(tmp_path):
    """With all that can be mixed."""
    one, two = flat(tmp_path / "one", 20, 3, 50), flat(tmp_path / "two", 120, 3, COLOURED)
    streaks = plain_image(0, 60)
    streaks[:, ::9] = 40
    for n in range(2):
        write_image(tmp_path / f"streaks/{n}.png", streaks)
        write_image(tmp_path / f"clean/{n}.png", plain_image(200 + n, 60))
    how: dict[str, Any] = {"recombine": True, "streak_layers": 2, "streak_blur": 1.0}
    how |= {"max_streak_rotation": 9.0, "hold_back": 1}
    how |= {"streaks": (tmp_path / "streaks",), "backgrounds": (tmp_path / "clean",)}
    how |= {
        "clear_prob": 0.2,
        "haze_prob": 0.2,
        "jpeg_prob": 0.2,
        "downscale": 2.0,
        "sharpen_prob": 0.2,
        "shares": (1.0, 1.0, 2.0),
    }
    straight = teacher(tmp_path, data_path=(one, two), save_path=tmp_path / "whole", steps=4, **how)
    trained(straight)
    stopped = dataclasses.replace(straight, save_path=tmp_path / "parts")
    a_run_stopped_after_three(stopped)
    for other in ({"data_path": stopped.data_path[::-1]}, {"backgrounds": (tmp_path / "streaks",)}):
        with pytest.raises(UserError, match=r"was started on .* (pairs|backgrounds) 1, and here are"):
            trained(dataclasses.replace(stopped, resume=True, **other))
    trained(dataclasses.replace(stopped, resume=True))
    small.assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_backgrounds_are_clean_images_alone_and_seen(tmp_path):
    layouts.rain200(tmp_path / "data", test=2)
    with pytest.raises(UserError, match=r"data holds pairs: --backgrounds takes the folder of their clean"):
        crops_of(teacher(tmp_path, recombine=True, backgrounds=(tmp_path / "data",)))
    clean = tmp_path / "data/rain_data_test_Heavy/norain"
    data = crops_of(teacher(tmp_path, recombine=True, backgrounds=(clean,))).summary
    trained_on = {"data": data, "real_path": [], "released": False}
    for root, seen in ((clean.parent, True), (tmp_path / "elsewhere", False)):
        why = seen_in_training(PairSet("", root, []), "Rain200H", trained_on, "SID")
        assert ("it was trained on the images in" in why) == seen


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
    folder = layouts.rain1400(tmp_path / "set")
    recipe = teacher(tmp_path, dataset="Rain1400", data_path=(folder,), hold_back=1, patch_size=16)
    crops = crops_of(recipe)
    assert crops.held_back
    held = {pair.clean for pair in crops.held_back.pairs}
    assert held and not held & {pair.clean for pair in crops.pairs}
    everything = crops_of(dataclasses.replace(recipe, hold_back=0))
    assert len(everything) - len(crops) > len(held)


def test_a_scene_is_held_back_from_every_set_and_background(tmp_path):
    """A few pixels smaller, brighter, in another compression: by the clean side alone."""
    layouts.rain200(tmp_path / "data", train=4)
    scene = layouts.clean_image(1)  # of the first pair, which is held back
    for name, clean in {
        "a": layouts.clean_image(70),
        "b": scene[1:, :-1],
        "c": layouts.clean_image(77),
    }.items():
        write_image(tmp_path / f"two/train/norain/{name}.png", clean)
        write_image(tmp_path / f"two/train/rain/{name}.png", layouts.with_rain(clean, 5))
        write_image(tmp_path / f"clean/{name}.jpg", np.clip(clean + 9.0, 0, 255).astype(np.uint8))
    recipe = teacher(
        tmp_path,
        data_path=(tmp_path / "data", tmp_path / "two"),
        backgrounds=(tmp_path / "clean",),
        recombine=True,
        hold_back=1,
    )
    crops: Any = crops_of(recipe)
    assert [pair.name for pair in crops.held_back.pairs] == ["1-norain-1x2", "2-a"]
    assert [[pair.name for pair in each.pairs] for each in crops.sets] == [
        ["norain-2x2", "norain-3x2", "norain-4x2"],
        ["c"],
    ]
    backgrounds = [[pair.name for pair in each] for each in crops.sets[0].backgrounds.datasets]
    assert backgrounds == [["norain-2x2", "norain-3x2", "norain-4x2"], ["c"], ["c"]]
    assert "held back: 2 pairs; 1 other pairs and 2 backgrounds show their scenes" in "".join(crops.messages)


def test_a_long_list_only_loses_the_pairs_that_are_held_back(tmp_path, monkeypatch):
    """It is not read: neither its scenes are compared, nor is a Python list made of it."""
    monkeypatch.setattr(DerainDataset, "MOST_FILES", 5)
    root = layouts.spa(tmp_path / "SPA", train=6)
    crops = crops_of(teacher(tmp_path, dataset="SPA", data_path=(root,), hold_back=2))
    assert crops.held_back and isinstance(crops.pairs, ListedPairs)
    numbers = [[int(pair.rainy.path.stem) for pair in each] for each in (crops.held_back.pairs, crops.pairs)]
    assert numbers == [[0, 5], [1, 2, 3, 4]]
    assert list(pickle.loads(pickle.dumps(crops.pairs))) == list(crops.pairs)


def test_plain_images_are_no_scene(tmp_path):
    for n in range(3):
        write_image(tmp_path / f"{n}.png", plain_image(99 + n % 2, 20))
    images = [ImageRef(tmp_path / f"{n}.png") for n in range(3)]
    assert show_scene_of(images, images[:1]).tolist() == [True, False, False]


def test_it_is_validated_on_the_test_pairs_of_the_sets_that_have_any_spread_evenly(tmp_path):
    layouts.rain200(tmp_path / "data", test=9)
    both = (tmp_path / "data", flat(tmp_path / "two", 120, 3, 40))
    recipe = teacher(tmp_path, data_path=both, val_every=1.0)
    found, notes = validation_set(recipe, crops_of(recipe))
    assert found and len(found.pairs) == 9
    assert any(note.startswith("not validated on") and "two" in note for note in notes)
    for sets in (both[:1], both):
        few = dataclasses.replace(recipe, data_path=sets, val_images=3)
        found, _ = validation_set(few, crops_of(few))
        assert found and [pair.name for pair in found.pairs] == ["norain-1x2", "norain-5x2", "norain-9x2"]
    assert sample(100, 4) == [0, 33, 66, 99]


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
        if n == 20:  # what it began with is soon forgotten
            assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)
    assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)
    assert 985 < expected < 995  # nine steps behind, as 0.9 means


# -------------------------------------------------------------------------------------------------- schedule


def test_the_batch_the_length_and_the_patch_size_are_as_asked(tmp_path):
    run = a_run(teacher(tmp_path, batchSize=3, steps=0, epochs=9, milestone=(), patch_size=24))
    assert run.schedule.steps == 9 * 4 // 3
    assert [parts[0]["rainy"].shape for parts in run.batches] == [(3, 3, 24, 24)] * 12
    assert a_run(teacher(tmp_path, steps=5)).schedule.steps == 5


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
    keys = [key for phase in run.phases for batch in phase.streams[0] for key in batch]
    assert len(keys) == len(set(keys)) == 16
    assert [epoch for epoch, _ in keys] == [n // 4 for n in range(16)]


def test_a_part_of_an_epoch_is_that_part_of_its_steps():
    recipe = dataclasses.replace(TEACHERS["Rain200H"], batchSize=10)
    steps = [
        Schedule.of(dataclasses.replace(recipe, val_every=each), 1000).validations for each in (0.5, 3.76)
    ]
    assert steps == [50, 376]


def test_minutes_set_the_steps_by_a_pilot_and_a_resumed_run_keeps_them(tmp_path, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(engine.time, "perf_counter", lambda: float(next(clock)))  # a second at each look
    monkeypatch.setattr(engine, "PILOT", range(1, 3))
    recipe = teacher(tmp_path, minutes=0.1, val_every=1, late_start=0.5)
    timed = with_steps(SID, recipe, small.ALONE)
    assert timed.steps == 12  # two steps took a second, so a step half of one
    schedule = Schedule.of(timed, 4)
    assert schedule.steps == 12 and schedule.validations == 1  # a tenth of the run, a step at least
    assert Schedule.of(dataclasses.replace(timed, steps=200), 4).validations == 20
    monkeypatch.undo()
    trained(dataclasses.replace(recipe, minutes=0.0, steps=3))
    assert with_steps(SID, dataclasses.replace(recipe, resume=True), small.ALONE).steps == 3
    assert with_steps(SID, dataclasses.replace(recipe, minutes=0.0), small.ALONE).steps == recipe.steps


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


SUPERVISED = ("ssim", "l1", "psnr")
ALL_TERMS = (*SUPERVISED, "dark_syn", "dark_real", "tv_syn", "tv_real", "kl")


@pytest.mark.parametrize("of", [teacher, student])
def test_what_psnr_nears_is_the_options(tmp_path, of):
    """By what changes nothing, on pairs without rain."""
    trained(teacher(tmp_path, steps=1))
    run = a_run(of(tmp_path, save_path=tmp_path / "clear", clear_prob=1.0, psnr_cap=25.0))
    batch = next(iter(run.batches))[0]
    terms = run.stage.terms(lambda rainy: Derained(rainy, 0 * rainy, rainy), batch)
    assert terms["minus_psnr"].item() == pytest.approx(-25)


ALONE = [(teacher, term) for term in SUPERVISED] + [(student, term) for term in ALL_TERMS]


@pytest.mark.parametrize(("of", "term"), ALONE)
def test_a_weight_is_that_of_its_term_and_training_by_it_alone_helps(tmp_path, of, term):
    trained(teacher(tmp_path, steps=1))
    names = SUPERVISED if of is teacher else ALL_TERMS
    weights = {f"{name}_weight": 3.0 * (name == term) for name in names}
    run = a_run(of(tmp_path, save_path=tmp_path / "alone", steps=30, lr=2e-3, **weights))
    (parts, *_) = run.batches
    name = f"minus_{term}" if term in ("ssim", "psnr") else term
    first, *_, last = [training_step(run.stage, run.net, run.optimizer, parts) for _ in range(30)]
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


def test_only_fields_of_the_architecture_reach_a_constructor(tmp_path, monkeypatch):
    class Odd(torch.nn.Module):
        def __init__(self, channels, weights=None, lr=7):
            super().__init__()

    monkeypatch.setitem(backbones.BACKBONES, "Odd", Odd)
    made = backbones.architecture_of(teacher(tmp_path, backbone="Odd"))
    assert made == {"backbone": "Odd", "arguments": {"channels": (4, 6, 8)}}


def test_precision_reaches_the_training_and_the_evaluation(tmp_path, monkeypatch):
    assert a_run(teacher(tmp_path, precision="bfloat16")).net.precision == "bfloat16"
    trained(teacher(tmp_path, steps=1))
    used, forward = [], backbones.AutocastModel.forward

    def noted(self, rainy):
        used.append(self.precision)
        return forward(self, rainy)

    monkeypatch.setattr(backbones.AutocastModel, "forward", noted)
    for precision in ("float32", "bfloat16"):
        score(evaluation(tmp_path, precision=precision), CPU)
    assert used == ["float32"] * 2 + ["bfloat16"] * 2


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
        saved.append((self.step, name))
        save(self, name)

    monkeypatch.setattr(engine.Run, "_save", noted)
    trained(teacher(tmp_path, steps=7, log_every=3, save_every=4, keep_every=2))
    assert [line["step"] for line in lines(tmp_path / "teacher")] == [3, 4, 6, 7]  # and where it saves
    # what is kept comes before what resumes beyond it
    assert saved == [(2, "net_2"), (4, "net_4"), (4, LATEST), (6, "net_6"), (7, LATEST)]
    assert {path.name for path in (tmp_path / "teacher").glob("net_*")} == {name for _, name in saved}


def test_cache_and_workers_are_as_asked(tmp_path):
    run = a_run(teacher(tmp_path, cache="off", workers=0))
    assert (
        run.crops[0].messages[-1].endswith("images are not cached: as asked") and run.phases[0].workers == 0
    )
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


def test_a_released_student_is_marked_on_real_275(tmp_path):
    found, trained_on = PairSet("", tmp_path, []), {"data": [], "real_path": [], "released": True}
    assert "Real-275" in seen_in_training(found, "Real275", trained_on, "unknown")
    assert not seen_in_training(found, "Real275", trained_on, "SID")
    assert not seen_in_training(found, "Real275", {**trained_on, "released": False}, "unknown")


def test_what_an_image_weighs_in_a_validation_is_its_own(tmp_path):
    """The mean is over images, each of which is scored once."""
    run = trained(teacher(tmp_path, steps=1, val_every=1))
    derain, pairs = Derainer(run.net), find_pairs(tmp_path / "data", "test").pairs
    by_hand = [peak_signal_noise_ratio(clean, derain(rainy)) for rainy, clean in map(read_pair, pairs)]
    logged = next(line for line in lines(tmp_path / "teacher") if "validation/psnr" in line)
    assert logged["validation/psnr"] == pytest.approx(np.mean(by_hand), abs=0.01)
