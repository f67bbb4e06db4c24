"""Images by their names: which rainy or derained one goes with which clean one; what outputs are called."""

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

# What datasets and methods put around an image's own name: norain-1x2, 438gt, 7_derained, ...
DECORATIONS = {
    *("rain", "norain", "rainy", "clean", "gt", "input", "target"),
    *("derain", "derained", "output", "result"),
}


class Matched(NamedTuple):
    """(image, its clean one) in the images' order, and what is left without a partner."""

    pairs: list[tuple[Path, Path]]
    lone: list[Path]
    lone_clean: list[Path]


def match(images: Sequence[Path], clean: Sequence[Path]) -> Matched:
    """Finds the clean image of each rainy or derained one.

    Tried in this order: the same stem; the same stem without its decorations; the same numbers; and
    Rain1400's fourteen to one, 901_1 to 901_14 to 901. A rule that fits two images of a side decides nothing,
    and what one rule has given, a later one does not give again: an image whose partner is missing must not
    get another's.
    """
    partner: dict[Path, Path] = {}
    for rule in (_stem, _own_name, _numbers):
        given = set(partner.values())
        candidates = _told_apart((path for path in clean if path not in given), rule)
        waiting = _told_apart((path for path in images if path not in partner), rule)
        partner |= {path: candidates[key] for key, path in waiting.items() if key in candidates}
    given = set(partner.values())
    scenes = _told_apart((path for path in clean if path not in given), _own_name)
    for path in images:
        if path not in partner and (scene := _scene(path)) in scenes:
            partner[path] = scenes[scene]
    given = set(partner.values())
    return Matched(
        [(path, partner[path]) for path in images if path in partner],
        [path for path in images if path not in partner],
        [path for path in clean if path not in given],
    )


def _told_apart(paths: Iterable[Path], rule: Callable[[Path], Hashable]) -> dict[Hashable, Path]:
    """The images by what `rule` makes of their names, where it tells one from all others."""
    groups: dict[Hashable, list[Path]] = {}
    for path in paths:
        groups.setdefault(rule(path), []).append(path)
    return {key: group[0] for key, group in groups.items() if key and len(group) == 1}


def _stem(path: Path) -> str:
    return path.stem


def _own_name(path: Path) -> tuple[str, ...]:
    """norain-57x2, rain-57, 57gt: ("57",)."""
    parts = re.findall(r"[^\W\d_]+|\d+", re.sub(r"(?<=\d)x2$", "", path.stem.lower()))
    return tuple(part for part in parts if part not in DECORATIONS)


def _numbers(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in _own_name(path) if part.isdecimal())


def _scene(path: Path) -> tuple[str, ...]:
    """901_14, the fourteenth rain on scene 901: ("901",)."""
    *scene, variant = _own_name(path) or ("",)
    return tuple(scene) if variant.isdecimal() else ()


def distinct_names(files: Sequence[Path], root: Path) -> list[str]:
    """Stems where they differ, else paths below `root`: two inputs must not be written to one output."""
    for name in (lambda p: p.stem, lambda p: below(p, root).with_suffix("").as_posix()):
        names = [name(path) for path in files]
        if len(set(names)) == len(names):
            return names
    return [below(path, root).as_posix() for path in files]


def below(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else Path(*path.parts[1:])
