"""index.html beside the derained images: before and after for each of them, worst first, to open from disk.

    page = PageWriter(Path("results/Rain200H"), "Rain200H, SSID-KD", "RGB protocol")
    page.add({"name": "norain-1x2", "file": "norain-1x2.png", "psnr": 28.9, "rainy_psnr": 19.1},
             rainy, derained, clean)
    page.finish()

Nothing is fetched from a network. The dataset may move, or hold two images in a file, so the page keeps
its own copies of the rainy and the clean images below page/. page.html is what they are put into.
"""

import math
import os
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np

from metrix_code.metrics import HEADLINE_METRICS, Metric
from metrix_code.scores import average
from utils import UserError, natural_key, write_atomically, write_text

PAGE = "index.html"
MARK = '<dialog aria-labelledby="large">'  # in every page that we write
THUMBNAIL_WIDTH = 360


class PageWriter:
    """Writes the images as they come, keeping only a few strings of each, and the page at the end."""

    def __init__(self, folder: Path, title: str, note: str = "") -> None:
        self.folder, self.title, self.note = folder, title, note
        path = folder / PAGE
        if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
            raise UserError(f"{path} is not a page of ours: give another --save_path")
        self._rows: list[dict[str, Any]] = []

    def add(
        self, row: dict[str, Any], rainy: np.ndarray, derained: np.ndarray, clean: np.ndarray | None = None
    ) -> None:
        """One image: uint8 RGB (H, W, 3) of one size, and its record in scores.json.

        Of `row`, "name" is shown and "file" is where the derained image lies below the folder; without it the
        page keeps a copy of its own. Scores, each optional, go by the keys of metrics.py.
        Raises UserError where the images differ in size.
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
        """Writes index.html, of the images added so far, and returns its path."""
        template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
        by_name = sorted(range(len(self._rows)), key=lambda k: natural_key(self._rows[k]["name"]))
        place = {k: position for position, k in enumerate(by_name)}
        gains = [_gain(row) for row in self._rows]
        worst_first = sorted(by_name, key=lambda k: _or_last(gains[k][1]))
        text = template.substitute(
            title=escape(self.title),
            note=escape(self.note),
            means=escape(self._means()),
            sorted_by="" if any(value is not None for _, value in gains) else "hidden",
            gain=f"gain in {next((name for name, value in gains if value is not None), 'PSNR')}",
            entries="\n".join(_entry(self._rows[k], place[k], gains[k][1]) for k in worst_first),
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


def _thumbnail(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    if width <= THUMBNAIL_WIDTH:
        return image
    size = (THUMBNAIL_WIDTH, max(1, round(height * THUMBNAIL_WIDTH / width)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _or_last(gain: float | None) -> float:
    return math.inf if gain is None else gain


def _gain(row: dict[str, Any]) -> tuple[str, float | None]:
    """By what the derained image is better than the rainy one: in PSNR, or, without a clean side, in NIQE."""
    for metric in HEADLINE_METRICS:
        after, before = row.get(metric.key), row.get(metric.rainy_key)
        if after is not None and before is not None:
            return metric.title, _difference(after, before, metric)
    return "", None


def _difference(after: float, before: float, metric: Metric) -> float:
    return 0.0 if after == before else metric.sign * (after - before)  # two infinities differ by nothing


def _entry(row: dict[str, Any], place: int, gain: float | None) -> str:
    name, files = (
        escape(row["name"]),
        {key: escape(quote(os.fsencode(path))) for key, path in row["files"].items()},
    )
    number = "" if gain is None else str(gain).replace("inf", "Infinity")
    clean = (
        f' data-clean="{files["clean"]}" data-clean-small="{files["clean_small"]}"'
        if "clean" in files
        else ""
    )
    button = '<button class="show-clean" aria-pressed="false">Clean</button>' if clean else ""
    return f"""<article data-name="{place}" data-gain="{number}" data-rainy="{files["rainy"]}"
 data-derained="{files["derained"]}"{clean} data-width="{row["width"]}" data-height="{row["height"]}">
<div class="compare" data-title="{name}" style="aspect-ratio: {row["width"]} / {row["height"]}">
<img class="rainy" loading="lazy" src="{files["rainy_small"]}" alt="rainy image {name}">
<img class="derained" loading="lazy" src="{files["derained_small"]}" alt="derained image {name}">
<input type="range" min="0" max="100" value="50" aria-label="{name}: where derained begins, in percent">
<span>rainy</span><span>derained</span>
</div>
<div class="text">
<h2>{name}</h2>
{_score_table(row)}<div class="buttons">{button}<button class="show-large">Full size</button></div>
</div>
</article>"""


def _score_table(row: dict[str, Any]) -> str:
    lines = []
    for metric in HEADLINE_METRICS:
        after, before = row.get(metric.key), row.get(metric.rainy_key)
        if after is None:
            continue
        cells = ["", metric.text(after), ""]
        if before is not None:
            gain = _difference(after, before, metric)
            mood = "better" if gain > 0 else "worse" if gain < 0 else "same"
            change = f"{metric.sign * gain + 0.0:+.{metric.digits}f}"
            cells = [metric.text(before), cells[1], f'<span class="{mood}">{change}</span>']
        lines.append(
            f"<tr><th scope=row>{metric.title}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        )
    if not lines:
        return ""
    head = "".join(f"<th scope=col>{what}</th>" for what in ("", "rainy", "derained", "change"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>\n"
