"""Random folder trees, made of what datasets' folders hold and of what they should not."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
from hypothesis import strategies as st

from datasets.catalogue import CATALOGUE
from datasets.check import Check, check_split
from datasets.layouts import find_images, find_pairs, released_real_folder
from datasets.pairs import Found, ListedPairs, check_pairs, read_pair, why_not_recombined
from tests import layouts
from tests.attack.conftest import Budget
from tests.attack.test_names import NAMES
from utils import UserError

# fmt: off
FOLDERS = st.sampled_from([
    "train", "test", "Testing", "training", "test_syn", "rain_data_train_Heavy", "rain_data_test_Light",
    "rain", "Rain", "norain", "X2", "x2", "input", "target", "gt", "rainy", "rainy_image", "ground_truth",
    "clean", "Real", "Rain_Light", "Rain_Heavy", "train2018new", "Rain12", "Rain800", "Rain200H", "Rain200L",
    "DID-MDN-test", "SPA", "real_world", "test_nature", "simulated", "x.png", ".hidden", "²", "caf\udce9",
])
# fmt: on
FILES = st.one_of(
    st.integers(0, 4).map("{}.png".format),
    st.sampled_from(
        ["norain-1.png", "norain-1x2.png", "rain-1.png", "1gt.png", "1_1.jpg", "1_2.jpg", "1.JPG"]
    ),
    st.just("real_world.txt"),
    NAMES,
)
PLACES = st.tuples(st.lists(FOLDERS, max_size=4), FILES).map(lambda place: Path(*place[0], place[1]))
THINGS = st.sampled_from(
    [
        "whole",
        "whole",
        "whole",
        "whole",
        "both",
        "both",
        "odd",
        "broken",
        "empty",
        "folder",
        "pipe",
        "up",
        "gone",
    ]
)
# One half of the trees begins as a true layout
STARTS = st.sampled_from(
    [None, *layouts.OFFICIAL_LAYOUT.values(), layouts.merged, layouts.rain100, layouts.rain12]
)
LISTS = st.lists(st.one_of(PLACES.map(os.fsencode), st.binary(max_size=9)), max_size=5)


@functools.cache
def content(what: str) -> bytes:
    clean = layouts.clean_image(1, (6, 8))
    rainy = np.maximum(clean, np.eye(6, 8, dtype=np.uint8)[..., None] * 255)
    images = {"whole": rainy, "both": np.hstack((rainy, clean)), "odd": np.hstack((rainy, clean[:, :-1]))}
    whole = cv2.imencode(".png", images.get(what, clean))[1].tobytes()
    return {"broken": whole[:30], "empty": b""}.get(what, whole)


def put(path: Path, what: str) -> None:
    """`what` at `path`, unless something else is there, or in the way."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if what == "folder":
            path.mkdir()
        elif what == "pipe":
            os.mkfifo(path)
        elif what in ("up", "gone"):
            path.symlink_to("." if what == "up" else "nowhere")
        elif not os.path.lexists(path):
            path.write_bytes(content(what))
    except OSError:
        pass


def tree(root: Path) -> set[tuple[str, int]]:
    return {(str(path), path.lstat().st_mtime_ns) for path in root.rglob("*")}


def assert_sound(found: Found) -> None:
    assert len(found.pairs) > 0
    assert "\n" not in found.layout
    names = [pair.name for pair in found.pairs]
    assert isinstance(found.pairs, ListedPairs) or len(set(names)) == len(names)
    for pair in found.pairs:
        assert pair.rainy != pair.clean
        assert ".." not in pair.name.split("/")
        rainy, clean = read_pair(pair)
        assert rainy.dtype == np.uint8
        assert clean is None or clean.shape == rainy.shape


def test_any_tree_is_read_or_told_and_left_as_it_is(budget: Budget, tmp_path: Path) -> None:
    root = tmp_path / "set"

    def check(start, things, listed: list[bytes], split: str, dataset: str, side: str, inside: Path) -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        if start:
            start(root)
        for path, what in things:
            put(root / path, what)
        for path in list(root.rglob("real_world.txt")):
            if listed and path.is_file() and path.stat().st_size < 2000:
                path.write_bytes(b" ".join(listed) + b"\n")
        before = tree(root)
        options = Check(dataset, root, rainy_side=side, deep=True)
        for act in (
            lambda: find_pairs(root, split, dataset, side),
            lambda: find_pairs(root / inside.parent, split, dataset, side),
            lambda: find_images([root], dataset),
            lambda: find_images([root / inside, root], dataset),
            lambda: check_split(dataset, split, options) if split in CATALOGUE[dataset].counts else None,
            lambda: released_real_folder(root),
        ):
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    found = act()
                if isinstance(found, Found):
                    found.describe()
                    check_pairs(found)
                    assert_sound(found)
                    why_not_recombined(found)
            except UserError as error:
                assert str(error)
        assert tree(root) == before

    budget.draw(
        25,
        check,
        start=STARTS,
        things=st.lists(st.tuples(PLACES, THINGS), max_size=12),
        listed=LISTS,
        split=st.sampled_from(["train", "test"]),
        dataset=st.sampled_from([name for name in CATALOGUE if name not in ("SPA", "Rain1200", "Rain1400")]),
        side=st.sampled_from(["auto", "auto", "left", "right"]),
        inside=PLACES,
    )
