"""Pictures, names, folder trees and options of any kind: taken as they are, or told in one line."""

import contextlib
import dataclasses
import io
import math
import os
import re
import shutil
import time
import zlib
from collections import Counter
from functools import partial, reduce
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from hypothesis import strategies as st

from benchmarks.run import Benchmark
from config import EVALUATIONS, STUDENTS, TEACHERS, Training
from datasets.catalogue import CATALOGUE
from datasets.check import check_split, find_split
from datasets.layouts import find_images, find_pairs
from datasets.pairs import (
    ListedPairs,
    PairSet,
    check_pairs,
    distinct_names,
    match,
    read_pair,
    why_not_recombined,
)
from derain import Derain
from engine import Schedule
from machinery.loading import Batches
from machinery.options import Machine, parse, to_dict
from tests import layouts
from tests.attack.conftest import Budget
from tests.small import ALONE
from utils import (
    MOST_PIXELS,
    UserError,
    escape_unprintable,
    image_size,
    join_names,
    natural_key,
    read_image,
)

SMALL = layouts.clean_image(3, (13, 17))
PICTURES = [
    (suffix, cv2.imencode(suffix, image, how)[1].tobytes())
    for suffix, image, how in (
        *((suffix, SMALL, []) for suffix in (".png", ".bmp", ".jpg", ".tif", ".webp")),
        *((suffix, SMALL.astype(np.uint16) * 257, []) for suffix in (".png", ".tif")),
        *((suffix, SMALL[..., 0], []) for suffix in (".png", ".jpg")),
        (".png", np.dstack((SMALL, SMALL[..., :1])), []),
        (".png", SMALL[..., 0] // 128 * 255, [cv2.IMWRITE_PNG_BILEVEL, 1]),
        (".jpg", SMALL, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
    )
]
# (where, from the start or the end; how many bytes go, None: as many as come; those that come)
CHANGES = st.tuples(
    st.one_of(st.integers(0, 80), st.integers(-40, -1), st.integers(0, 1 << 20)),
    st.none() | st.integers(0, 64) | st.just(1 << 20),
    st.binary(max_size=64)
    | st.sampled_from([0xFFFFFFFF, 0x7FFFFFFF, 0, 65000]).map(lambda size: size.to_bytes(4)),  # no true sizes
)


def changed(content: bytes, change: tuple[int, int | None, bytes]) -> bytes:
    where, gone, new = change
    at = where % max(1, len(content))
    return content[:at] + new + content[at + (len(new) if gone is None else gone) :]


def checksum_mended(content: bytes) -> bytes:
    """A PNG's header, whatever it says now, with the checksum that makes it believed."""
    if not content.startswith(b"\x89PNG") or len(content) < 33:
        return content
    return content[:29] + zlib.crc32(content[12:29]).to_bytes(4, "big") + content[33:]


def test_whatever_is_done_to_a_picture_it_is_read_or_named(budget: Budget, tmp_path: Path) -> None:
    def check(picture: tuple[str, bytes], suffix: str, changes: list[Any], mend: bool) -> None:
        own, content = picture
        content = reduce(changed, changes, content)
        content = checksum_mended(content) if mend else content
        path = tmp_path / f"picture{suffix or own}"
        path.write_bytes(content)
        began = time.monotonic()
        try:
            image = read_image(path)
            size = image_size(path)
        except UserError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
        else:
            assert image.dtype == np.uint8 and image.shape[2] == 3
            assert sorted(image.shape) == sorted((*size, 3))  # turned, maybe, as a camera was held
            assert 0 < size[0] * size[1] <= MOST_PIXELS
        assert time.monotonic() - began < 30

    few, suffixes = st.lists(CHANGES, max_size=4), st.sampled_from(["", "", "", ".png", ".jpg", ".tif"])
    pictures = st.sampled_from(PICTURES)
    budget.draw(60, check, picture=pictures, suffix=suffixes, changes=few, mend=st.booleans())


# ----------------------------------------------------------------------------------------------------- names

# What names of images are made of, and what they should not be: digits that are no numbers, a name that
# is not UTF-8 (as Python holds it), dots, a line break
# fmt: off
PARTS = st.sampled_from([
    "norain-", "rain-", "rain_", "gt", "x2", "derained", "_", "-", ".", " ", "im", "Im", "901", "14", "1",
    "01", "0007", "²", "②", "٣", "\u07c0", "१", "Ⅷ", "½", "é", "e\u0301", "ß", "İ", "\udce9", "\n",
    "\u202e", "雨", "😀",
])
# fmt: on
STEMS = st.lists(PARTS, min_size=1, max_size=6).map("".join) | st.text(min_size=1, max_size=12)
SUFFIXES = st.sampled_from([".png", ".jpg", ".PNG", ".tif"])
NAMES = st.builds(str.__add__, STEMS, SUFFIXES).filter(lambda name: not re.search(r"^\.|[/\0]", name))


def test_names_are_matched_ordered_told_apart_and_printed(budget: Budget) -> None:
    def check(rainy: list[str], clean: list[str]) -> None:
        images, others = [Path("r", name) for name in rainy], [Path("c", name) for name in clean]
        pairs, lone, lone_clean = match(images, others)
        assert [path for path in images if path not in lone] == [one for one, _ in pairs]
        assert sorted([one for one, _ in pairs] + lone) == sorted(images)
        assert {other for _, other in pairs} | set(lone_clean) == set(others)
        assert not {other for _, other in pairs} & set(lone_clean)
        counts = [Counter(path.stem for path in side) for side in (images, others)]
        alone = {stem for stem in counts[0] if counts[0][stem] == counts[1][stem] == 1}
        assert all(one.stem == other.stem for one, other in pairs if one.stem in alone)
        assert sorted(match(images[::-1], others[::-1]).pairs) == sorted(pairs)

        files = [*(Path("set", path) for path in images), *(Path("set/b/c", path) for path in others)]
        outputs = distinct_names(files, Path("set"))
        assert len(set(outputs)) == len(files) and all(outputs)
        assert sorted(map(natural_key, files)) == sorted(map(natural_key, files[::-1]))
        line = escape_unprintable(join_names(files))
        assert line.isprintable() and (line.encode() or not files)

    names = st.lists(NAMES, max_size=8, unique=True)
    budget.draw(100, check, rainy=names, clean=names)


# ---------------------------------------------------------------------------------------------- folder trees

# fmt: off
FOLDERS = st.sampled_from([
    "train", "test", "Testing", "training", "test_syn", "rain_data_train_Heavy", "rain_data_test_Light",
    "rain", "Rain", "norain", "X2", "x2", "input", "target", "gt", "rainy", "rainy_image", "ground_truth",
    "clean", "Real", "Rain_Light", "Rain_Heavy", "train2018new", "Rain12", "Rain800", "Rain200H", "Rain200L",
    "DID-MDN-test", "SPA", "real_world", "test_nature", "simulated", "x.png", ".hidden", "²", "caf\udce9",
])
ODD = ["norain-1.png", "norain-1x2.png", "rain-1.png", "1gt.png", "1_1.jpg", "1_2.jpg", "1.JPG"]
FILES = st.integers(0, 4).map("{}.png".format) | st.sampled_from(ODD) | st.just("real_world.txt") | NAMES
PLACES = st.tuples(st.lists(FOLDERS, max_size=4), FILES).map(lambda place: Path(*place[0], place[1]))
# One half of the trees begins as a true layout
STARTS = st.sampled_from([
    None, *layouts.OFFICIAL_LAYOUT.values(), layouts.merged, layouts.rain100, layouts.rain12,
])
# fmt: on
LISTS = st.lists(st.one_of(PLACES.map(os.fsencode), st.binary(max_size=9)), max_size=5)


CLEAN = layouts.clean_image(1, (6, 8))
RAINY = np.maximum(CLEAN, np.eye(6, 8, dtype=np.uint8)[..., None] * 255)
ONE, BOTH, ODD_SIDES = (
    cv2.imencode(".png", image)[1].tobytes()
    for image in (RAINY, np.hstack((RAINY, CLEAN)), np.hstack((RAINY, CLEAN[:, :-1])))
)
LINKS = [partial(Path.symlink_to, target=target) for target in (".", "nowhere")]
THINGS = st.sampled_from([*[ONE] * 4, BOTH, BOTH, ODD_SIDES, ONE[:30], b"", Path.mkdir, *LINKS])


def put(path: Path, thing: Any) -> None:
    """`thing` at `path`, unless something else is there, or in the way."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(path):
            thing(path) if callable(thing) else path.write_bytes(thing)


def assert_sound(found: PairSet) -> None:
    found.describe()
    check_pairs(found)
    why_not_recombined(found)
    assert len(found.pairs) > 0 and "\n" not in found.layout
    names = [pair.name for pair in found.pairs]
    assert isinstance(found.pairs, ListedPairs) or len(set(names)) == len(names)
    for pair in found.pairs:
        assert pair.rainy != pair.clean and ".." not in pair.name.split("/")
        rainy, clean = read_pair(pair)
        assert rainy.dtype == np.uint8 and (clean is None or clean.shape == rainy.shape)


def test_any_tree_is_read_or_told_and_left_as_it_is(budget: Budget, tmp_path: Path) -> None:
    root = tmp_path / "set"

    def check(start, things, listed: list[bytes], split: str, dataset: str, side: str, inside: Path) -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        if start:
            start(root)
        for path, thing in things:
            put(root / path, thing)
        for path in list(root.rglob("real_world.txt")):
            if listed and path.is_file() and path.stat().st_size < 2000:
                path.write_bytes(b" ".join(listed) + b"\n")
        before = {path: path.lstat().st_mtime_ns for path in root.rglob("*")}
        for act in (
            lambda: find_pairs(root, split, dataset, side),
            lambda: find_pairs(root / inside.parent, split, dataset, side),
            lambda: find_images([root], dataset),
            lambda: find_images([root / inside, root], dataset),
            lambda: (
                check_split(dataset, split, find_split(dataset, split, root))
                if split in CATALOGUE[dataset].counts
                else None
            ),
        ):
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    found = act()
                if isinstance(found, PairSet):
                    assert_sound(found)
            except UserError as error:
                assert str(error)
        assert before == {path: path.lstat().st_mtime_ns for path in root.rglob("*")}

    sets = st.sampled_from([name for name in CATALOGUE if name not in ("SPA", "Rain1200", "Rain1400")])
    things = st.lists(st.tuples(PLACES, THINGS), max_size=12)
    splits, sides = st.sampled_from(["train", "test"]), st.sampled_from(["auto", "auto", "left", "right"])
    given = {"start": STARTS, "things": things, "listed": LISTS, "split": splits}
    budget.draw(25, check, **given, dataset=sets, side=sides, inside=PLACES)


# --------------------------------------------------------------------------------------------------- options

RECORDS: list[Machine] = [
    *TEACHERS.values(),
    *STUDENTS.values(),
    *EVALUATIONS.values(),
    Derain(),
    Benchmark(),
]
# fmt: off
WORDS = st.one_of(
    st.sampled_from([
        "", " ", "nan", "inf", "-inf", "1e400", "-0.0", "0", "-1", "1", "2", "1.5", "0.5", "1e-320", "1e308",
        "9" * 30, "9" * 5000, "1" + "0" * 400, "0x10", "1_000", "٣", "²", "True", "False", "yes", "none",
        "auto", "left", "/", ".", "a\nb", "\udce9", "{dataset}", "1,2,3", "8,8,8", "1,,2", ",", "1,nan,2",
        "24,32", "64,64,64", "512,512,513",
    ]),
    st.integers().map(str),
    st.floats().map(repr),
    st.lists(st.integers(-3, 600), max_size=4).map(lambda numbers: ",".join(map(str, numbers))),
    st.text(max_size=6).filter(lambda text: "\0" not in text and not text.startswith("-")),
)
# fmt: on


def options_of(record: Machine) -> list[str]:
    fields = dataclasses.fields(record)
    return [each.name for each in fields if "help" in each.metadata and not each.metadata.get("positional")]


def numbers_in(value: Any) -> list[float]:
    if isinstance(value, tuple):
        return [number for each in value for number in numbers_in(each)]
    return [value] if isinstance(value, int | float) else []


def test_options_are_sound_or_refused_by_name(budget: Budget) -> None:
    def check(record: Machine, given: list[tuple[int, list[str]]]) -> None:
        names = [options_of(record)[at % len(options_of(record))] for at, _ in given]
        line = [word for name, (_, words) in zip(names, given, strict=True) for word in (f"--{name}", *words)]
        if isinstance(record, Derain):
            line = ["photograph.jpg", *line]
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                made = parse(record, "", line)
        except SystemExit as left:
            assert left.code == 2
            *usage, error = said.getvalue().splitlines()
            assert all(text.startswith(("usage: ", " ")) for text in usage)
            assert any(f"--{name}" in error for name in names) or "unrecognized arguments" in error
            return
        except UserError as error:
            assert any(f"--{name}" in str(error) for name in names), error
            return
        assert made.validate() is None
        assert all(map(math.isfinite, numbers_in(tuple(vars(made).values()))))
        assert to_dict(made).keys() == vars(made).keys()
        if isinstance(made, Training):  # what the loop makes of them, before it creates anything
            schedule = Schedule(made, 1800)
            assert schedule.steps > 0 and all(drop >= 0 for drop in schedule.drops)
            assert schedule.validates(schedule.steps) and bool(schedule.validations) == bool(made.val_every)
            steps = range(schedule.steps)
            batches = Batches([], ALONE, steps, batch_size=made.batchSize, seed=made.seed)
            assert len(next(batches.keys(1800, 0))) == made.batchSize

    given = st.tuples(st.integers(0, 99), st.lists(WORDS, min_size=1, max_size=2))
    budget.draw(150, check, record=st.sampled_from(RECORDS), given=st.lists(given, max_size=4))
