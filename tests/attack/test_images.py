"""Pictures with anything done to their bytes: pixels, or the one line that names the file."""

from __future__ import annotations

import functools
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
from hypothesis import strategies as st

from tests import layouts
from tests.attack.conftest import Budget
from utils import MOST_PIXELS, UserError, image_size, read_image

SMALL = layouts.clean_image(3, (13, 17))
# (what happens, where from the start or the end, how much of it)
CHANGES = st.tuples(
    st.sampled_from(["flip", "random", "cut", "remove", "repeat", "insert", "number", "other"]),
    st.one_of(st.integers(0, 80), st.integers(-40, -1), st.integers(0, 1 << 20)),
    st.integers(1, 64),
)


@functools.cache
def pictures() -> list[tuple[str, bytes]]:
    """(suffix, content): every kind that OpenCV writes of a small image, and real ones where they are."""
    deep = SMALL.astype(np.uint16) * 257
    kinds = [
        *((suffix, SMALL, []) for suffix in (".png", ".bmp", ".jpg", ".tif", ".webp")),
        (".png", deep, []),
        (".tif", deep, []),
        (".png", SMALL[..., 0], []),
        (".png", np.dstack((SMALL, SMALL[..., :1])), []),
        (".png", SMALL[..., 0] // 128 * 255, [cv2.IMWRITE_PNG_BILEVEL, 1]),
        (".jpg", SMALL, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
        (".jpg", SMALL[..., 0], []),
    ]
    made = [(suffix, cv2.imencode(suffix, image, how)[1].tobytes()) for suffix, image, how in kinds]
    shared = Path(__file__).resolve().parents[3] / "shared/data"
    real = [path for path in shared.rglob("*") if path.suffix in (".jpg", ".png")]
    real.sort(key=lambda path: (path.stat().st_size, path.name))
    return made + [(path.suffix, path.read_bytes()) for path in real[:6]]


def changed(content: bytes, change: tuple[str, int, int], seed: int) -> bytes:
    what, where, much = change
    at = where % max(1, len(content))
    rng = np.random.default_rng((seed, at))
    head, part, tail = content[:at], content[at : at + much], content[at + much :]
    if what == "cut":
        return head
    if what == "number":  # a length or a size that cannot be
        return (
            head + rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\xfd\xe8"]) + tail
        )
    if what == "other":
        others = pictures()
        return head + others[int(rng.integers(len(others)))][1][at:]
    new = {
        "flip": bytes([part[0] ^ (1 << (much % 8))]) + part[1:] if part else b"",
        "random": rng.bytes(len(part)),
        "remove": b"",
        "repeat": part + part,
        "insert": rng.bytes(much) + part,
    }
    return head + new[what] + tail


def checksum_mended(content: bytes) -> bytes:
    """A PNG's header, whatever it says now, with the checksum that makes it believed."""
    if not content.startswith(b"\x89PNG") or len(content) < 33:
        return content
    return content[:29] + zlib.crc32(content[12:29]).to_bytes(4, "big") + content[33:]


def test_whatever_is_done_to_a_picture_it_is_read_or_named(budget: Budget, tmp_path: Path) -> None:
    def check(which: int, suffix: str, changes: list[tuple[str, int, int]], seed: int, mend: bool) -> None:
        own, content = pictures()[which % len(pictures())]
        for change in changes:
            content = changed(content, change, seed)
        content = checksum_mended(content) if mend else content
        path = tmp_path / f"picture{suffix or own}"
        path.write_bytes(content)
        began = time.monotonic()
        try:
            image = read_image(path)
            size = image_size(path)
        except UserError as error:
            assert str(error).startswith(str(path))
            assert "\n" not in str(error)
        else:
            assert image.dtype == np.uint8
            assert sorted(image.shape) == sorted((*size, 3))  # turned, maybe, as a camera was held
            assert image.shape[2] == 3
            assert 0 < size[0] * size[1] <= MOST_PIXELS
        assert time.monotonic() - began < 30

    budget.draw(
        60,
        check,
        which=st.integers(0, 30),
        suffix=st.sampled_from(["", "", "", ".png", ".jpg", ".tif"]),
        changes=st.lists(CHANGES, max_size=4),
        seed=st.integers(0, 1000),
        mend=st.booleans(),
    )
