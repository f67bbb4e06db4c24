"""Layouts, their errors and warnings, and the scripts in datasets/."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from datasets import check, simulate
from datasets.catalogue import CATALOGUE
from datasets.layouts import find_images, find_pairs
from datasets.pairs import (
    Found,
    Pair,
    check_pairs,
    looks_swapped,
    rain_excess,
    read_pair,
    why_not_additive,
    why_not_recombined,
)
from DerainDataset import PairCrops, RealCrops
from machinery.loading import ImageCache
from tests import layouts
from utils import UserError, read_image, write_image


def assert_clean_is_clean(found: Found) -> None:
    """Rain was only added, so every rainy side is brighter and busier than its clean one."""
    for pair in found.pairs:
        rainy, clean = read_pair(pair)
        assert clean is not None
        assert rainy.shape == clean.shape == (*layouts.SIZE, 3)
        assert rainy.mean() > clean.mean()
        assert rain_excess(rainy, clean) > 0


# ---------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("dataset", "train", "test"),
    [
        ("Rain200H", 4, 2),
        ("Rain200L", 4, 2),
        ("Rain800", 4, 2),
        ("Rain1200", 6, 2),
        ("Rain1400", 28, 14),
        ("SPA", 3, 2),
    ],
)
def test_official_layouts(tmp_path: Path, dataset: str, train: int, test: int) -> None:
    root = layouts.OFFICIAL_LAYOUT[dataset](tmp_path / "downloads" / dataset)
    for split, count in (("train", train), ("test", test)):
        found = find_pairs(root, split, dataset)
        assert len(found.pairs) == len({pair.name for pair in found.pairs}) == count
        assert f"{count} pairs" in found.describe()
        assert str(found.root) in found.describe()
        assert_clean_is_clean(found)
        for place in (root.parent, found.root):  # one that holds the set, and the split's own folder
            assert list(find_pairs(place, split, dataset).pairs) == list(found.pairs)


@pytest.mark.parametrize(
    ("rainy", "clean"),
    [("rain", "norain"), ("input", "target"), ("rainy", "clean"), ("Rain/X2", "NoRain"), ("rain", "gt")],
)
@pytest.mark.parametrize("divided", [True, False])
def test_plain_folders(tmp_path: Path, rainy: str, clean: str, divided: bool) -> None:
    root = tmp_path / "set"
    for split in ("train", "test"):
        layouts.plain(root / split if divided else root, rainy, clean)
    for split in ("train", "test"):
        found = find_pairs(root, split)
        assert found.root == (root / split if divided else root)
        assert [pair.name for pair in found.pairs] == ["1", "2", "3"]
        assert_clean_is_clean(found)


def test_rain100_and_x2_in_the_name_only(tmp_path: Path) -> None:
    found = find_pairs(layouts.rain100(tmp_path / "Rain100H"), "train")
    assert [pair.name for pair in found.pairs] == ["rain-001", "rain-002", "rain-003", "rain-004"]
    assert_clean_is_clean(found)
    found = find_pairs(layouts.rain200(tmp_path / "RainHeavy", inner="."), "test")
    assert [pair.name for pair in found.pairs] == ["norain-1x2", "norain-2x2"]
    assert_clean_is_clean(found)


def test_heavy_and_light_in_one_folder(tmp_path: Path) -> None:
    root = layouts.rain200(layouts.rain200_light(tmp_path / "Rain200"))
    assert find_pairs(root, "train", "Rain200H").root.name == "rain_data_train_Heavy"
    assert find_pairs(root, "test", "Rain200L").root.name == "rain_data_test_Light"
    with pytest.raises(UserError, match="several sets"):
        find_pairs(root, "train")


def test_archives_by_their_names(tmp_path: Path) -> None:
    for name in ("RainHeavy", "RainLight"):
        layouts.plain(tmp_path / name, "rain/X2", "norain")
    assert find_pairs(tmp_path, "test", "Rain200H").root.name == "RainHeavy"
    assert find_pairs(tmp_path, "test", "Rain200L").root.name == "RainLight"


def test_many_sets_in_one_folder(tmp_path: Path) -> None:
    for dataset, write in layouts.OFFICIAL_LAYOUT.items():
        write(tmp_path / dataset)
    for dataset in ("Rain200H", "Rain200L", "Rain800", "Rain1200", "Rain1400", "SPA"):
        assert find_pairs(tmp_path, "test", dataset).root.is_relative_to(tmp_path / dataset)


def test_released_merged_layout_leaves_real_images_aside(tmp_path: Path) -> None:
    root = layouts.merged(tmp_path / "set")
    found = find_pairs(root, "train", "Rain1200")  # whose own layout has the rainy half left
    assert "merged" in found.describe()
    assert len(found.pairs) == 3
    assert_clean_is_clean(found)
    assert len(find_images([root / "Real"]).pairs) == 3


def test_unknown_side_by_side_is_measured_and_said(tmp_path: Path) -> None:
    for side in ("left", "right"):
        folder = tmp_path / side
        for n in range(4):
            layouts.write_side_by_side(folder / f"{n}.png", n, side)
        found = find_pairs(folder, "train")
        assert f"rainy {side} as measured" in found.describe()
        assert_clean_is_clean(found)


def test_single_photographs_are_not_taken_for_pairs(tmp_path: Path) -> None:
    for n in range(4):
        write_image(tmp_path / f"photos/{n}.png", layouts.clean_image(n))
    with pytest.raises(UserError, match=r"the 4 images in .*photos are not two of one picture side by side"):
        find_pairs(tmp_path / "photos", "train")


def test_train_folder_given_for_test(tmp_path: Path) -> None:
    root = layouts.rain200(layouts.rain200_light(tmp_path / "Rain200"))
    found = find_pairs(root / "rain_data_train_Light", "test")
    assert found.root.name == "rain_data_test_Light"
    assert "took the test folder beside it" in found.warnings[0]
    shutil.rmtree(root / "rain_data_test_Light")
    with pytest.raises(UserError, match=r"no test pairs in .*Light: by its name it is the train part"):
        find_pairs(root / "rain_data_train_Light", "test")


def test_real_images_of_any_size_from_several_folders(tmp_path: Path) -> None:
    one = layouts.real_images(tmp_path / "one")
    two = layouts.real275(tmp_path / "Real275")
    found = find_images([one, two, one / "2.jpg"])
    assert len({pair.name for pair in found.pairs}) == len(found.pairs) == 6
    assert all(pair.clean is None and read_pair(pair)[1] is None for pair in found.pairs)
    assert "6 real images" in found.describe()


def test_of_pairs_only_the_rainy_side_is_real_rain(tmp_path: Path) -> None:
    root = layouts.plain(tmp_path / "set", "rain", "gt")
    found = find_images([root])
    assert {pair.rainy.path.parent.name for pair in found.pairs} == {"rain"}
    assert "not taken as rainy" in found.warnings[0]
    halved = find_images([layouts.rain800(tmp_path / "Rain800") / "training"])
    assert {pair.rainy.half for pair in halved.pairs} == {"right"}
    assert "took the right halves" in halved.warnings[0]
    one = find_images([tmp_path / "Rain800/training", tmp_path / "Rain800/training/1.jpg"])
    assert one.pairs == halved.pairs
    (alone,) = find_images([tmp_path / "Rain800/training/1.jpg"]).pairs
    assert alone.rainy.half == "right"
    listed = find_images([layouts.spa(tmp_path / "SPA")])
    assert len(listed.pairs) == 3
    assert listed.pairs[0].clean is None
    assert {tuple(RealCrops(listed, 16)[(0, i)]["real_rainy"].shape) for i in range(3)} == {(3, 16, 16)}


@pytest.mark.parametrize("folder", ["Rain800_real", "Rain800/Real", "Rain800/test_nature", "Rain12/photos"])
def test_photographs_are_never_halved_whatever_they_show(tmp_path: Path, folder: str) -> None:
    alike = np.hstack([layouts.pair(1)[1]] * 2)
    write_image(tmp_path / folder / "1.png", alike)
    (pair,) = find_images([tmp_path / folder]).pairs
    assert read_pair(pair)[0].shape == alike.shape


def test_real_images_by_a_relative_and_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (layouts.real_images(tmp_path / name) for name in ("one", "two"))
    monkeypatch.chdir(tmp_path)
    found = find_images([Path("one"), two])
    assert found.root == tmp_path
    assert {pair.rainy.path.parent for pair in found.pairs} == {one, two}


def test_links_that_lead_back_up_end(tmp_path: Path) -> None:
    root = layouts.real_images(tmp_path / "real")
    (root / "up").symlink_to(root)
    (root / "round").symlink_to("round")
    (root / "deep").symlink_to(tmp_path)
    assert len(find_images([root]).pairs) == 3
    with pytest.raises(UserError, match="no train pairs"):
        find_pairs(root, "train")


def test_a_folder_that_is_missing_names_its_option(tmp_path: Path) -> None:
    for option in ("--real_path", "--backgrounds"):
        with pytest.raises(
            UserError, match=f"nowhere is not a folder: {option} takes .* datasets/README.md says"
        ):
            find_images([tmp_path / "nowhere"], option=option)
    with pytest.raises(UserError, match=r"nowhere is not a folder: --data_path takes .* datasets/README.md"):
        find_pairs(tmp_path / "nowhere", "train")


# ------------------------------------------------------------------------------------------------ list of SPA


def test_long_list_opens_without_listing_or_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = layouts.spa(tmp_path / "SPA", train=1)
    line = "/media/data/real_world/{0}/{0}.png /media/data/real_world_gt/{0}/{0}gt.png\r\n"
    with (root / "real_world.txt").open("a") as listed:  # of all these files only the first is there
        listed.writelines(line.format(n) for n in range(1, 638_492))

    def refuse(*_: object) -> None:
        raise AssertionError("a folder was listed")

    for name in ("scandir", "listdir", "walk"):
        monkeypatch.setattr(os, name, refuse)
    tracemalloc.start()
    found = find_pairs(root, "train", "SPA")
    crops = PairCrops(found, 8, cache=ImageCache())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.pairs) == len(crops) == 638_492
    assert found.warnings == ()
    assert "not cached" in crops.notes[-1]
    assert peak < 50e6
    last = found.pairs[-1]
    assert last.name == "real_world/638491/638491"
    assert last.rainy.path == root / "real_world/638491/638491.png"
    assert last.clean is not None
    assert last.clean.path == root / "real_world_gt/638491/638491gt.png"
    assert crops[(0, 0)]["rainy"].shape == (3, 8, 8)
    assert len(pickle.loads(pickle.dumps(found)).pairs) == 638_492


def test_bad_lists(tmp_path: Path) -> None:
    root = layouts.spa(tmp_path / "SPA")
    listed = root / "real_world.txt"
    listed.write_text(listed.read_text() + "\n/only/one.png\n")
    with pytest.raises(UserError, match=r"'/only/one.png' is not a rainy and a clean file name"):
        find_pairs(listed, "train").pairs[3]
    incomplete = "/media/data/real_world/0/7.png /media/data/real_world_gt/0/7gt.png\n"
    listed.write_text(incomplete + "/media/data/real_world/0/1.png /media/data/real_world_gt/0/1gt.png\n")
    assert read_pair(find_pairs(root, "train").pairs[1])[0].shape == (*layouts.SIZE, 3)
    listed.write_text("/a/b.png /c/d.png\n")
    with pytest.raises(UserError, match=r"lists a/b.png and more, none of it below"):
        find_pairs(root, "train")
    listed.write_text("")
    with pytest.raises(UserError, match="empty"):
        find_pairs(root, "train")
    listed.write_text("\n\n")
    with pytest.raises(UserError, match=r"real_world.txt lists no image pairs"):
        find_pairs(root, "train")


def test_one_name_in_two_folders_of_a_list_gives_two_outputs(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        layouts.plain(tmp_path / folder, "rain", "gt", count=1)
    lines = [f"/x/{folder}/rain/1.png /x/{folder}/gt/1.png\n" for folder in ("a", "b")]
    (tmp_path / "pairs.txt").write_text("".join(lines))
    found = find_pairs(tmp_path / "pairs.txt", "test")
    assert [pair.name for pair in found.pairs] == ["a/rain/1", "b/rain/1"]
    assert_clean_is_clean(found)


def test_a_list_of_bytes_and_of_names_that_cannot_be(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    for content in (b"\xff\xfe \x00\x01", b"n" * 300 + b" " + b"m" * 300, b"../.. ..", b"\xb2 \xb3\n"):
        listed.write_bytes(content)
        with pytest.raises(UserError, match=r"list.txt lists .* put the images where it says"):
            find_pairs(listed, "train")
    layouts.write_pair(tmp_path / "1.png", tmp_path / "1gt.png", 1)
    listed.write_bytes(b"1.png 1.png")
    with pytest.raises(UserError, match=r"list.txt lists 1.png as its own clean image: fetch it again"):
        find_pairs(listed, "train").pairs[0]
    name = os.fsdecode(b"caf\xe9.png")  # no UTF-8, and a file all the same
    layouts.write_pair(tmp_path / "rain" / name, tmp_path / "gt" / name, 1)
    listed.write_bytes(b"/x/rain/caf\xe9.png /x/gt/caf\xe9.png\n")
    assert_clean_is_clean(find_pairs(listed, "train"))


# ---------------------------------------------------------------------------------------- errors and warnings


def test_rainy_without_clean_names_the_file(tmp_path: Path) -> None:
    root = layouts.rain200(tmp_path / "Rain200H")
    (root / "rain_data_train_Heavy/norain/norain-3.png").unlink()
    with pytest.raises(UserError, match=r"norain-3x2.png has no clean image"):
        find_pairs(root, "train")


def test_clean_without_rainy_is_a_warning(tmp_path: Path) -> None:
    root = layouts.rain200(tmp_path / "Rain200H")
    (root / "rain_data_train_Heavy/rain/X2/norain-3x2.png").unlink()
    assert "without a rainy one, not used: norain-3.png" in find_pairs(root, "train").warnings[0]


def test_two_sizes_name_the_file(tmp_path: Path) -> None:
    root = layouts.plain(tmp_path / "set", "rain", "norain")
    write_image(root / "norain/2.png", layouts.clean_image(2, (40, 56)))
    with pytest.raises(UserError, match=r"rain/2.png and .*norain/2.png have two sizes, 56x48 and 56x40"):
        read_pair(find_pairs(root, "train").pairs[1])


def test_a_broken_image_among_others_does_not_hide_a_layout(tmp_path: Path) -> None:
    layouts.rain12(tmp_path, count=4)
    (tmp_path / "2.png").write_bytes(b"no image")
    found = find_pairs(tmp_path, "test")
    assert len(found.pairs) == 4
    failed: list[UserError] = []
    assert check_pairs(found, failed=failed.append) == []
    assert [f"{tmp_path / '2.png'} is not an image" in str(error) for error in failed] == [True]
    with pytest.raises(UserError, match=r"2\.png is not an image"):
        check_pairs(found)


def test_odd_width_names_the_file(tmp_path: Path) -> None:
    root = layouts.rain800(tmp_path / "Rain800")
    odd = root / "training/3.jpg"
    write_image(odd, read_image(odd)[:, :-1])
    with pytest.raises(UserError, match=r"training/3.jpg is 111 pixels wide"):
        read_pair(find_pairs(root, "train", "Rain800").pairs[2])


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a folder"):
        find_pairs(tmp_path / "nowhere", "train")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="empty is empty; looked for rain/X2"):
        find_pairs(empty, "train")
    with pytest.raises(UserError, match="empty holds no images"):
        find_images([empty])
    for name in ("rain", "norain"):
        (tmp_path / "set" / name).mkdir(parents=True)
    with pytest.raises(UserError, match="set/rain holds no images"):
        find_pairs(tmp_path / "set", "train")
    (tmp_path / "DID" / "Rain_Light").mkdir(parents=True)
    with pytest.raises(UserError, match="Rain_Light holds no images"):
        find_pairs(tmp_path / "DID", "train")


def test_counts_are_checked_only_of_a_named_set(tmp_path: Path) -> None:
    root = layouts.rain200(tmp_path / "set")
    assert find_pairs(root, "train").warnings == ()
    assert (
        "holds 4 pairs; Rain200H's official train set has 1,800"
        in find_pairs(root, "train", "Rain200H").warnings[0]
    )
    assert any("heavy rain by its name" in w for w in find_pairs(root, "train", "Rain200L").warnings)
    real = layouts.real275(tmp_path / "Real275")
    assert "officially has 275" in find_images([real], "Real275").warnings[0]


def test_swapped_sides_are_noticed(tmp_path: Path) -> None:
    root = layouts.rain12(tmp_path / "Rain12")
    assert check_pairs(find_pairs(root, "test")) == []
    (warning,) = check_pairs(find_pairs(root, "test", rainy_side="right"))
    assert "looks cleaner" in warning
    assert "--rainy_side left" in warning
    swapped = layouts.plain(tmp_path / "set", "target", "input")
    (warning,) = check_pairs(find_pairs(swapped, "test"))
    assert "the folders' names" in warning


# ----------------------------------------------------------------------------------------------- real samples

PIECES = [
    ("Rain200H", "train", 2),
    ("Rain200H", "test", 5),
    ("Rain200L", "train", 1),
    ("Rain200L", "test", 2),
    ("Rain800", "train", 700),
    ("Rain800", "test", 100),
    ("Rain1400", "test", 2),
    ("SPA", "train", 2),
    ("SPA", "test", 2),
    ("Rain12", "test", 1),
]


@pytest.mark.parametrize(("dataset", "split", "count"), PIECES)
def test_real_pieces_load_with_the_right_side_as_clean(
    shared: Path, dataset: str, split: str, count: int
) -> None:
    found = find_pairs(shared / "data" / dataset, split, dataset)
    assert len(found.pairs) == count
    assert not looks_swapped(found.pairs)
    swapped = [Pair(pair.name, pair.clean, pair.rainy) for pair in found.pairs if pair.clean]
    assert len(swapped) == count
    assert looks_swapped(swapped)


def test_rain12_given_as_clean_left_is_noticed(shared: Path) -> None:
    given = find_pairs(shared / "data/Rain12", "test", "Rain800", rainy_side="right")
    assert any("--rainy_side left" in warning for warning in check_pairs(given))


def test_real_photographs(shared: Path) -> None:
    assert len(find_images([shared / "data/Real"]).pairs) == 44
    assert len(find_images([shared / "data/Real275"]).pairs) == 3
    for folder in ("Real", "Real275"):
        with pytest.raises(UserError, match="no test pairs"):
            find_pairs(shared / "data" / folder, "test")


# ---------------------------------------------------------------------------------------------- additive rain


def test_additive_or_not() -> None:
    rainy, clean = layouts.pair(1)
    assert (rainy == 255).any()
    assert why_not_additive(rainy, clean) == ""
    assert "darker" in why_not_additive(clean, rainy)
    tinted = rainy.copy()
    tinted[3, 4] = clean[3, 4] + np.array([5, 5, 6], np.uint8)
    assert "different additions" in why_not_additive(tinted, clean)
    clipped = np.full((1, 1, 3), 250, np.uint8)
    assert why_not_additive(np.array([[[255, 255, 255]]], np.uint8), clipped) == ""
    assert (
        why_not_additive(np.array([[[255, 252, 252]]], np.uint8), clipped) != ""
    )  # clipped by an addition of 2


def test_real_sets_that_are_additive_and_those_that_are_not(shared: Path) -> None:
    for dataset in ("Rain200H", "Rain200L"):
        assert not why_not_recombined(find_pairs(shared / "data" / dataset, "train"))
    for dataset in ("Rain800", "Rain1400", "SPA"):
        assert "exact grey addition" in why_not_recombined(find_pairs(shared / "data" / dataset, "test"))


# -------------------------------------------------------------------------------------------------- datasets/


def tree(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def run_check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *words: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["check.py", *words])
    with pytest.raises(SystemExit) as exit_:
        check.main()
    return int(exit_.value.code or 0), capsys.readouterr().out


def test_check_names_what_is_missing_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    root = layouts.rain200(tmp_path / "Rain200H", train=12, test=3)
    monkeypatch.setitem(CATALOGUE, "Rain200H", dataclasses.replace(CATALOGUE["Rain200H"], train=12, test=3))
    before = tree(root)
    status, said = run_check(monkeypatch, capsys, "Rain200H", str(root), "--deep")
    assert status == 0
    assert said.count("complete") == 2
    assert tree(root) == before

    folder = root / "rain_data_train_Heavy"
    (folder / "norain/norain-5.png").unlink()
    for path in (folder / "norain/norain-7.png", folder / "rain/X2/norain-7x2.png"):
        path.unlink()
    (folder / "rain/X2/norain-9x2.png").write_bytes(b"cut short")
    status, said = run_check(monkeypatch, capsys, "Rain200H", str(root), "--deep")
    assert status == 1
    assert "missing: norain-7x2\n" in said
    assert f"no clean image to the rainy {folder / 'rain/X2/norain-5x2.png'}" in said
    assert f"{folder / 'rain/X2/norain-9x2.png'} is not an image" in said
    assert "Rain200H train: 3 problems" in said
    assert "Rain200H test: complete" in said


def test_check_knows_each_numbering(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = check.missing_names
    monkeypatch.setitem(CATALOGUE, "Rain1400", dataclasses.replace(CATALOGUE["Rain1400"], train=28, test=42))
    names = [f"{scene}_{k}" for scene in (901, 902, 903) for k in range(1, 15)]
    assert missing("Rain1400", "test", names) == []
    assert missing("Rain1400", "test", [n for n in names if n != "902_7"]) == ["902_7"]
    monkeypatch.setitem(CATALOGUE, "Rain1200", dataclasses.replace(CATALOGUE["Rain1200"], train=9, test=3))
    assert missing("Rain1200", "test", ["0", "2"]) == ["1"]
    names = [f"Rain_{s}/train2018new/{n}" for s in ("Light", "Medium", "Heavy") for n in (1, 2, 3)]
    assert missing("Rain1200", "train", names[1:]) == ["Rain_Light/train2018new/1"]
    assert missing("Rain12", "test", [f"{n:03}" for n in range(1, 12)]) == ["012"]
    assert missing("Rain12", "test", ["a", "b"]) == []


def test_check_of_a_list_names_absent_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    root = layouts.spa(tmp_path / "SPA")
    monkeypatch.setitem(CATALOGUE, "SPA", dataclasses.replace(CATALOGUE["SPA"], train=3, test=2))
    assert run_check(monkeypatch, capsys, "SPA", str(root))[0] == 0
    (root / "real_world_gt/0/2gt.png").unlink()
    status, said = run_check(monkeypatch, capsys, "SPA", str(root), "--split", "train")
    assert status == 1
    assert f"missing: {root / 'real_world_gt/0/2gt.png'}" in said


def test_simulated_sets(tmp_path: Path) -> None:
    few = [dataclasses.replace(made, count={"train": 2, "test": 2}) for made in simulate.SETS]
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        simulate.simulate(tmp_path / name, seed, few)
    first, again, other = (
        {path.relative_to(tmp_path / name): content for path, content in tree(tmp_path / name).items()}
        for name in ("one", "again", "other")
    )
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[path] != other[path] for path in first)
    for dataset in ("Rain200H", "Rain200L"):
        for split in ("train", "test"):
            found = find_pairs(tmp_path / "one", split, dataset)
            assert found.root.parent.name == f"Simulated{dataset[4:]}"
            assert len(found.pairs) == 2
            assert not why_not_recombined(found)
            assert not looks_swapped(found.pairs)
    real = tmp_path / "one/SimulatedReal"
    assert len(find_images([real / "train"]).pairs) == len(find_pairs(real, "test").pairs) == 2
    assert "exact grey addition" in why_not_recombined(find_pairs(real, "test"))
