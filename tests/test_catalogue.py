"""The catalogue: an entry alone makes a new set found, counted and checked."""

from pathlib import Path

import pytest

from datasets.catalogue import CATALOGUE, Entry, columns, get_entry, is_simulated, printed
from datasets.layouts import claimed_by, find_images, find_pairs
from datasets.pairs import check_pairs
from tests import layouts


@pytest.fixture(autouse=True)
def two_more(monkeypatch) -> None:
    first = {"test": 7}
    halved = Entry("Rain300M", 4, 3, "Rain-300M", ("psnr",), called="m_?300", rainy_half="left", first=first)
    listed = Entry("Fog", 3, 2, sides=("foggy/2x", "sharp"), list_file="fog.txt")
    for entry in (halved, listed):
        monkeypatch.setitem(CATALOGUE, entry.name, entry)


def halves(root: Path) -> Path:
    for n in range(7, 10):
        layouts.write_side_by_side(root / f"test/{n}.png", n, "left")
    return layouts.halves(root, "left", {"train/{}.png": 4})


def test_a_new_set_is_found_by_its_folders_names_counted_and_checked(tmp_path, run_here, capsys):
    for name in ("Rain300M", "M_300"):
        root = halves(tmp_path / name)
        found = find_pairs(root, "train")  # no set given: recognised by its name, not measured
        assert "Rain300M, side by side, rainy left:" in found.describe()
        assert check_pairs(found) == []
    layouts.rain200(tmp_path / "others/Rain200H")
    root = halves(tmp_path / "others/Rain300M")
    found = find_pairs(tmp_path / "others", "test", "Rain300M")
    assert (found.root, found.warnings) == (root / "test", ())
    assert run_here("datasets/check.py", "Rain300M", str(root)) == 0
    (root / "test/8.png").unlink()
    assert run_here("datasets/check.py", "Rain300M", str(root)) == 1
    said = capsys.readouterr().out
    assert "Rain300M train: complete" in said and "missing: 8\n" in said
    assert "holds 2 pairs; Rain300M's official test set has 3" in said


def test_a_new_sets_own_folders_and_list_are_known(tmp_path):
    root = layouts.plain(tmp_path / "a", "Foggy/2X", "Sharp")
    found = find_pairs(root, "train", "Fog")
    assert "Foggy/2X/ + Sharp/: 3 pairs" in found.describe()
    assert {pair.rainy.path.parent.name for pair in find_images([root]).pairs} == {"2X"}
    (root / "fog.txt").write_text("".join(f"/x/Foggy/2X/{n}.png /x/Sharp/{n}.png\n" for n in (1, 2)))
    assert "list fog.txt: 2 pairs" in find_pairs(root, "train", "Fog").describe()


def test_a_folders_name_means_its_set_with_a_year_or_a_count():
    for name in ("DID-MDN-test", "DID2018", "DIDMDN1200", "Test1200"):
        assert claimed_by(Path(name)) == "Rain1200"
    for name in ("DDN-Data", "DDN1400", "Rain1400"):
        assert claimed_by(Path(name)) == "Rain1400"
    for name in ("candid", "Test2800", "Rain14000"):
        assert claimed_by(Path(name)) == ""


def test_a_new_set_is_a_column_of_the_tables_by_its_printed_name():
    assert columns("psnr") == ["Rain200H", "Rain200L", "Rain800", "Rain1200", "Rain1400", "SPA", "Rain-300M"]
    assert columns("niqe") == ["SPA", "Real-275"]
    for spelling in ("Real275", "real-275", "REAL275"):
        assert printed(spelling) == "Real-275"
    assert printed("Rain300M") == "Rain-300M"
    assert printed("somebody's own") == "somebody's own"


def test_what_is_simulated_is_known_by_name_or_folder():
    assert is_simulated(Path("datasets/simulated/x"), "Rain200H")
    assert is_simulated(Path("elsewhere"), "Simulated200H")
    assert not is_simulated(Path("datasets/Rain200H"), "Rain200H")
    assert get_entry("unheard of") == Entry("unheard of")


def test_every_entry_is_whole():
    for entry in CATALOGUE.values():
        assert entry.counts
        assert entry.rainy_half in ("", "left", "right")
        assert set(entry.series) | set(entry.first) <= set(entry.counts)
        assert all(entry.counts[split] % times == 0 for split, times in entry.series.items())
