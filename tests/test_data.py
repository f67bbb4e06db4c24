"""Layouts, their errors and warnings; check.py and simulate.py."""

import os
import pickle
import shutil
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from config import Training
from datasets import check, simulate
from datasets.catalogue import CATALOGUE, is_simulated
from datasets.layouts import find_images, find_pairs, recognised
from datasets.pairs import (
    Pair,
    PairSet,
    check_pairs,
    looks_swapped,
    not_additive,
    rain_excess,
    read_pair,
    show_scene_of,
    why_not_recombined,
)
from DerainDataset import PairCrops, RealCrops, pair_crops
from machinery.loading import ImageCache
from tests import layouts
from tests.small import refusal, teacher, tree
from utils import read_image, write_image


def assert_clean_is_clean(found: PairSet) -> None:
    """Rain was only added, so every rainy side is brighter and busier than its clean one."""
    for rainy, clean in map(read_pair, found.pairs):
        assert clean is not None
        assert rainy.shape == clean.shape == (*layouts.SIZE, 3)
        assert rainy.mean() > clean.mean()
        assert rain_excess(rainy, clean) > 0


def names(found: PairSet) -> list[str]:
    return [pair.name for pair in found.pairs]


# ---------------------------------------------------------------------------------------------------- layouts

# training and test pairs
COUNTS = {"Rain200H": (4, 2), "Rain200L": (4, 2), "Rain800": (4, 2)}
COUNTS |= {"Rain1200": (6, 2), "Rain1400": (28, 14), "SPA": (3, 2)}


@pytest.mark.parametrize("dataset", COUNTS)
def test_official_layouts(tmp_path, dataset):
    root = layouts.OFFICIAL_LAYOUT[dataset](tmp_path / "downloads" / dataset)
    for split, count in zip(("train", "test"), COUNTS[dataset], strict=True):
        found = find_pairs(root, split, dataset)
        assert len(found.pairs) == len(set(names(found))) == count
        assert f"{count} pairs from {found.root}" in found.describe()
        assert_clean_is_clean(found)
        for place in (root.parent, found.root):  # the folder around the set, and the split's own
            assert list(find_pairs(place, split, dataset).pairs) == list(found.pairs)


@pytest.mark.parametrize(
    ("rainy", "clean"),
    [
        ("rain", "norain"),
        ("input", "target"),
        ("rainy", "clean"),
        ("rainy", "groundtruth"),
        ("Rain/X2", "NoRain"),
        ("rain", "gt"),
        ("LQ", "GT"),
        ("degraded", "reference"),
    ],
)
@pytest.mark.parametrize("divided", [True, False])
def test_plain_folders(tmp_path, monkeypatch, rainy, clean, divided):
    roots = {split: tmp_path / "set" / (split if divided else "") for split in ("train", "test")}
    for root in roots.values():
        layouts.plain(root, rainy, clean)
    for split, root in roots.items():
        found = find_pairs(tmp_path / "set", split)
        assert (found.root, names(found)) == (root, ["1", "2", "3"])
        assert_clean_is_clean(found)
        monkeypatch.chdir(root)
        assert names(find_pairs(Path(), split)) == names(found)


@pytest.mark.parametrize(
    ("make", "split", "expected"),
    [
        (layouts.rain100, "train", ["rain-001", "rain-002", "rain-003", "rain-004"]),
        (layouts.prenets_rain100, "test", ["rain-001", "rain-002"]),
        (partial(layouts.rain200, inner="."), "test", ["norain-1x2", "norain-2x2"]),
    ],
    ids=["Rain100", "Rain100 by PReNet", "x2 in the name only"],
)
def test_sides_by_the_names_of_images(tmp_path, make, split, expected):
    found = find_pairs(make(tmp_path / "set"), split)
    assert names(found) == expected
    assert_clean_is_clean(found)


