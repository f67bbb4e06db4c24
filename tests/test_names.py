"""Which image goes with which, and what outputs are called."""

import contextlib
from pathlib import Path

import pytest

from datasets.pairs import distinct_names, match, refuse_shift
from utils import UserError


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
    pairs, _, lone_clean = match([Path(image)], [Path("norain-70.png"), Path(clean), Path("1438.png")])
    assert pairs == [(Path(image), Path(clean))]
    assert len(lone_clean) == 2


@pytest.mark.parametrize(
    ("images", "clean", "partners"),
    [
        # the exact name goes first, and a clean image is given once
        ("1 norain-1", "norain-1 01", "01 norain-1"),
        ("1 1x2", "1", "1 -"),
        # whatever rule finds them, the images' order stays
        ("c-2 7gt c-10 7", "10 7 2 norain-7", "2 norain-7 10 7"),
        # the x2 of Rain200 is no number
        ("norain-1x2", "1 1_2", "1"),
        # two candidates on either side decide nothing
        ("a_1", "b_1 c_1", "-"),
        ("7_input 7_output", "7", "- -"),
        ("rain", "norain", "-"),  # nothing is left of either name
        # whose partner is missing does not get another's
        ("a-1 b-1", "b-1", "- b-1"),
        ("a-1 a-2 a-10", "c_0010 c_0001 d_2_2", "c_0001 - c_0010"),
    ],
)
def test_each_image_has_its_own_partner_or_none(images, clean, partners):
    files, others, theirs = ([Path(name) for name in names.split()] for names in (images, clean, partners))
    expected = [pair for pair in zip(files, theirs, strict=True) if pair[1].name != "-"]
    lone = [path for path, other in zip(files, theirs, strict=True) if other.name == "-"]
    assert match(files, others) == (expected, lone, [path for path in others if path not in theirs])


def test_fourteen_rainy_images_share_one_clean_image():
    clean = {scene: Path(f"{scene}.jpg") for scene in (901, 902, 903)}
    rainy = {Path(f"{scene}_{k}.png"): clean[scene] for scene in (901, 902) for k in range(1, 15)}
    assert match([*rainy], [*clean.values()]) == ([*rainy.items()], [], [clean[903]])
    assert len(match([*rainy], [clean[902]]).lone) == 14


def test_no_two_outputs_get_one_name():
    for files, outputs in (
        ("a/1.png b/2.png", ["1", "2"]),
        ("a/1.png b/1.png", ["a/1", "b/1"]),
        ("1.png 1.jpg", ["1.png", "1.jpg"]),
    ):
        assert distinct_names([Path("set", file) for file in files.split()], Path("set")) == outputs


@pytest.mark.parametrize(
    ("images", "clean", "shifted"),
    [
        ("0 1 2", "1 2 3", True),
        ("rain-4 rain-3 rain-2", "norain-1 norain-2 norain-3", True),
        ("8 9 10", "9 10 11", True),
        ("0 1 2", "1 2", False),  # a result too many
        ("1 2", "0 1 2 3", False),
        ("1 2 3 extra", "1 2 3 4", False),
        ("1 3 4", "2 3 4", False),  # both at one end: two others
    ],
)
def test_numbers_that_are_shifted_are_refused(images, clean, shifted):
    matched = match(*([Path(f"{name}.png") for name in names.split()] for names in (images, clean)))
    says = pytest.raises(UserError, match="opposite ends of the numbering")
    with says if shifted else contextlib.nullcontext():
        refuse_shift(matched)
