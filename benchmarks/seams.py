#!/usr/bin/env python3
"""What tiles change: photographs derained in tiles against the same derained whole, in levels of 8 bits.

python benchmarks/seams.py PHOTOGRAPHS --tile 256 --size 352,512
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started as a script, from any folder

from inference import OVERLAP, Derainer
from machinery import distributed
from machinery.options import Machine, option, parse
from utils import read_image, run


@dataclass(frozen=True)
class Seams(Machine):
    """The options of this script."""

    inputs: tuple[Path, ...] = option((), "photographs", positional=True)
    logdir: Path = option(Path("trained_model/Rain200L+Real"), "the model: a checkpoint, or its folder")
    tile: int = option(4 * OVERLAP, "side of the tiles, in pixels", least=4 * OVERLAP)
    size: tuple[int, ...] = option(
        (4096, 4096),
        "height and width of what is taken of each, from its upper left corner",
        count=2,
        least=1,
    )

    def contradiction(self) -> str | None:
        return super().contradiction() if self.inputs else "name photographs"


def main() -> None:
    options = parse(Seams(), __doc__)
    derain = Derainer.open(options.logdir, distributed.device(options), precision=options.precision)
    for path in options.inputs:
        rainy = read_image(path)[: options.size[0], : options.size[1]]
        derain.tile = 0
        whole = derain(rainy).astype(int)
        derain.tile = options.tile
        apart = np.abs(derain(rainy) - whole)
        what = f"{path}, {rainy.shape[1]}x{rainy.shape[0]}, tiles of {options.tile}"
        print(
            f"{what}: {apart.max()} levels at most, "
            f"{apart.mean():.2f} on the mean, {(apart > 1).mean():.2%} of all values by more than 1",
            flush=True,
        )


if __name__ == "__main__":
    run(main)