def test_several_sets_in_one_folder(tmp_path):
    both = layouts.rain200(layouts.rain200_light(tmp_path / "Rain200"))
    assert find_pairs(both, "train", "Rain200H").root.name == "rain_data_train_Heavy"
    assert find_pairs(both, "test", "Rain200L").root.name == "rain_data_test_Light"
    assert "several sets" in refusal(find_pairs, both, "train")
    for dataset, write in layouts.OFFICIAL_LAYOUT.items():
        write(tmp_path / "all" / dataset)
    for dataset in COUNTS:
        found = find_pairs(tmp_path / "all", "test", dataset)
        assert found.root.is_relative_to(tmp_path / "all" / dataset)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_requested_set_is_not_hidden_by_folders_named_like_a_split(tmp_path, split):
    one, two = (tmp_path / f"Datasets/{split}/{name}" for name in ("Rain100H", f"{split.title()}100"))
    for root in (one, two):
        layouts.plain(root, "input", "target")
    assert find_pairs(tmp_path / "Datasets", split, "Rain100H").root == one
    says = f"holds several sets ({one}, {two}): point --data_path at one"
    assert says in refusal(find_pairs, tmp_path / "Datasets", split, "Rain12")
    asked = layouts.plain(tmp_path / "beside/Rain1400", "rainy_image", "ground_truth")
    other = layouts.plain(tmp_path / f"beside/Rain{split.title()}H", "rain", "norain")
    assert find_pairs(tmp_path / "beside", split, "Rain1400").root == asked
    assert f"holds several sets ({asked}, {other})" in refusal(find_pairs, tmp_path / "beside", split)
    shutil.rmtree(asked / "ground_truth")  # no longer recognised: not a reason to take the other set
    assert f"no {split} pairs in" in refusal(find_pairs, tmp_path / "beside", split, "Rain1400")


def test_rain13ks_download(tmp_path):
    """Test2800 is not Rain1400's test set, which has 1,400 pairs."""
    sets = {"Rain100H": "Rain100H", "Rain100L": "Rain100L", "Test100": "Rain800", "Test1200": "Rain1200"}
    for name in (*sets, "Test2800"):
        layouts.plain(tmp_path / "Datasets/test" / name, "input", "target")
    layouts.plain(tmp_path / "Datasets/train/Rain13K", "input", "target")
    for name, dataset in sets.items():
        for place in ("Datasets", "Datasets/test", f"Datasets/test/{name}"):
            found = find_pairs(tmp_path / place, "test", dataset)
            assert (found.root.name, names(found), recognised(found)) == (name, ["1", "2", "3"], dataset)
    assert recognised(find_pairs(tmp_path / "Datasets/test/Test2800", "test")) == ""
    assert "several sets" in refusal(find_pairs, tmp_path / "Datasets", "test")
    assert find_pairs(tmp_path / "Datasets", "train", "Rain800").root.name == "Rain13K"
    shutil.rmtree(tmp_path / "Datasets/test")
    for place in ("Datasets", "Datasets/train"):
        assert "no test pairs" in refusal(find_pairs, tmp_path / place, "test")


def test_released_merged_layout_leaves_real_images_aside(tmp_path):
    root = layouts.merged(tmp_path / "set")
    found = find_pairs(root, "train", "Rain1200")  # whose own layout has the rainy half on the left
    assert "merged" in found.describe()
    assert len(found.pairs) == len(find_images([root / "Real"]).pairs) == 3
    assert_clean_is_clean(found)


def test_unknown_side_by_side_is_measured_and_photographs_are_not_taken_for_it(tmp_path):
    for n in range(4):
        for side in ("left", "right"):
            layouts.write_side_by_side(tmp_path / side / f"{n}.png", n, side)
        write_image(tmp_path / f"photos/{n}.png", layouts.clean_image(n))
    for side in ("left", "right"):
        found = find_pairs(tmp_path / side, "train")
        assert f"rainy {side} as measured" in found.describe()
        assert_clean_is_clean(found)
    says = f"the 4 images in {tmp_path / 'photos'} are not pairs side by side"
    assert says in refusal(find_pairs, tmp_path / "photos", "train")


