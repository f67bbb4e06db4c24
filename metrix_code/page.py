"""index.html next to the derained images: before and after for each image, worst first, to open from disk.

    page = PageWriter(Path("results/Rain200H"), "Rain200H, SSID-KD", "RGB protocol")
    page.add({"name": "norain-1x2", "file": "norain-1x2.png", "psnr": 28.9, "rainy_psnr": 19.1},
             rainy, derained, clean)
    page.finish()

The page loads nothing from a network, and keeps its own copies of the rainy and clean images in page/: the
dataset may move, or hold two images in one file. page.html is the template.
"""

import math
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader

from metrix_code.metrics import HEADLINE_METRICS
from metrix_code.scores import average
from utils import UserError, natural_key, write_atomically, write_text

PAGE = "index.html"
MARK = '<dialog aria-labelledby="large">'  # in every page that we write
THUMBNAIL_WIDTH = 360


class PageWriter:
    """Writes images as they come, keeping only a few strings of each, and the page at the end.

    Raises UserError if the folder has an index.html that is not ours.
    """

    def __init__(self, folder: Path, title: str, note: str = "") -> None:
        self.folder, self.title, self.note = folder, title, note
        if (folder / PAGE).exists() and not is_page(folder / PAGE):
            raise UserError(f"{folder / PAGE} is not a page of ours: give another --save_path")
        self._rows: list[dict[str, Any]] = []

    def add(
        self, row: dict[str, Any], rainy: np.ndarray, derained: np.ndarray, clean: np.ndarray | None = None
    ) -> None:
        """One image: uint8 RGB (H, W, 3), all of one size, and its record in scores.json.

        `row` holds "name"; optionally "file", the derained image's path relative to the folder (without it
        the page keeps a copy); and optionally scores, under the keys of metrics.py.
        Raises UserError if the images differ in size.
        """
        height, width = derained.shape[:2]
        files = {"derained": row.get("file", "")}
        for side, image in (("rainy", rainy), ("derained", derained), ("clean", clean)):
            if image is None:
                continue
            if image.shape != derained.shape:
                raise UserError(f"{row['name']}: the {side} image is not of the derained one's size")
            name = f"{len(self._rows):05}_{side}"
            files[f"{side}_small"] = self._write(f"{name}_small.jpg", _thumbnail(image), 82)
            if side != "derained" or not row.get("file"):
                files[side] = self._write(f"{name}.jpg", image, 90)
        self._rows.append(row | {"files": files, "width": width, "height": height})

    def finish(self) -> Path:
        """Writes index.html for the images added so far and returns its path."""
        rows = sorted(self._rows, key=lambda row: natural_key(row["name"]))
        for place, row in enumerate(rows):
            row |= {"place": place, "scores": _changes(row)}
            row["gain"] = next((each for each in row["scores"] if each["before"]), None)
        rows.sort(key=lambda row: row["gain"]["better_by"] if row["gain"] else math.inf)
        pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
        pages.filters["url"] = lambda path: quote(os.fsencode(path))
        text = pages.get_template("page.html").render(
            title=self.title, note=self.note, means=self._means(), rows=rows
        )
        path = self.folder / PAGE
        write_text(path, text)
        return path

    def _write(self, name: str, image: np.ndarray, quality: int) -> str:
        path = self.folder / "page" / name
        _, data = cv2.imencode(
            ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
        )
        write_atomically(path, lambda temporary: temporary.write_bytes(data.tobytes()))
        return f"page/{name}"

    def _means(self) -> str:
        means = average(self._rows)
        parts = [f"{len(self._rows)} images"]
        for metric in HEADLINE_METRICS:
            value, before = means[metric.key], means[metric.rainy_key]
            infinite = means["infinite"].get(metric.key)
            if value is not None:
                parts.append(
                    f"mean {metric.title} {metric.text(value)}"
                    + ("" if before is None else f" (rainy {metric.text(before)})")
                    + (f", {infinite} infinite left out" if infinite and value < math.inf else "")
                )
        return "; ".join(parts)


def is_page(path: Path) -> bool:
    """Whether a PageWriter wrote the file."""
    return path.is_file() and MARK in path.read_text(encoding="utf-8", errors="replace")


def _thumbnail(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    if width <= THUMBNAIL_WIDTH:
        return image
    size = (THUMBNAIL_WIDTH, max(1, round(height * THUMBNAIL_WIDTH / width)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _changes(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The scores of an image, as text, and by how much each is better than the rainy image's."""
    changes = []
    for metric in HEADLINE_METRICS:
        after, before = row.get(metric.key), row.get(metric.rainy_key)
        if after is None:
            continue
        change: dict[str, Any] = {"title": metric.title, "after": metric.text(after), "before": ""}
        if before is not None:
            better_by = 0.0 if after == before else metric.sign * (after - before)  # not inf - inf
            change |= {"before": metric.text(before), "better_by": better_by}
            change["text"] = f"{metric.sign * better_by + 0.0:+.{metric.digits}f}"
        changes.append(change)
    return changes
