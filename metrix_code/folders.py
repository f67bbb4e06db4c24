"""The loop of psnr.py, ssim.py and niqe.py: a folder of derained images, one score each, and their mean.

For a row in the tables use an eval script instead: `eval_Rain200H.py --derained FOLDER --method NAME`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datasets.pairs import match, refuse_shift
from machinery.options import Options, option, parse
from metrix_code.metrics import METRICS
from metrix_code.protocol import PROTOCOLS, mean
from utils import UserError, escape_unprintable, join_names, list_images, read_image


@dataclass(frozen=True)
class Derained(Options):
    """The options of a metric that needs no clean images."""

    res_path: Path = option(Path(), "folder of derained images", required=True)


@dataclass(frozen=True)
class DerainedAndClean(Derained):
    """The options of a metric that compares with clean images."""

    gt_path: Path = option(Path(), "folder of clean images; matched by name, then by number", required=True)
    protocol: str = option("RGB", "what is scored, see protocol.py", PROTOCOLS)


def main(key: str, description: str | None) -> None:
    """Prints the score of each image of a folder by a metric of metrics.py, and their mean.

    Raises UserError at the first image that cannot be scored.
    """
    metric = METRICS[key]
    options = parse(DerainedAndClean() if metric.against else Derained(), description)
    derained = images_in(options.res_path, "--res_path")
    pairs: list[tuple[Path, ...]] = [(path,) for path in derained]
    if isinstance(options, DerainedAndClean):
        metric = replace(metric, protocol=options.protocol)
        pairs = [*matched_results(derained, clean_images(options.gt_path))]
    values = []
    for paths in pairs:
        try:
            values.append(metric(*map(read_image, paths)))
        except UserError as error:
            raise UserError(f"{paths[0]} cannot be scored: {error}") from None
        print(f"{escape_unprintable(paths[0].name)}  {metric.text(values[-1])}")
    average, infinite = mean(values)
    assert average is not None
    perfect = f"; {infinite} identical to the clean image (inf), not in the average" if infinite else ""
    print(f"average {metric.name} of {len(values)} images: {metric.text(average)}{perfect}")


def images_in(folder: Path, option: str) -> list[Path]:
    if paths := list_images(folder):
        return paths
    raise UserError(f"{folder} contains no images: give another folder as {option}")


def clean_images(folder: Path) -> list[Path]:
    """The images of `folder`, without each rain-1 next to a norain-1: the older Rain100 mixes both."""
    paths = images_in(folder, "--gt_path")
    stems = {path.stem for path in paths}
    return [path for path in paths if not (path.stem.startswith("rain") and f"no{path.stem}" in stems)]


def matched_results(derained: Sequence[Path], images: Sequence[Path]) -> list[tuple[Path, Path]]:
    """(derained, its image), by name, else by number; prints what has no partner.

    Raises UserError if nothing matches, or if the numbers look shifted.
    """
    matched = match(derained, images)
    refuse_shift(matched)
    if not matched.pairs:
        raise UserError(
            f"no image of {derained[0].parent} ({derained[0].name}, ...) matches one of {images[0].parent} "
            f"({images[0].name}, ...) by name or number: rename the derained images"
        )
    for paths, what in (
        (matched.lone, "derained images that match no other"),
        (matched.lone_clean, "images without a derained one"),
    ):
        if paths:
            names = escape_unprintable(join_names(path.name for path in paths))
            print(f"not scored, {what} ({len(paths)}): {names}", file=sys.stderr)
    return matched.pairs