def test_train_folder_given_for_test(tmp_path):
    given = layouts.rain200(layouts.rain200_light(tmp_path / "Rain200")) / "rain_data_train_Light"
    found = find_pairs(given, "test")
    assert found.root.name == "rain_data_test_Light"
    assert "took the test folder beside it" in found.warnings[0]
    shutil.rmtree(found.root)
    assert f"no test pairs in {given}: by its name it is the train part" in refusal(find_pairs, given, "test")


def test_real_images_of_any_size_from_several_folders(tmp_path, monkeypatch):
    one, two = layouts.real_images(tmp_path / "one"), layouts.real275(tmp_path / "Real275")
    found = find_images([one, two, one])
    assert len(set(names(found))) == len(found.pairs) == 6
    assert all(pair.clean is None and read_pair(pair)[1] is None for pair in found.pairs)
    assert "6 real images" in found.describe()
    monkeypatch.chdir(tmp_path)
    assert find_images([Path("one"), two]) == find_images([one, two])


def test_of_pairs_only_the_rainy_side_is_real_rain(tmp_path):
    found = find_images([layouts.plain(tmp_path / "set", "rain", "gt")])
    assert {pair.rainy.path.parent.name for pair in found.pairs} == {"rain"}
    assert "is the clean side of pairs: not used" in found.warnings[0]
    both = layouts.rain800(tmp_path / "Rain800") / "training"
    halved = find_images([both])
    assert {pair.rainy.half for pair in halved.pairs} == {"right"}
    assert "took the right halves" in halved.warnings[0]
    loose = layouts.halves(tmp_path / "merged", "right", {"norain-{}.png": 3})
    assert {pair.rainy.half for pair in find_images([loose]).pairs} == {"right"}
    listed = find_images([layouts.spa(tmp_path / "SPA")])
    assert len(listed.pairs) == 3
    assert len(find_images([tmp_path / "SPA/real_world.txt", tmp_path / "set"]).pairs) == 3 + 3
    assert listed.pairs[0].clean is None
    crops = RealCrops(listed, Training(patch_size=16), ImageCache("off"))
    assert {tuple(crops[(0, i)]["real_rainy"].shape) for i in range(3)} == {(3, 16, 16)}


def test_test_parts_are_not_trained_on_unlabelled(tmp_path):
    sets = {name: write(tmp_path / name) for name, write in layouts.OFFICIAL_LAYOUT.items()}
    sets["merged"] = layouts.merged(tmp_path / "merged")
    tests = {"Rain200H": "rain_data_test_Heavy", "Rain800": "test_syn", "Rain1200": "DID-MDN-test"}
    tests |= {"Rain1400": "testing", "merged": "test"}
    for name, test in tests.items():
        found = find_images([sets[name]])
        assert not any(pair.rainy.path.is_relative_to(sets[name] / test) for pair in found.pairs)
        assert any(f"{sets[name] / test} is the test part of" in warning for warning in found.warnings)
        evaluated = find_images([sets[name]], option="--data_path")
        assert any(pair.rainy.path.is_relative_to(sets[name] / test) for pair in evaluated.pairs)
    assert len(find_images([sets["merged"]]).pairs) == 6  # Real/ too
    messages = RealCrops(find_images([sets["Rain800"]]), Training(), ImageCache("off")).messages
    assert f"note: {sets['Rain800'] / 'test_syn'} is the test part of a divided set: not used" in messages
    given = sets["Rain800"] / "test_syn"
    for path in (given, sets["Rain200H"] / "rain_data_test_Heavy/rain/X2"):
        said = refusal(find_images, [sets["Rain1400"], path])
        assert f"{path} holds no images: " in said and "is the test part of Rain" in said


def test_spas_test_part_is_not_trained_on_and_its_list_is(tmp_path, monkeypatch):
    root = layouts.spa(tmp_path / "downloads/SPA")
    layouts.real275(tmp_path / "downloads/Real275")
    found = find_images([tmp_path / "downloads"])
    assert {pair.rainy.path.parent.name for pair in found.pairs} == {"0", "rain"}
    assert len(found.pairs) == 3 + 3  # Real-275, which is a test set alone, is whole
    unpacked = layouts.plain(tmp_path / "SPA", "rain", "gt")
    for path in (unpacked, unpacked / "rain", root / "Testing"):
        assert "is the test part of SPA: not used" in refusal(find_images, [path])
    assert len(find_images([root / "real_world"]).pairs) == 3


