"""Several sets in one training, what is held back of them, and what it is validated on."""

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

import DerainDataset
from datasets.layouts import find_pairs
from datasets.pairs import ImageRef, ListedPairs, PairSet, read_pair, sample, show_scene_of
from machinery.evaluation import seen_in_training, validation_set
from machinery.inference import Derainer
from tests import layouts
from tests.small import a_run, assert_resumes_alike, lines, teacher, trained
from tests.test_augmentation import COLOURED, crops_of, flat, plain_image
from utils import UserError, write_image


def names(found) -> list[str]:
    return [pair.name for pair in found]


def test_several_sets_are_mixed_by_size_or_by_shares(tmp_path):
    one, two = flat(tmp_path / "one", 20, 4, 50), flat(tmp_path / "two", 120, 8, 40)
    recipe = teacher(tmp_path, data_path=(one, two), patch_size=16)

    def drawn(crops, epochs):
        return [int(crops[e, n]["clean"].max()) for e in range(epochs) for n in range(len(crops))]

    crops, shared = crops_of(recipe), crops_of(recipe, shares=(3.0, 1.0))
    assert len(crops) == len(shared) == 12
    assert crops.counts["pairs 1"][0] == 4 and crops.counts["pairs 2"][0] == 8
    assert sorted(drawn(crops, 1)) == [*range(20, 24), *range(120, 128)]
    greys = drawn(shared, 4)
    assert [greys.count(grey) for grey in range(20, 24)] == [9] * 4
    # of each set every pair comes before any comes again; the first is not the first file
    assert sorted(greys.count(grey) for grey in range(120, 128)) == [1] * 4 + [2] * 4
    assert [grey for grey in greys if grey >= 120][:3] != [120, 121, 122]
    with pytest.raises(UserError, match=r"--shares leaves .*two.* none of 12 crops: give it more"):
        crops_of(recipe, shares=(100.0, 1.0))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shares": (1.0,)}, "--shares needs one number per dataset, streaks included: 2, not 1"),
        ({"shares": (1e308, 1e308)}, "--shares is not a finite number"),  # their sum
        ({"data_path": ()}, "--data_path is empty"),
    ],
)
def test_shares_that_fit_no_sets_are_refused(tmp_path, changes, says):
    recipe = teacher(tmp_path, **{"data_path": (tmp_path / "one", tmp_path / "two"), **changes})
    assert says in (recipe.validate() or "")


def test_a_run_on_several_sets_goes_on_where_it_was_stopped(tmp_path):
    """With all that can be mixed."""
    one, two = flat(tmp_path / "one", 20, 3, 50), flat(tmp_path / "two", 120, 3, COLOURED)
    streaks = plain_image(0, 60)
    streaks[:, ::9] = 40
    for n in range(2):
        write_image(tmp_path / f"streaks/{n}.png", streaks)
        write_image(tmp_path / f"clean/{n}.png", plain_image(200 + n, 60))
    how: dict[str, Any] = {"recombine": True, "streak_layers": 2, "streak_blur": 1.0}
    how |= {"max_streak_rotation": 9.0, "hold_back": 1, "downscale": 2.0, "shares": (1.0, 1.0, 2.0)}
    how |= {f"{name}_prob": 0.2 for name in ("clear", "haze", "jpeg", "sharpen")}
    how |= {"streaks": (tmp_path / "streaks",), "backgrounds": (tmp_path / "clean",)}
    recipe = teacher(tmp_path, data_path=(one, two), save_path=tmp_path / "whole", steps=4, **how)
    assert_resumes_alike(recipe)
    for other in ({"data_path": (two, one)}, {"backgrounds": (tmp_path / "streaks",)}):
        with pytest.raises(UserError, match=r"was started on (pairs|backgrounds) 1, number"):
            a_run(dataclasses.replace(recipe, resume=True, **other))


