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


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (50, 400, 3), np.uint8)


@pytest.fixture
def page(tmp_path, picture) -> Path:
    """Three images: one worse than its rainy input, one better, and one without scores or a clean side."""
    file = "é #5 100%.png"
    for name in (file, "10.png", "9.png"):
        write_image(tmp_path / name, picture)
    writer = PageWriter(tmp_path, "Rain200H <SID>", "5 of 200 & more")
    scores = {"psnr": 30.0, "ssim": 0.9, "rainy_psnr": 20.0, "rainy_ssim": 0.5}
    writer.add({"name": "10", "file": "10.png"}, picture, picture)
    writer.add({"name": "9", "file": "9.png"} | scores, picture, picture, picture)
    writer.add({"name": NASTY, "file": file} | scores | {"psnr": 18.5}, picture, picture, picture)
    return writer.finish()


def test_one_entry_an_image_worst_first_and_the_unscored_last(page):
    entries = Elements(page).all("article")
    assert [entry["data-gain"] for entry in entries] == ["-1.5", "10.0", ""]
    assert [entry["data-name"] for entry in entries] == ["2", "0", "1"]  # 9, 10, a ...


def test_names_are_shown_as_they_are_and_break_nothing(page):
    elements = Elements(page)
    assert NASTY in elements.text and "Rain200H <SID>" in elements.text and "5 of 200 & more" in elements.text
    assert len(elements.all("script")) == 1
    assert f"derained image {NASTY}" in [image["alt"] for image in elements.all("img")]


def test_every_file_it_names_lies_below_its_folder(page):
    named = [image["src"] for image in Elements(page).all("img")]
    for entry in Elements(page).all("article"):
        named += [entry[key] for key in ("data-rainy", "data-derained", "data-clean") if entry.get(key)]
    assert len(named) == 2 * 3 + 3 + 3 + 2
    for url in named:
        assert not re.search(r"[#\s\"]|%(?![0-9A-F]{2})|^/|:", url), url
        assert (page.parent / unquote(url)).is_file()


def test_nothing_comes_from_a_network(page):
    assert not re.search(r"https?:|//\w|@import|url\(", page.read_text(encoding="utf-8"))


def test_images_load_lazily_and_small(page):
    images = Elements(page).all("img")
    assert len(images) == 6 and all(image["loading"] == "lazy" for image in images)
    for image in images:
        assert read_image(page.parent / image["src"]).shape == (45, THUMBNAIL_WIDTH, 3)
    clean = [path.name for path in (page.parent / "page").glob("*clean*")]
    assert len(clean) == 4  # two images of three, small and large


def test_a_slider_for_each_image_that_a_keyboard_reaches(page):
    elements = Elements(page)
    assert [slider["type"] for slider in elements.all("input")] == ["range"] * 3
    assert all(slider["aria-label"] for slider in elements.all("input"))
    assert [button.get("class") for button in elements.all("button")].count("show-clean") == 2


def test_the_scores_and_their_means_are_shown(page):
    text = Elements(page).text
    assert "3 images; mean PSNR 24.250 (rainy 20.000); mean SSIM 0.9000 (rainy 0.5000)" in text
    assert "+10.000" in text and "-1.500" in text


def test_without_a_clean_side_the_gain_is_in_niqe_where_less_is_better(tmp_path, picture):
    writer = PageWriter(tmp_path, "Real-275")
    for name, after in (("better", 2.0), ("worse", 5.0), ("same", 4.0)):
        writer.add({"name": name, "file": "1.png", "niqe": after, "rainy_niqe": 4.0}, picture, picture)
    elements = Elements(writer.finish())
    assert [entry["data-gain"] for entry in elements.all("article")] == ["-1.0", "0.0", "2.0"]
    assert "gain in NIQE" in elements.text
    assert [span["class"] for span in elements.all("span") if "class" in span] == ["worse", "same", "better"]
    assert "+0.0000" in elements.text


def test_equal_gains_stand_by_name(tmp_path, picture):
    writer = PageWriter(tmp_path, "t")
    for name in ("10", "9", "2"):
        writer.add({"name": name, "file": "1.png", "psnr": 21.0, "rainy_psnr": 20.0}, picture, picture)
    shown = [
        compare["data-title"] for compare in Elements(writer.finish()).all("div") if "data-title" in compare
    ]
    assert shown == ["2", "9", "10"]


def test_infinite_scores_are_counted_and_sort(tmp_path, picture):
    writer = PageWriter(tmp_path, "t")
    for name, before, after in (("a", 20.0, np.inf), ("b", np.inf, np.inf), ("c", 20.0, 21.0)):
        writer.add({"name": name, "file": "1.png", "psnr": after, "rainy_psnr": before}, picture, picture)
    elements = Elements(writer.finish())
    assert [entry["data-gain"] for entry in elements.all("article")] == ["0.0", "1.0", "Infinity"]
    assert "mean PSNR 21.000 (rainy 20.000), 2 infinite left out" in elements.text


def test_an_image_of_another_size_is_named(tmp_path, picture):
    with pytest.raises(UserError, match="seven: the rainy image"):
        PageWriter(tmp_path, "t").add({"name": "seven", "file": "7.png"}, picture[:-1], picture)


def test_an_empty_page_is_a_page(tmp_path):
    assert Elements(PageWriter(tmp_path, "t").finish()).all("article") == []


@pytest.mark.parametrize(("scores", "hidden"), [({}, True), ({"psnr": 20.0, "rainy_psnr": 18.0}, False)])
def test_sorting_is_offered_where_there_is_a_gain(tmp_path, scores, hidden):
    image = np.zeros((8, 9, 3), np.uint8)
    page = PageWriter(tmp_path, "title")
    page.add({"name": "x", "file": "x.png", **scores}, image, image)
    assert ("<label hidden>" in page.finish().read_text()) == hidden