def test_a_link_is_judged_by_its_own_place_and_by_its_targets(tmp_path):
    """The folders around it may be named as a split or as another set."""
    rain800, rain200 = layouts.rain800(tmp_path / "sets/Rain800"), layouts.rain200(tmp_path / "sets/Rain200H")

    def link(around, to):
        (tmp_path / around).mkdir()
        (tmp_path / around / "link").symlink_to(to)
        return tmp_path / around / "link"

    given = link("training", rain800 / "test_syn")
    assert f"{given} is the test part of Rain800: not used" in refusal(find_images, [given])
    assert len(find_images([link("test", rain200)]).pairs) == 4
    given = link("Rain1400", rain800)
    assert [recognised(find_pairs(given, split)) for split in ("train", "test")] == ["Rain800"] * 2


@pytest.mark.parametrize("folder", ["Rain800_real", "Rain800/Real", "Rain800/test_nature", "Rain12/photos"])
def test_photographs_are_never_halved_whatever_they_show(tmp_path, folder):
    alike = np.hstack([layouts.clean_image(1)] * 2)
    write_image(tmp_path / folder / "1.png", alike)
    (pair,) = find_images([tmp_path / folder]).pairs
    assert read_pair(pair)[0].shape == alike.shape
    if folder == "Rain800/test_nature":
        root = layouts.rain800(tmp_path / "Rain800")
        for split, place in (("train", "training"), ("test", "test_syn")):
            assert find_pairs(root, split).root == root / place


def test_links_that_lead_back_up_end(tmp_path):
    root = layouts.real_images(tmp_path / "real")
    for name, to in (("up", root), ("round", "round"), ("deep", tmp_path)):
        (root / name).symlink_to(to)
    assert len(find_images([root]).pairs) == 3
    assert "no train pairs" in refusal(find_pairs, root, "train")


# ------------------------------------------------------------------------------------------------ list of SPA


def test_long_list_opens_without_listing_or_reading(tmp_path, monkeypatch):
    root = layouts.spa(tmp_path / "SPA", train=1)
    line = "/media/data/real_world/{0}/{0}.png /media/data/real_world_gt/{0}/{0}gt.png\r\n"
    with (root / "real_world.txt").open("a") as listed:  # of all these files only the first is there
        listed.writelines(line.format(n) for n in range(1, 638_492))
    for name in ("scandir", "listdir", "walk"):
        monkeypatch.setattr(os, name, lambda *_: pytest.fail("a folder was listed"))
    tracemalloc.start()
    found = find_pairs(root, "train", "SPA")
    crops = PairCrops(found, Training(patch_size=8), ImageCache())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    assert len(found.pairs) == len(crops) == len(pickle.loads(pickle.dumps(found)).pairs) == 638_492
    assert found.warnings == ()
    assert "not cached" in crops.messages[-1]
    name, rainy, clean = found.pairs[-1]
    assert (name, rainy.path) == ("real_world/638491/638491", root / "real_world/638491/638491.png")
    assert clean is not None
    assert clean.path == root / "real_world_gt/638491/638491gt.png"
    assert crops[(0, 0)]["rainy"].shape == (3, 8, 8)


