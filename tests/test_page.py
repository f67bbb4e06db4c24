"""The page: one entry an image, names that cannot break it, worst first, nothing from a network."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from metrix_code.page import THUMBNAIL_WIDTH, PageWriter
from utils import UserError, read_image, write_image

NASTY = 'a "b" <script>alert(1)</script> & #5 100% $title'
PICTURE = np.random.default_rng(0).integers(0, 255, (50, 400, 3), np.uint8)


class Elements(HTMLParser):
    """Every element as (tag, attributes), and all text outside of scripts and styles."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, text):
        if self.elements and self.elements[-1][0] not in ("script", "style"):
            self.text += text

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.elements if name == tag]


def shown(folder: Path, scores: dict[str, dict[str, float]]) -> Elements:
    """A page of images with these names and scores."""
    writer = PageWriter(folder, "t")
    for name, each in scores.items():
        writer.add({"name": name, "file": "1.png", **each}, PICTURE, PICTURE)
    return Elements(writer.finish())


@pytest.fixture
def page(tmp_path) -> Path:
    """Three images: one worse than its rainy input, one better, and one without scores or a clean side."""
    file = "é #5 100%.png"
    for name in (file, "10.png", "9.png"):
        write_image(tmp_path / name, PICTURE)
    writer = PageWriter(tmp_path, "Rain200H <SID>", "5 of 200 & more")
    scores = {"psnr": 30.0, "ssim": 0.9, "rainy_psnr": 20.0, "rainy_ssim": 0.5}
    writer.add({"name": "10", "file": "10.png"}, PICTURE, PICTURE)
    writer.add({"name": "9", "file": "9.png"} | scores, PICTURE, PICTURE, PICTURE)
    writer.add({"name": NASTY, "file": file} | scores | {"psnr": 18.5}, PICTURE, PICTURE, PICTURE)
    return writer.finish()


def test_one_entry_an_image_worst_first_and_the_unscored_last(page):
    entries, text = Elements(page).all("article"), Elements(page).text
    assert [entry["data-gain"] for entry in entries] == ["-1.5", "10.0", ""]
    assert [entry["data-name"] for entry in entries] == ["2", "0", "1"]  # 9, 10, a ...
    assert "3 images: PSNR 24.250 dB (rainy 20.000)  SSIM 0.9000 (rainy 0.5000)" in text
    assert "+10.000" in text and "-1.500" in text


def test_names_are_shown_as_they_are_and_break_nothing(page):
    elements = Elements(page)
    assert NASTY in elements.text and "Rain200H <SID>" in elements.text and "5 of 200 & more" in elements.text
    assert len(elements.all("script")) == 1
    assert f"derained image {NASTY}" in [image["alt"] for image in elements.all("img")]


def test_every_file_it_names_lies_below_its_folder_and_nothing_comes_from_a_network(page):
    named = [image["src"] for image in Elements(page).all("img")]
    for entry in Elements(page).all("article"):
        named += [entry[key] for key in ("data-rainy", "data-derained", "data-clean") if entry.get(key)]
    assert len(named) == 2 * 3 + 3 + 3 + 2
    for url in named:
        assert not re.search(r"[#\s\"]|%(?![0-9A-F]{2})|^/|:", url), url
        assert (page.parent / unquote(url)).is_file()
    assert not re.search(r"https?:|//\w|@import|url\(", page.read_text(encoding="utf-8"))


def test_images_load_lazily_and_small_and_a_keyboard_reaches_their_sliders(page):
    elements = Elements(page)
    images, sliders = elements.all("img"), elements.all("input")
    assert len(images) == 6 and all(image["loading"] == "lazy" for image in images)
    for image in images:
        assert read_image(page.parent / image["src"]).shape == (45, THUMBNAIL_WIDTH, 3)
    clean = [path.name for path in (page.parent / "page").glob("*clean*")]
    assert len(clean) == 4  # two images of three, small and large
    assert [slider["type"] for slider in sliders] == ["range"] * 3
    assert all(slider["aria-label"] for slider in sliders)
    assert [button.get("class") for button in elements.all("button")].count("show-clean") == 2


def test_without_a_clean_side_the_gain_is_in_niqe_where_less_is_better(tmp_path):
    after = {"better": 2.0, "worse": 5.0, "same": 4.0}
    elements = shown(tmp_path, {name: {"niqe": niqe, "rainy_niqe": 4.0} for name, niqe in after.items()})
    assert [entry["data-gain"] for entry in elements.all("article")] == ["-1.0", "0.0", "2.0"]
    assert "gain in NIQE" in elements.text
    assert [span["class"] for span in elements.all("span") if "class" in span] == ["worse", "same", "better"]
    assert "+0.0000" in elements.text


def test_infinite_scores_are_counted_and_sort_and_equal_gains_stand_by_name(tmp_path):
    scores = {"10": (20.0, np.inf), "a": (np.inf, np.inf), "9": (20.0, np.inf), "b": (20.0, 21.0)}
    keys = ("rainy_psnr", "psnr")
    elements = shown(tmp_path, {name: dict(zip(keys, both, strict=True)) for name, both in scores.items()})
    assert [entry["data-gain"] for entry in elements.all("article")] == ["0.0", "1.0", "Infinity", "Infinity"]
    titles = [compare.get("data-title") for compare in elements.all("div")]
    assert list(filter(None, titles)) == ["a", "b", "9", "10"]
    assert "PSNR 21.000 dB (rainy 20.000)  (left out: infinite psnr: 3, " in elements.text


@pytest.mark.parametrize("scores", [{}, {"psnr": 20.0}, {"psnr": 20.0, "rainy_psnr": 18.0}])
def test_sorting_is_offered_where_there_is_a_gain(tmp_path, scores):
    (label,) = shown(tmp_path, {"x": scores}).all("label")
    assert ("hidden" in label) == (len(scores) < 2)


def test_an_index_that_is_not_a_page_is_not_overwritten(tmp_path):
    for _ in range(2):
        assert shown(tmp_path / "ours", {}).all("article") == []  # our own may be
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(UserError, match=r"index\.html is not a page of ours: give another --save_path"):
        PageWriter(tmp_path, "t")
