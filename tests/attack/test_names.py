"""Names of any characters: matching, ordering, outputs, numbering; and files that are called so."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import strategies as st

from datasets.catalogue import CATALOGUE
from datasets.check import missing_names
from datasets.names import distinct_names, match
from tests.attack.conftest import Budget
from utils import UserError, natural_key, one_line, printable, write_atomically

# What names of images are made of, and what they should not be: digits that are no numbers, a name that
# is not UTF-8 (as Python holds it), dots, a line break
# fmt: off
PARTS = st.sampled_from([
    "norain-", "rain-", "rain_", "gt", "x2", "derained", "_", "-", ".", " ", "im", "Im", "901", "14", "1",
    "01", "0007", "²", "②", "٣", "\u07c0", "१", "Ⅷ", "½", "é", "e\u0301", "ß", "İ", "\udce9", "\n",
    "\u202e", "雨", "😀",
])
# fmt: on
STEMS = st.one_of(st.lists(PARTS, min_size=1, max_size=6).map("".join), st.text(min_size=1, max_size=12))
NAMES = st.tuples(STEMS, st.sampled_from([".png", ".jpg", ".PNG", ".tif"])).map("".join).filter(
    lambda name: not set(name) & {"/", "\0"} and not name.startswith(".")
)  # fmt: skip


def test_matching_gives_each_image_at_most_one_partner(budget: Budget) -> None:
    def check(rainy: list[str], clean: list[str]) -> None:
        images, others = (
            [Path(side, name) for name in names] for side, names in (("r", rainy), ("c", clean))
        )
        pairs, lone, lone_clean = match(images, others)
        assert [path for path in images if path not in lone] == [one for one, _ in pairs]
        assert sorted([one for one, _ in pairs] + lone) == sorted(images)
        assert {other for _, other in pairs} | set(lone_clean) == set(others)
        assert not {other for _, other in pairs} & set(lone_clean)
        same = {path.stem for path in images if [p.stem for p in images].count(path.stem) == 1}
        same &= {path.stem for path in others if [p.stem for p in others].count(path.stem) == 1}
        assert all(one.stem == other.stem for one, other in pairs if one.stem in same)
        backwards = match(images[::-1], others[::-1])
        assert sorted(backwards.pairs) == sorted(pairs)

    names = st.lists(NAMES, max_size=8, unique=True)
    budget.draw(100, check, rainy=names, clean=names)


def test_outputs_are_told_apart_and_names_are_ordered(budget: Budget) -> None:
    def check(names: list[tuple[str, str]]) -> None:
        files = list(dict.fromkeys(Path("set", folder, name) for folder, name in names))
        outputs = distinct_names(files, Path("set"))
        assert len(set(outputs)) == len(files)
        assert all(outputs)
        backwards = files[::-1]
        keys = [sorted(map(natural_key, each)) for each in (files, backwards)]
        assert keys[0] == keys[1]
        line = printable(one_line(files))
        assert line.isprintable()
        line.encode()

    folders = st.sampled_from(["", "a", "b/c", "1"])
    budget.draw(100, check, names=st.lists(st.tuples(folders, NAMES), max_size=8))


def test_any_numbering_is_checked(budget: Budget) -> None:
    def check(dataset: str, names: list[str]) -> None:
        for split, count in CATALOGUE[dataset].counts.items():
            missing = missing_names(dataset, split, [Path(name).stem for name in names])
            assert len(missing) <= count

    few = [name for name, entry in CATALOGUE.items() if sum(entry.counts.values()) < 5000]
    budget.draw(50, check, dataset=st.sampled_from(few), names=st.lists(NAMES, max_size=8))


def test_a_file_of_any_name_is_written_whole_or_told(budget: Budget, tmp_path: Path) -> None:
    def check(name: bytes, there: bool, fails: bool) -> None:
        path = Path(os.fsdecode(bytes(tmp_path) + b"/" + name))

        def write(temporary: Path) -> None:
            temporary.write_text("new")
            if fails:
                raise OSError(28, "No space left on device")

        try:
            if there:
                path.write_text("old")
            write_atomically(path, write)
        except UserError as error:
            assert str(error).startswith(f"{printable(path)} cannot be written")
            assert fails or len(name) > 255
            assert not there or path.read_text() == "old"
        except OSError:
            assert there  # and no such file can be
            assert len(name) > 255
        else:
            assert path.read_text() == "new"
        left = [each for each in tmp_path.iterdir() if each != path]
        assert left == []
        path.unlink(missing_ok=True) if len(name) < 256 else None

    names = st.one_of(
        st.binary(min_size=1, max_size=12), st.integers(1, 300).map(lambda n: b"n" * n + b".png")
    )
    good = names.filter(lambda name: not set(name) & set(b"/\0") and name not in (b".", b".."))
    budget.draw(50, check, name=good, there=st.booleans(), fails=st.booleans())