def test_bad_lists(tmp_path):
    root = layouts.spa(tmp_path / "SPA")
    listed = root / "real_world.txt"
    twice = listed.read_text().split()[0]
    listed.write_text(listed.read_text() + f"\n/only/one.png\n{twice} {twice}\n")
    bad = find_pairs(listed, "train").pairs
    assert "on both sides of a line" in refusal(lambda: bad[4])
    assert "'/only/one.png' is not a rainy and a clean file name" in refusal(lambda: bad[3])
    incomplete = "/media/data/real_world/0/7.png /media/data/real_world_gt/0/7gt.png\n"
    listed.write_text(incomplete + incomplete.replace("7", "1"))
    assert read_pair(find_pairs(root, "train").pairs[1])[0].shape == (*layouts.SIZE, 3)
    elsewhere = "real_world.txt lists {} and more, none of them below " + f"{root}: put the list beside the"
    for content, says in (
        (b"/a/b.png /c/d.png\n", elsewhere.format("a/b.png")),
        (b"../.. ..", elsewhere.format("../..")),
        (b"\xff\xfe \x00\x01", elsewhere.format("\\udcff\\udcfe")),
        (b"n" * 300 + b" " + b"m" * 300, elsewhere.format("n" * 200)),
        (b"", "real_world.txt lists no image pairs"),
        (b"\n\n", "real_world.txt lists no image pairs"),
    ):
        listed.write_bytes(content)
        assert says in refusal(find_pairs, root, "train")


def test_listed_names_may_repeat_and_need_not_be_utf8(tmp_path):
    images = ["a/{}/1", "b/{}/1", os.fsdecode(b"b/{}/caf\xe9")]
    for image in images:
        rainy, clean = (tmp_path / f"{image.format(side)}.png" for side in ("rain", "gt"))
        layouts.write_pair(rainy, clean, 1)
    lines = [f"/x/{image.format('rain')}.png /x/{image.format('gt')}.png\n" for image in images]
    (tmp_path / "pairs.txt").write_text("".join(lines), errors="surrogateescape")
    found = find_pairs(tmp_path / "pairs.txt", "test")
    assert names(found) == [image.format("rain") for image in images]
    assert_clean_is_clean(found)


# ---------------------------------------------------------------------------------------- errors and warnings


def test_an_image_without_its_partner_is_a_warning_or_an_error(tmp_path):
    folder = layouts.rain200(tmp_path / "Rain200H") / "rain_data_train_Heavy"
    (folder / "rain/X2/norain-3x2.png").unlink()
    assert "without a rainy one, not used: norain-3.png" in find_pairs(folder, "train").warnings[0]
    (folder / "norain/norain-2.png").unlink()
    assert "norain-2x2.png has no clean image" in refusal(find_pairs, folder, "train")


def test_sizes_that_no_pair_has_name_the_file(tmp_path):
    root = layouts.plain(tmp_path / "set", "rain", "norain")
    write_image(root / "norain/2.png", layouts.clean_image(2, (40, 56)))
    says = f"{root}/rain/2.png and {root}/norain/2.png differ in size, 56x48 and 56x40"
    assert says in refusal(read_pair, find_pairs(root, "train").pairs[1])
    odd = layouts.rain800(tmp_path / "Rain800") / "training/3.jpg"
    write_image(odd, read_image(odd)[:, :-1])
    pair = find_pairs(tmp_path / "Rain800", "train", "Rain800").pairs[2]
    assert f"{odd} is 111 pixels wide" in refusal(read_pair, pair)


def test_a_broken_image_among_others_does_not_hide_a_layout(tmp_path):
    layouts.rain12(tmp_path, count=4)
    (tmp_path / "2.png").write_bytes(b"no image")
    found = find_pairs(tmp_path, "test")
    assert len(found.pairs) == 4
    assert check_pairs(found) == []
    for number in (1, 3, 4):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    assert "1.png is not an image" in refusal(find_pairs, tmp_path, "test")


def test_folders_that_are_missing_or_hold_nothing(tmp_path):
    nowhere = tmp_path / "nowhere"
    for missing, option in (
        (refusal(find_images, [nowhere]), "--real_path"),
        (refusal(find_images, [nowhere], option="--backgrounds"), "--backgrounds"),
        (refusal(find_pairs, nowhere, "train"), "--data_path"),
    ):
        assert f"nowhere is not a folder: {option} takes" in missing and "datasets/README.md says" in missing
    for folder in ("empty", "set/rain", "set/norain", "DID/Rain_Light"):
        (tmp_path / folder).mkdir(parents=True)
    for name, says in (
        ("empty", "empty holds neither images nor folders; datasets/README.md says where"),
        ("set", "set/rain holds no images"),
        ("DID", "Rain_Light holds no images"),
    ):
        assert says in refusal(find_pairs, tmp_path / name, "train")
    assert "empty holds no images" in refusal(find_images, [tmp_path / "empty"])


