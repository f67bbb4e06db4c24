"""One picture of several folders of images side by side: a row an image, a column a folder.

    python tools/contact_sheet.py --out sheet.png rainy=FOLDER teacher=results/A clean=FOLDER

Images belong to each other by name, as in the metric scripts.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))  # found as a script too, whatever folder one is in

from datasets.pairs import match
from machinery.options import Options, option, parse
from utils import UserError, list_images, read_image, refuse_inputs, run, write_image

GAP, CAPTION = 6, 24  # pixels, white


def contact_sheet(columns: Mapping[str, Sequence[np.ndarray]], height: int = 160) -> np.ndarray:
    """Columns of uint8 RGB images, as many in each, under their captions; each image `height` pixels high."""
    strips = []
    for caption, images in columns.items():
        scaled = [_scaled(image, height) for image in images]
        width = max(image.shape[1] for image in scaled)
        strip = np.full((CAPTION, width, 3), 255, np.uint8)
        cv2.putText(strip, caption, (2, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        parts = [strip]
        for image in scaled:
            right = width - image.shape[1] + GAP
            parts.append(cv2.copyMakeBorder(image, 0, GAP, 0, right, cv2.BORDER_CONSTANT, value=[255] * 3))
        parts[0] = cv2.copyMakeBorder(strip, 0, 0, 0, GAP, cv2.BORDER_CONSTANT, value=[255] * 3)
        strips.append(np.concatenate(parts))
    return np.concatenate(strips, axis=1)[:-GAP, :-GAP]


def _scaled(image: np.ndarray, height: int) -> np.ndarray:
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    shrinks = height < image.shape[0]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


@dataclass(frozen=True)
class Sheet(Options):
    """The options of this script."""

    columns: tuple[str, ...] = option((), "CAPTION=FOLDER, from left to right", positional=True)
    out: Path = option(Path(), "the picture to write", required=True)
    most: int = option(8, "rows at the most", min=1)
    height: int = option(160, "of each image, in pixels", min=1, max=4096)

    def validate(self) -> str | None:
        wrong = [column for column in self.columns if not all(column.partition("="))]
        return f"{wrong[0]}: a column is CAPTION=FOLDER" if wrong else super().validate()


def main() -> None:
    options = parse(Sheet(), __doc__)
    folders = dict(column.split("=", 1) for column in options.columns)
    read = [path for folder in folders.values() for path in list_images(Path(folder))]
    refuse_inputs(options.out, read, "--out")
    write_image(options.out, from_folders(folders, options.most, options.height))
    print(f"written: {options.out}")


def from_folders(folders: Mapping[str, str | Path], most: int = 8, height: int = 160) -> np.ndarray:
    """The sheet of the first `most` images that every folder has. Raises UserError where none is in all."""
    if not folders:
        raise UserError("no column: give CAPTION=FOLDER, one or more")
    first, *others = [list_images(Path(folder)) for folder in folders.values()]
    partners = [dict(match(first, files).pairs) for files in others]
    shown = [path for path in first if all(path in each for each in partners)][:most]
    if not shown:
        raise UserError(f"no image is in all of {', '.join(map(str, folders.values()))}")
    rows = [[path, *(each[path] for each in partners)] for path in shown]
    columns = zip(*rows, strict=True)
    images = {
        name: [read_image(path) for path in column] for name, column in zip(folders, columns, strict=True)
    }
    return contact_sheet(images, height)


if __name__ == "__main__":
    run(main)
