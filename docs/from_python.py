"""One photograph from Python: read, derained, and what has changed.

    python docs/from_python.py photo.jpg

Writes before | after | the rain four times as bright, to from_python.png, and prints how much there was.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from any folder

from inference import DEFAULT_MODEL, Derainer
from utils import UserError, read_image, run, write_image


def main() -> None:
    if len(sys.argv) != 2:
        raise UserError("name one photograph: python docs/from_python.py photo.jpg")
    rainy = read_image(Path(sys.argv[1]))  # uint8 RGB (H, W, 3)
    derain = Derainer.open(DEFAULT_MODEL, tile=None)
    derained = derain(rainy)  # the same
    rain = rainy.astype(int) - derained  # -255 to 255; the network takes light away, as rain adds it
    brighter = np.clip(4 * rain, 0, 255).astype(np.uint8)
    write_image(Path("from_python.png"), np.hstack([rainy, derained, brighter]))
    share = (np.abs(rain).max(axis=2) > 8).mean()
    print(f"from_python.png: {rain.mean():+.2f} of 255 on the mean, {share:.1%} of the pixels by more than 8")


if __name__ == "__main__":
    run(main)