def test_counts_are_checked_of_the_set_that_is_named_or_recognised(tmp_path):
    assert find_pairs(layouts.plain(tmp_path / "plain", "rain", "norain"), "train").warnings == ()
    root = layouts.rain200(tmp_path / "set")
    assert find_pairs(root, "train").warnings == find_pairs(root, "train", "Rain200H").warnings
    (warning,) = find_pairs(root, "train", "Rain200H").warnings
    assert "holds 4 pairs; Rain200H's official train set has 1,800" in warning
    assert any("heavy rain by its name" in w for w in find_pairs(root, "train", "Rain200L").warnings)
    real = layouts.real275(tmp_path / "Real275")
    assert "officially has 275" in find_images([real], "Real275").warnings[0]


def test_swapped_sides_are_noticed(tmp_path):
    root = layouts.rain12(tmp_path / "Rain12", count=12)
    assert check_pairs(find_pairs(root, "test")) == []
    (warning,) = check_pairs(find_pairs(root, "test", rainy_side="right"))
    assert "looks cleaner" in warning and "--rainy_side left" in warning
    swapped = layouts.plain(tmp_path / "set", "target", "input")
    (warning,) = check_pairs(find_pairs(swapped, "test"))
    assert "the folders' names" in warning


# ----------------------------------------------------------------------------------------------- real samples

PIECES = {"Rain200H": (2, 5), "Rain200L": (1, 2), "Rain800": (700, 100)}
PIECES |= {"Rain1400": (0, 2), "SPA": (2, 2), "Rain12": (0, 1)}


@pytest.mark.parametrize("dataset", PIECES)
def test_real_pieces_load_with_the_right_side_as_clean(shared, dataset):
    for split, count in zip(("train", "test"), PIECES[dataset], strict=True):
        if not count:
            continue
        found = find_pairs(shared / "data" / dataset, split, dataset)
        swapped = [Pair(pair.name, pair.clean, pair.rainy) for pair in found.pairs if pair.clean]
        assert len(found.pairs) == len(swapped) == count
        assert not looks_swapped(found.pairs)
        assert looks_swapped(swapped)
        if dataset != "Rain12":  # of which there is one pair
            why = why_not_recombined(found)
            assert why == "" if dataset.startswith("Rain200") else "exact grey addition" in why


def test_real_photographs(shared):
    for folder, count in (("Real", 44), ("Real275", 275)):
        assert len(find_images([shared / "data" / folder]).pairs) == count
        assert "no test pairs" in refusal(find_pairs, shared / "data" / folder, "test")


def test_additive_or_not():
    rainy, clean = layouts.pair(1)
    assert (rainy == 255).any()
    assert not_additive(rainy, clean) == 0
    assert not_additive(clean, rainy) == (rainy != clean).any(axis=2).mean() > 0  # darker
    tinted = rainy.copy()
    tinted[3, 4] = clean[3, 4] + np.array([5, 5, 6], np.uint8)
    assert not_additive(tinted, clean) == 1 / clean[..., 0].size
    clipped = np.full((1, 1, 3), 250, np.uint8)
    assert not_additive(np.array([[[255, 255, 255]]], np.uint8), clipped) == 0
    assert not_additive(np.array([[[255, 252, 252]]], np.uint8), clipped) == 1  # clipped by adding 2


# -------------------------------------------------------------------------------------------------- datasets/


