"""The loop of psnr.py, ssim.py and niqe.py: a folder of derained images, one score each, and their mean.

For a row in the tables use an eval script instead: `eval_Rain200H.py --derained FOLDER --method NAME`.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datasets.pairs import match, refuse_shift
from machinery.options import Options, option, parse
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


def main(
    metric: Callable[..., float], title: str, digits: int, description: str | None, needs_clean: bool = True
) -> None:
    """Prints the score of each image of a folder, with so many `digits` after the point, and their mean.

    Raises UserError at the end if an image could not be scored; the others are.
    """
    options = parse(DerainedAndClean() if needs_clean else Derained(), description)
    protocol = (options.protocol,) if isinstance(options, DerainedAndClean) else ()
    derained = images_in(options.res_path, "--res_path")
    pairs: list[tuple[Path, ...]] = [(path,) for path in derained]
    if isinstance(options, DerainedAndClean):
        pairs = [*matched_pairs(derained, clean_images(options.gt_path))]
    values, failures = [], []
    for paths in pairs:
        name = escape_unprintable(paths[0].name)
        try:
            value = metric(*map(read_image, paths), *protocol)
        except UserError as error:
            failures.append(f"{paths[0]}: {error}")
            print(f"{name}  not scored: {error}", file=sys.stderr)
        else:
            values.append(value)
            print(f"{name}  {value:.{digits}f}")
    average, infinite = mean(values)
    if average is not None:
        perfect = f"; {infinite} identical to the clean image (inf), not in the average" if infinite else ""
        name = f"{title} ({', '.join(protocol) or 'LIVE, Y'})"
        print(f"average {name} of {len(values)} images: {average:.{digits}f}{perfect}")
    if failures:
        raise UserError(f"{len(failures)} of {len(pairs)} images were not scored: {failures[0]}")


def images_in(folder: Path, option: str) -> list[Path]:
    if paths := list_images(folder):
        return paths
    raise UserError(f"{folder} contains no images: give another folder as {option}")


def clean_images(folder: Path) -> list[Path]:
    """The images of `folder`, without each rain-1 next to a norain-1: the older Rain100 mixes both."""
    paths = images_in(folder, "--gt_path")
    stems = {path.stem for path in paths}
    return [path for path in paths if not (path.stem.startswith("rain") and f"no{path.stem}" in stems)]


def matched_pairs(derained: list[Path], clean: list[Path]) -> list[tuple[Path, Path]]:
    """(derained, clean), matched by name; prints images without a partner. UserError if none has one."""
    matched = match(derained, clean)
    refuse_shift(matched)
    if not matched.pairs:
        raise UserError(
            f"no image of {derained[0].parent} ({derained[0].name}, ...) matches one of {clean[0].parent} "
            f"({clean[0].name}, ...) by name or number: name the derained images as the clean ones"
        )
    for paths, what in (
        (matched.lone, "derained images without a clean one"),
        (matched.lone_clean, "clean images without a derained one"),
    ):
        if paths:
            names = escape_unprintable(join_names(path.name for path in paths))
            print(f"not scored, {what} ({len(paths)}): {names}", file=sys.stderr)
    return matched.pairs
