"""Which image goes with which, and what outputs are called."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from datasets.names import Matched, distinct_names, match


def matched(images: Sequence[str], clean: Sequence[str]) -> Matched:
    return match([Path(name) for name in images], [Path(name) for name in clean])


def partners(images: Sequence[str], clean: Sequence[str]) -> dict[str, str]:
    return {one.name: other.name for one, other in matched(images, clean).pairs}


@pytest.mark.parametrize(
    ("image", "clean"),
    [
        ("norain-1x2.png", "norain-1.png"),  # Rain200H
        ("438.png", "438gt.png"),  # SPA
        ("rain-001.png", "norain-001.png"),  # Rain100
        ("7_derained.jpg", "7.png"),
        ("castle_derained.png", "castle-gt.png"),
        ("im_0007_out3.png", "im_0007_out3_clean.png"),
        ("img_0007.png", "norain-7.png"),  # by number
        ("901_14.png", "901.jpg"),  # Rain1400
        ("rain_901_14.png", "norain_901.jpg"),
    ],
)
def test_names_that_belong_together(image, clean):
    assert partners([image], ["norain-70.png", clean, "1438.png"]) == {image: clean}


def test_the_exact_name_goes_first_and_a_clean_image_is_given_once():
    assert partners(["1.png", "norain-1.png"], ["norain-1.png", "01.png"]) == {
        "norain-1.png": "norain-1.png",
        "1.png": "01.png",
    }
    assert partners(["1.png", "1x2.png"], ["1.png"]) == {"1.png": "1.png"}


def test_pairs_keep_the_images_order():
    images = ["c-2.png", "7gt.png", "c-10.png", "7.png"]
    pairs = matched(images, ["10.jpg", "7.png", "2.jpg", "norain-7.png"]).pairs
    assert [one.name for one, _ in pairs] == images


def test_the_x2_of_rain200_is_no_number():
    assert partners(["norain-1x2.png"], ["1.png", "1_2.png"]) == {"norain-1x2.png": "1.png"}


def test_two_candidates_on_either_side_decide_nothing():
    assert partners(["a_1.png"], ["b_1.png", "c_1.png"]) == {}
    assert partners(["7_input.png", "7_output.png"], ["7.png"]) == {}
    assert partners(["rain.png"], ["norain.png"]) == {}  # nothing is left of either name


def test_whose_partner_is_missing_does_not_get_anothers():
    assert partners(["a-1.png", "b-1.png"], ["b-1.png"]) == {"b-1.png": "b-1.png"}
    files = ["a-1.png", "a-2.png", "a-10.png"]
    pairs, lone, lone_clean = matched(files, ["c_0010.jpg", "c_0001.jpg", "d_2_2.jpg"])
    assert {one.name: other.name for one, other in pairs} == {
        "a-1.png": "c_0001.jpg",
        "a-10.png": "c_0010.jpg",
    }
    assert (lone, lone_clean) == ([Path("a-2.png")], [Path("d_2_2.jpg")])


def test_fourteen_rainy_images_share_one_clean_image():
    rainy = [f"{scene}_{k}.png" for scene in (901, 902) for k in range(1, 15)]
    found = partners(rainy, ["901.jpg", "902.jpg", "903.jpg"])
    assert found == {name: f"{name[:3]}.jpg" for name in rainy}
    assert len(matched(rainy, ["902.jpg"]).lone) == 14


def test_what_has_no_partner_is_told():
    _, lone, lone_clean = matched(["1.png", "9.png"], ["1.png", "2.png"])
    assert [lone, lone_clean] == [[Path("9.png")], [Path("2.png")]]


def test_no_two_outputs_get_one_name():
    root = Path("set")
    assert distinct_names([root / "a/1.png", root / "b/2.png"], root) == ["1", "2"]
    assert distinct_names([root / "a/1.png", root / "b/1.png"], root) == ["a/1", "b/1"]
    assert distinct_names([root / "1.png", root / "1.jpg"], root) == ["1.png", "1.jpg"]