def test_check_names_what_is_missing_and_changes_nothing(tmp_path, monkeypatch, run_here, capsys):
    root = layouts.rain200(tmp_path / "Rain200H", train=12, test=3)
    monkeypatch.setitem(CATALOGUE, "Rain200H", replace(CATALOGUE["Rain200H"], train=12, test=3))
    before = tree(root)
    assert run_here("datasets/check.py", "Rain200H", str(root)) == 0
    assert capsys.readouterr().out.count("complete") == 2
    assert tree(root) == before

    clean, rainy = root / "rain_data_train_Heavy/norain", root / "rain_data_train_Heavy/rain/X2"
    for path in (clean / "norain-5.png", clean / "norain-7.png", rainy / "norain-7x2.png"):
        path.unlink()
    (rainy / "norain-9x2.png").write_bytes(b"cut short")
    assert run_here("datasets/check.py", "Rain200H", str(root)) == 1
    said = capsys.readouterr().out
    assert "missing: norain-7x2\n" in said
    assert f"{rainy / 'norain-5x2.png'} has no clean image" in said
    assert f"{rainy / 'norain-9x2.png'} is not an image" in said
    assert "Rain200H train: 4 problems" in said
    assert "Rain200H test: complete" in said


def test_check_knows_each_numbering(monkeypatch):
    missing = check.missing_names
    monkeypatch.setitem(CATALOGUE, "Rain1400", replace(CATALOGUE["Rain1400"], train=28, test=42))
    of_1400 = [f"{scene}_{k}" for scene in (901, 902, 903) for k in range(1, 15)]
    assert missing("Rain1400", "test", of_1400) == []
    assert missing("Rain1400", "test", [name for name in of_1400 if name != "902_7"]) == ["902_7"]
    monkeypatch.setitem(CATALOGUE, "Rain1200", replace(CATALOGUE["Rain1200"], train=9, test=3))
    assert missing("Rain1200", "test", ["0", "2"]) == ["1"]
    of_1200 = [f"Rain_{s}/train2018new/{n}" for s in ("Light", "Medium", "Heavy") for n in (1, 2, 3)]
    assert missing("Rain1200", "train", of_1200[1:]) == ["Rain_Light/train2018new/1"]
    assert missing("Rain12", "test", [f"{n:03}" for n in range(1, 12)]) == ["012"]
    assert missing("Rain12", "test", ["a", "b"]) == []


def test_check_takes_an_undivided_folder_for_one_part(tmp_path, run_here, capsys):
    """PReNet's Rain100H: 100 of the 100 test pairs, not 1,700 missing training pairs too."""
    root = tmp_path / "Rain100H"
    for n in range(1, 101):
        layouts.write_pair(root / f"rainy/rain-{n:03}.png", root / f"norain-{n:03}.png", n)
    assert run_here("datasets/check.py", "Rain100H", str(root)) == 1
    out = capsys.readouterr().out
    assert "Rain100H test: complete" in out
    assert f"{root} is not divided into train and test: 100 pairs in all" in out
    assert "missing" not in out


def test_check_of_a_list_names_absent_files(tmp_path, monkeypatch, run_here, capsys):
    root = layouts.spa(tmp_path / "SPA")
    monkeypatch.setitem(CATALOGUE, "SPA", replace(CATALOGUE["SPA"], train=3, test=2))
    assert run_here("datasets/check.py", "SPA", str(root)) == 0
    (root / "real_world_gt/0/2gt.png").unlink()
    assert run_here("datasets/check.py", "SPA", str(root)) == 1
    assert f"{root / 'real_world_gt/0/2gt.png'} cannot be read: No such file" in capsys.readouterr().out


def test_simulated_sets(tmp_path, monkeypatch):
    for name in simulate.SETS:
        monkeypatch.setitem(CATALOGUE, name, replace(CATALOGUE[name], train=2, test=2))
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        simulate.write_pairs(simulate.simulated(tmp_path / name, seed))
    first, again, other = (tree(tmp_path / name) for name in ("one", "again", "other"))
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[path] != other[path] for path in first)
    for dataset in ("Simulated200H", "Simulated200L"):
        for split in ("train", "test"):
            found = find_pairs(tmp_path / "one", split, dataset)
            assert found.root.parent.name == dataset
            assert len(found.pairs) == 2
            assert not why_not_recombined(found)
            assert not looks_swapped(found.pairs)
    real = find_pairs(tmp_path / "one/SimulatedReal", "test")
    assert len(find_images([tmp_path / "one/SimulatedReal/train"]).pairs) == len(real.pairs) == 2
    assert "exact grey addition" in why_not_recombined(real)


