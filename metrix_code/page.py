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
from metrix_code.scores import average_line
from utils import UserError, natural_key, write_image, write_text

PAGE = "index.html"
MARK = '<dialog aria-labelledby="large">'  # in every page that we write
THUMBNAIL_WIDTH = 360


class PageWriter:
    """Writes images as they come, keeping only a few strings of each, and the page at the end.

    Raises UserError if the folder has an index.html that is not ours.
    """

    def __init__(self, folder: Path, title: str, note: str = "") -> None:
        self.folder, self.title, self.note = folder, title, note
        page = folder / PAGE
        if page.exists() and MARK not in page.read_text(encoding="utf-8", errors="replace"):
            raise UserError(f"{page} is not a page of ours: give another --save_path")
        self._rows: list[dict[str, Any]] = []

    def add(
        self, row: dict[str, Any], rainy: np.ndarray, derained: np.ndarray, clean: np.ndarray | None = None
    ) -> None:
        """One image: uint8 RGB (H, W, 3), all of one size, and its record in scores.json.

        `row` holds "name"; optionally "file", the derained image's path relative to the folder (without it
        the page keeps a copy); and optionally scores, under the keys of metrics.py.
        """
        height, width = derained.shape[:2]
        files = {"derained": row.get("file", "")}
        for side, image in (("rainy", rainy), ("derained", derained), ("clean", clean)):
            if image is None:
                continue
            name = f"page/{len(self._rows):05}_{side}"
            files[f"{side}_small"] = f"{name}_small.jpg"
            write_image(self.folder / files[f"{side}_small"], _thumbnail(image))
            if not files.get(side):
                files[side] = f"{name}.jpg"
                write_image(self.folder / files[side], image)
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
        means = ": ".join(filter(None, (f"{len(rows)} images", average_line(rows))))
        text = pages.get_template("page.html").render(
            title=self.title, note=self.note, means=means, rows=rows
        )
        path = self.folder / PAGE
        write_text(path, text)
        return path


def _thumbnail(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    small = min(width, THUMBNAIL_WIDTH)
    size = (small, max(1, round(height * small / width)))
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