def test_backgrounds_are_clean_images_alone_and_seen(tmp_path):
    recipe = teacher(tmp_path, recombine=True)
    with pytest.raises(UserError, match=r"data holds pairs: --backgrounds takes the folder of their clean"):
        crops_of(recipe, backgrounds=(tmp_path / "data",))
    clean = tmp_path / "data/rain_data_test_Heavy/norain"
    data = crops_of(recipe, backgrounds=(clean,)).summary
    trained_on = {"data": data, "real_path": [], "released": False}
    for root, seen in ((clean.parent, True), (tmp_path / "elsewhere", False)):
        why = seen_in_training(PairSet("", root, []), "Rain200H", trained_on, "SID")
        assert ("it was trained on the images in" in why) == seen


def test_a_released_student_is_marked_on_real_275(tmp_path):
    found, trained_on = PairSet("", tmp_path, []), {"data": [], "real_path": [], "released": True}
    assert "Real-275" in seen_in_training(found, "Real275", trained_on, "unknown")
    assert not seen_in_training(found, "Real275", trained_on, "SID")
    assert not seen_in_training(found, "Real275", {**trained_on, "released": False}, "unknown")


def test_pairs_that_are_held_back_are_validated_on_and_not_trained_on(tmp_path):
    layouts.rain200(tmp_path / "data", train=9)
    recipe = teacher(tmp_path, hold_back=3)
    crops = crops_of(recipe)
    assert crops.held_back and len(crops) == 6
    assert names(crops.held_back.pairs) == ["norain-1x2", "norain-5x2", "norain-9x2"]  # spread evenly
    assert not set(names(crops.held_back.pairs)) & set(names(crops.pairs))
    assert validation_set(recipe, crops)[0] is crops.held_back
    with pytest.raises(UserError, match="--hold_back 9 leaves none"):
        crops_of(recipe, hold_back=9)


def test_a_scene_is_held_back_from_every_set_and_background(tmp_path):
    """A few pixels smaller, brighter, in another compression: by the clean side alone."""
    scene = layouts.clean_image(1)  # of the first pair, which is held back
    cleans = {"a": layouts.clean_image(70), "b": scene[1:, :-1], "c": layouts.clean_image(77)}
    for name, clean in cleans.items():
        write_image(tmp_path / f"two/train/norain/{name}.png", clean)
        write_image(tmp_path / f"two/train/rain/{name}.png", layouts.with_rain(clean, 5))
        write_image(tmp_path / f"clean/{name}.jpg", np.clip(clean + 9.0, 0, 255).astype(np.uint8))
    sets: dict[str, Any] = {"data_path": (tmp_path / "data", tmp_path / "two")}
    sets |= {"backgrounds": (tmp_path / "clean",), "recombine": True, "hold_back": 1}
    crops: Any = crops_of(teacher(tmp_path, **sets))
    assert names(crops.held_back.pairs) == ["1-norain-1x2", "2-a"]
    left = [["norain-2x2", "norain-3x2", "norain-4x2"], ["c"]]
    assert [names(each.pairs) for each in crops.sets] == left
    assert [names(each) for each in crops.sets[0].backgrounds.datasets] == [*left, ["c"]]
    assert "held back: 2 pairs; 3 other images show their scenes" in "".join(crops.messages)


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
        assert found and names(found.pairs) == ["norain-1x2", "norain-5x2", "norain-9x2"]
    assert sample(100, 4) == [0, 33, 66, 99]


def test_what_an_image_weighs_in_a_validation_is_its_own(tmp_path):
    """The mean is over images, each of which is scored once."""
    run = trained(teacher(tmp_path, steps=1, val_every=1))
    derain, pairs = Derainer(run.net), find_pairs(tmp_path / "data", "test").pairs
    by_hand = [peak_signal_noise_ratio(clean, derain(rainy)) for rainy, clean in map(read_pair, pairs)]
    logged = next(line for line in lines(tmp_path / "teacher") if "validation/psnr" in line)
    assert logged["validation/psnr"] == pytest.approx(np.mean(by_hand), abs=0.01)
