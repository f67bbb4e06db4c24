"""Streak layers on other backgrounds, haze, downscaling, sharpening, JPEG: each option does what it says."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config import TEACHERS
from DerainDataset import Crops, RealCrops, _random_warp, _warped, pair_crops
from machinery.loading import ImageCache
from tests.small import student, teacher
from utils import UserError, write_image

# soft rain that falls straight down
SOFT = (60 + 50 * np.sin(np.arange(200) / 3))[None, :, None].astype(np.uint8)
COLOURED = (60, 20, 90)  # rain of no grey addition


def plain_image(colour, side=200) -> np.ndarray:
    return np.full((side, side, 3), colour, np.uint8)


def pairs_of(folder, rain, *cleans) -> Path:
    """A set of `cleans`, each with the same `rain` added."""
    for n, clean in enumerate(cleans):
        write_image(folder / f"train/norain/{n}.png", clean)
        write_image(folder / f"train/rain/{n}.png", clean + np.broadcast_to(rain, clean.shape))
    return folder


def flat(folder, grey, count, streak) -> Path:
    """Pairs of plain `grey` and on; the rain is one vertical streak, added, or of another colour."""
    rain = plain_image(0, 60)
    rain[:, 30] = streak
    return pairs_of(folder, rain, *(plain_image(grey + n, 60) for n in range(count)))


def recombined(tmp_path, **changes):
    """Crops of soft streaks, swapped between plain backgrounds."""
    paths = {"data_path": (pairs_of(tmp_path / "set", SOFT, plain_image(20)),)}
    return teacher(tmp_path, **{**paths, "recombine": True, "patch_size": 64, **changes})


def crops_of(recipe, **changes) -> Crops:
    return pair_crops(dataclasses.replace(recipe, **changes), ImageCache("off"))


def sides(recipe, epochs, index=0, **changes) -> np.ndarray:
    """Rainy and clean crops of one pair: int (2, epochs, H, W, 3)."""
    crops = crops_of(recipe, **changes)
    items = [[crop.permute(1, 2, 0).numpy() for crop in crops[n, index].values()] for n in range(epochs)]
    return np.array(items, int).swapaxes(0, 1)


def layers(recipe, epochs=60, **changes) -> np.ndarray:
    """What the rain adds: (epochs, H, W)."""
    rainy, clean = sides(recipe, epochs, **changes)
    return (rainy - clean)[..., 0]


# ----------------------------------------------------------------------------------------- layers of streaks


def slant(layer: np.ndarray) -> float:
    """Degrees from the vertical, by the structure tensor."""
    y, x = np.gradient(layer.astype(float))
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


def test_a_layer_is_added_to_another_background(tmp_path):
    recipe, others = teacher(tmp_path, patch_size=24), 0
    for index in range(4):
        rainy, clean = sides(recipe, 6, index)
        made, background = sides(recipe, 6, index, recombine=True)
        layer = (rainy - clean).max(axis=3, keepdims=True)  # of the channel that is clipped the least
        assert np.array_equal(made, np.minimum(255, background + layer))
        others += (background != clean).any(axis=(1, 2, 3)).sum()
    assert others > 18


def test_layers_are_mirrored_and_never_turned_while_backgrounds_are(tmp_path):
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None] // 4, (200, 200, 3))
    rain = (60 + 50 * np.sin(np.arange(200) ** 1.3 / 9))[None, :, None].astype(np.uint8)
    recipe = recombined(tmp_path, data_path=(pairs_of(tmp_path / "ramp", rain, ramp),), augment=True)
    rainy, clean = sides(recipe, 200)[..., 0]
    assert set(np.sign(clean[:, -1, 0] - clean[:, 0, 0])) == {-1, 0, 1}  # the ramp, turned
    layer = rainy - clean
    assert (layer == layer[:, :1]).all()  # the rain falls
    changes = np.abs(np.diff(layer[:, 0]))
    mirrored = changes[:, :31].sum(axis=1) < changes[:, 32:].sum(axis=1)
    assert 0.4 < mirrored.mean() < 0.6


@pytest.mark.parametrize("prob, own", [(1.0, 0.1), (0.5, 0.55), (0.0, 1.0)])
def test_part_of_the_crops_keep_their_own_background_and_their_rain_upright(tmp_path, prob, own):
    recipe = recombined(tmp_path, data_path=(flat(tmp_path / "ten", 40, 10, 90),), patch_size=60)
    rainy, clean = sides(recipe, 200, 3, recombine_prob=prob, augment=True)
    assert abs((clean == 43).all(axis=(1, 2, 3)).mean() - own) < 0.1
    layer = rainy - clean
    assert layer.max() == 90 and (layer == layer[:, :1]).all()


def test_real_rain_stays_upright_beside_recombined_pairs(tmp_path):
    ramp = np.arange(0, 200, 2, dtype=np.uint8)[:, None, None].repeat(100, 1).repeat(3, 2)
    write_image(tmp_path / "real/1.png", ramp)
    teacher(tmp_path)
    crops = RealCrops.of(student(tmp_path, augment=True, recombine=True), ImageCache("off"))
    for epoch in range(30):
        crop = crops[epoch, 0]["real_rainy"][0].int()
        assert crop[-1, 0] > crop[0, 0] and (crop == crop[:, :1]).all()


def test_more_layers_come_from_all_pairs(tmp_path):
    for n, rain in enumerate((50, 90)):
        write_image(tmp_path / f"two/train/norain/{n}.png", plain_image(20))
        write_image(tmp_path / f"two/train/rain/{n}.png", plain_image(20 + rain))
    recipe = recombined(tmp_path, data_path=(tmp_path / "two",), streak_layers=2)
    assert {layer.max() for layer in layers(recipe)} == {50, 100, 140}


def test_backgrounds_are_drawn_as_often_as_there_are_of_them(tmp_path):
    for n in range(6):
        write_image(tmp_path / f"more/{n}.png", plain_image(200 + n, 80))
    set_ = pairs_of(tmp_path / "two", SOFT, plain_image(20), plain_image(40))
    recipe = recombined(tmp_path, data_path=(set_,), backgrounds=(tmp_path / "more",))
    drawn = np.array([clean.max() for index in range(2) for clean in sides(recipe, 100, index)[1]])
    assert set(drawn) == {20, 40, *range(200, 206)}
    assert 0.6 < (drawn >= 200).mean() < 0.9
    assert sides(recipe, 20, backgrounds=())[1].max() <= 40


def test_streaks_are_layers_of_their_own_on_the_pairs_clean_sides(tmp_path):
    streaks = plain_image(0, 80)
    streaks[:, ::7] = 33
    write_image(tmp_path / "streaks/1.png", streaks)
    recipe = recombined(tmp_path, streaks=(tmp_path / "streaks",))
    assert len(crops_of(recipe)) == 2
    rainy, clean = sides(recipe, 1, index=1)
    assert set(np.unique(rainy - clean)) == {0, 33} and (clean == 20).all()
    write_image(tmp_path / "streaks/2.png", plain_image((9, 8, 7), 80))
    with pytest.raises(UserError, match=r"2\.png is not a streak layer: --streaks takes grey streaks on bl"):
        crops_of(recipe)


def test_layers_fall_on_every_sets_backgrounds_and_other_rain_stays_where_it_is(tmp_path):
    added, coloured = flat(tmp_path / "one", 20, 3, 50), flat(tmp_path / "two", 120, 3, COLOURED)
    recipe = teacher(tmp_path, data_path=(added, coloured), recombine=True, augment=True, patch_size=60)
    notes = crops_of(recipe).messages
    assert any("no layers are swapped in this set" in note and "two" in note for note in notes)
    assert {clean.max() for clean in sides(recipe, 100)[1]} == {20, 21, 22, 120, 121, 122}
    rainy, clean = sides(recipe, 30, index=4)
    assert set(clean[:, 0, 0, 0]) <= {120, 121, 122}
    for layer in rainy - clean:  # upright
        assert {tuple(colour) for colour in layer[:, 30 if layer[0, 30, 0] else 29]} == {COLOURED}
    with pytest.raises(UserError, match=r"--recombine needs .*grey addition; 1\.7% of .*/0\.png is not"):
        crops_of(recipe, data_path=(coloured, coloured))


def test_without_recombine_the_layer_options_are_refused():
    given: dict[str, Any] = {"max_streak_rotation": 5.0, "streak_zoom": 1.2, "streak_strength": 1.2}
    given |= {"streak_blur": 1.0, "streak_layers": 2, "streaks": (Path("x"),), "backgrounds": (Path("x"),)}
    for name, value in given.items():
        recipe = dataclasses.replace(TEACHERS["Rain200H"], **{name: value})
        assert recipe.validate() == f"--{name} only applies with --recombine"
        assert dataclasses.replace(recipe, recombine=True).validate() is None


# ------------------------------------------------------------------------------------------ zoomed windows


@pytest.mark.parametrize("zoom", [1.001, 1.5, 0.8])
def test_an_enlarged_window_lies_within_its_layer_and_reaches_all_of_it(zoom):
    across, down = np.meshgrid(np.arange(100), np.arange(70))
    for ramp, axis, length in ((across, 1, 100), (down, 0, 70)):
        rngs = map(np.random.default_rng, range(200))
        warps = [_random_warp(ramp.shape, 32, 0.0, zoom, rng) for rng in rngs]
        windows = [_warped(100 * ramp[part], warp, 32) / 100 for warp, part in warps]
        for each in windows:  # beyond its edge, by half a pixel at most, a layer is mirrored
            assert np.allclose(np.diff(each[:-1, :-1], axis=axis), 1 / zoom, atol=0.05)
        assert np.min(windows) < 3 and np.max(windows) > length - 4


@pytest.mark.parametrize("size", [16, 60, 300])
@pytest.mark.parametrize("angle", [0.0, 45.0, -80.0])
def test_a_warp_reads_no_pixel_outside_its_part_of_the_layer(size, angle):
    layer = np.random.default_rng(0).integers(0, 256, (70, 100)).astype(np.uint8)
    for seed, zoom in enumerate((0.5, 1.0, 1.3, 2.0) * 3):
        warp, part = _random_warp(layer.shape, size, angle, zoom, np.random.default_rng(seed))
        whole = warp.copy()
        whole[:, 2] -= warp[:, :2] @ [part[1].start, part[0].start]
        assert np.array_equal(_warped(layer[part], warp, size), _warped(layer, whole, size))
        if size == 16:
            assert layer[part].size < layer.size / 2


# ------------------------------------------------------------------------ haze, downscaling, sharpening, JPEG


def test_clear_haze_sharpening_and_jpeg_come_as_often_as_asked_and_on_both_sides(tmp_path):
    recipe = teacher(tmp_path, patch_size=24)
    before = sides(recipe, 200)
    rainy, clean = sides(recipe, 200, clear_prob=0.25)
    assert 0.15 < (rainy == clean).all(axis=(1, 2, 3)).mean() < 0.35
    options = ("haze_prob", "sharpen_prob", "jpeg_prob")
    for option in options:
        rainy, clean = (sides(recipe, 200, **{option: 0.25}) != before).any(axis=(2, 3, 4))
        assert np.array_equal(rainy, clean) and 0.15 < rainy.mean() < 0.35
    hazy, sharp, jpeg = (sides(recipe, 200, **{option: 1.0}) for option in options)
    contrasts = [np.ptp(each, axis=(2, 3, 4)) for each in (hazy, before)]
    assert (contrasts[0] <= 0.95 * contrasts[1] + 1).all()
    edges = [np.abs(np.diff(each, axis=3)).mean(axis=(2, 3, 4)) for each in (sharp, before)]
    assert (edges[0] > edges[1]).all()
    errors = np.abs(jpeg - before).mean(axis=(2, 3, 4))
    assert errors.min() > 0 and errors.max() < 30
    assert np.abs((jpeg - before).mean(axis=(2, 3))).max() < 5  # of each colour


def test_a_fraction_of_the_crops_is_as_the_set_has_it(tmp_path):
    options: dict[str, Any] = {
        "max_streak_rotation": 30.0,
        "streak_layers": 3,
        "haze_prob": 1.0,
        "downscale": 2.0,
    }
    cases: tuple[dict[str, Any], ...] = ({}, options, {**options, "unvaried_prob": 0.5})
    own, varied, half = (sides(recombined(tmp_path), 100, **each)[0] for each in cases)
    like_own, like_varied = ((half == each).all(axis=(1, 2, 3)) for each in (own, varied))
    assert (like_own != like_varied).all()
    assert 0.4 < like_own.mean() < 0.6


@pytest.mark.parametrize("swapped", [False, True])
def test_pairs_are_downscaled_streaks_and_background_alike(tmp_path, swapped):
    ramp = np.repeat(np.arange(240, dtype=np.uint8)[None, :, None], 240, axis=0).repeat(3, axis=2)
    streaks = np.zeros_like(ramp)
    streaks[:, ::2] = 10  # so close that any window has 5 of it on the mean
    where = (pairs_of(tmp_path / "set", streaks, ramp, ramp),)
    recipe = teacher(tmp_path, data_path=where, patch_size=32, downscale=4.0, recombine=swapped)
    rainy, clean = np.concatenate([sides(recipe, 40, index) for index in range(2)], axis=1)
    assert np.abs((rainy - clean).mean(axis=(1, 2, 3)) - 5).max() < 0.7
    factors = (clean[:, 0, -1, 0] - clean[:, 0, 0, 0]) / 31
    assert (factors[:40] == factors[40:]).mean() < 0.2  # each crop its own
    assert factors.min() >= 1 and factors.max() < 4.1
    assert 1.5 < np.median(factors) < 2.7 and np.ptp(factors) > 2  # as often by half as twice by half