def test_rain_on_ones_own_photographs_is_a_set_for_training_and_evaluation(tmp_path, run_here, capsys):
    photographs, made, again = (tmp_path / name for name in ("photographs", "made", "again"))
    for n in range(7):  # the last one shows the second's scene
        write_image(photographs / f"{n}.png", layouts.clean_image(n % 6 + (n == 6), (900, 1200)))
    words = ["datasets/simulate.py", "--clean", str(photographs), "--strength", "0.5"]
    for folder in (made, again):
        assert run_here(*words, "--save_path", str(folder)) == 0
    assert tree(made / "train/rain") == tree(again / "train/rain")
    assert "train, 5 pairs" in capsys.readouterr().out
    recipe = teacher(tmp_path, data_path=(made,), recombine=True)
    assert len(pair_crops(recipe, ImageCache("off"))) == 5  # an exact grey addition
    train, test = (find_pairs(made, split) for split in ("train", "test"))
    assert not show_scene_of(
        [p.clean for p in train.pairs if p.clean], [p.clean for p in test.pairs if p.clean]
    ).any()
    assert [read_pair(pair)[0].shape for pair in test.pairs] == [(768, 1024, 3)]
    assert not looks_swapped(train.pairs) and not looks_swapped(test.pairs)
    assert all(is_simulated(path) for path in (made, made / "test")) and not is_simulated(photographs)


def test_rain_on_ones_own_photographs_is_asked_for_strength_angle_and_haze(tmp_path):
    for n in (1, 2):
        write_image(tmp_path / f"photographs/{n}.png", layouts.clean_image(n, (90, 120)))

    def rain_of(name, **changes):
        options = simulate.Simulate(clean=(tmp_path / "photographs",), save_path=tmp_path / name, **changes)
        simulate.write_pairs(simulate.photographs(options))
        rainy, clean = (read_image(tmp_path / name / f"test/{side}/1.png") for side in ("rain", "norain"))
        return rainy.astype(float) - clean

    plain, little = rain_of("plain"), rain_of("little", strength=0.05)
    level, hazy = rain_of("level", angle=90.0), rain_of("hazy", haze=0.9)
    assert 0 < little.mean() < plain.mean() / 2
    along, across = (np.abs(np.diff(level, axis=axis)).mean() for axis in (1, 0))
    assert along < across and np.abs(np.diff(plain, axis=0)).mean() < np.abs(np.diff(plain, axis=1)).mean()
    assert plain.min() == 0 and not np.allclose(hazy, plain)


def test_rain_on_ones_own_photographs_overwrites_nothing_and_needs_two(tmp_path, run_here, capsys):
    layouts.real_images(tmp_path / "full")
    for n in (1, 2):  # of one scene
        write_image(tmp_path / f"alike/{n}.png", layouts.clean_image(1))
    (tmp_path / "empty").mkdir()
    before = tree(tmp_path)
    for clean, save_path, message in (
        ("alike", "", "--clean needs --save_path"),
        ("alike", "full", "full is not empty: choose a new folder as --save_path"),
        ("empty", "new", "empty holds no images: --clean takes folders of images"),
        ("alike", "new", "needs photographs of two scenes at least"),
    ):
        words = ["--clean", tmp_path / clean, *(["--save_path", tmp_path / save_path] if save_path else [])]
        assert run_here("datasets/simulate.py", *map(str, words)) == 2
        assert message in capsys.readouterr().err
    words = ["--clean", str(tmp_path / "alike"), "--save_path", str(tmp_path / "new"), "--strength", "0"]
    assert run_here("datasets/simulate.py", *words) == 2 and "--strength" in capsys.readouterr().err
    assert tree(tmp_path) == before and not (tmp_path / "new").exists()
