"""Facts about each dataset, one record per set, and what folder names mean.

To add a set, add an `Entry` to CATALOGUE (and its scripts: docs/changing_the_method.md).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SIMULATED = "simulated.txt"  # simulate.py's options, in a set that it has rendered
PHOTOGRAPHS = "test_nature"  # Rain800's folder of real photographs: no split, and never pairs


@dataclass(frozen=True)
class Entry:
    """A dataset: official counts, layout of its download, properties of its rain.

    `name`: as scripts and `check.py` call it. Defaults mean not applicable, or unknown.
    """

    name: str
    train: int = 0  # pairs; images of a set without clean sides
    test: int = 0
    printed: str = ""  # name in papers, if different
    tables: tuple[str, ...] = ()  # keys of the metrics in the paper's tables
    labelled: bool = True  # whether it has clean images
    simulated: bool = False  # rendered by simulate.py: scores are marked as simulated

    # Layout on disk
    called: str = ""  # pattern of other words in folders' names that mean this set, lower case
    sides: tuple[str, str] = ("", "")  # folders of rainy and of clean images
    rainy_half: str = ""  # of side-by-side images: left or right
    parts: tuple[str, ...] = ()  # folders that make up one split together
    list_file: str = ""  # file that lists the training pairs, "rainy clean" a line

    # File numbering, if not once through from 0 or 1
    series: Mapping[str, int] = field(default_factory=dict)  # split: how many times the numbering repeats
    first: Mapping[str, int] = field(default_factory=dict)  # split: the first number

    @property
    def counts(self) -> dict[str, int]:
        """Images or pairs by split, without empty splits."""
        return {split: count for split, count in (("train", self.train), ("test", self.test)) if count}

    @property
    def title(self) -> str:
        return self.printed or self.name

    def claims(self, folders: str) -> bool:
        """Whether folder names, as "downloads/DID-MDN-test", mean this set."""
        words = "|".join(filter(None, (re.escape(self.name.lower()), self.called)))
        return bool(words and re.search(rf"(?<![a-z0-9])(?:{words})(?![a-z0-9])", folders.lower()))


# in the order of the paper's tables
_RAIN200 = ("rain/X2", "norain")
CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("Rain200H", 1800, 200, tables=("psnr",), sides=_RAIN200),
        Entry("Rain200L", 1800, 200, tables=("psnr",), sides=_RAIN200),
        # Rain13K calls the test sets of Rain800 and Rain1200 Test100 and Test1200
        Entry("Rain800", 700, 100, tables=("psnr",), called="test_syn|test100", rainy_half="right"),
        Entry(
            "Rain1200",
            12_000,
            1_200,
            tables=("psnr",),
            called=r"did(mdn|data)?\d*|train2018new|test1200",
            rainy_half="left",
            parts=("Rain_Light", "Rain_Medium", "Rain_Heavy"),
            series={"train": 3},
        ),
        Entry(
            "Rain1400",
            12_600,
            1_400,
            tables=("psnr",),
            called=r"ddn(data)?\d*",
            sides=("rainy_image", "ground_truth"),
            series={"train": 14, "test": 14},
            first={"test": 901},
        ),
        Entry(
            "SPA",
            638_492,
            1_000,
            tables=("psnr", "niqe"),
            called="real_test",
            sides=("rain", "gt"),
            list_file="real_world.txt",
        ),
        Entry("Real275", 0, 275, "Real-275", ("niqe",), labelled=False, called="real-275"),
        Entry("Rain100H", 1800, 100),
        Entry("Rain100L", 200, 100),
        Entry("Rain12", 0, 12, rainy_half="left"),
        Entry("Internet", 147, labelled=False, called="real_input"),
        Entry("Simulated200H", 24, 6, simulated=True, sides=_RAIN200),
        Entry("Simulated200L", 24, 6, simulated=True, sides=_RAIN200),
        Entry("SimulatedReal", 24, 6, simulated=True, sides=("rain", "norain")),
    )
}


def get_entry(dataset: str) -> Entry:
    """The catalogue's record; one with only a name for other sets."""
    return CATALOGUE.get(dataset, Entry(dataset))


def columns(score: str) -> list[str]:
    """Printed names of the sets in the paper's table of this score, in its order."""
    return [entry.title for entry in CATALOGUE.values() if score in entry.tables]


def printed(dataset: str) -> str:
    """A set's name as papers print it, from any spelling: real275, Real-275."""

    def plain(name: str) -> str:
        return name.replace("-", "").lower()

    return next((e.title for e in CATALOGUE.values() if plain(e.name) == plain(dataset)), dataset)


# ------------------------------------------------------------------------------- what folder names mean


def split_of(folder: Path) -> str:
    """By its name. rain_data_train_Heavy, DID-MDN-training, RainTrainH: train; test_syn, Testing: test."""
    for split in ("train", "test"):
        pattern = rf"(?:^|[^A-Za-z])(?:{split}|{split.upper()})|{split.title()}"
        if folder.name != PHOTOGRAPHS and re.search(pattern, folder.name):
            return split
    return ""


def density_of(path: Path) -> str:
    """Heavy or light rain, by the last two names of a path: Rain200H, RainTrainL, rain_data_test_Light."""
    for name in (path.name, path.parent.name):
        if found := re.search(r"(heavy|(?:\d|train|test)h$)|light|(?:\d|train|test)l$", name.lower()):
            return "heavy" if found[1] else "light"
    return ""


def rainy_folders() -> list[str]:
    """Names of folders of rainy images: the usual ones, then those of the catalogue's sets."""
    named = (entry.sides[0].split("/")[0] for entry in CATALOGUE.values())
    return ["rain", "rainy", "input", "lq", "degraded", *named]


def clean_folders() -> list[str]:
    named = (entry.sides[1] for entry in CATALOGUE.values())
    return ["norain", "clean", "target", "groundtruth", "reference", *named]


def is_simulated(path: Path, dataset: str = "") -> bool:
    """Whether a set is one of simulate.py's, by name, folder or note; its scores are marked as simulated."""
    noted = any((folder / SIMULATED).exists() for folder in (path, path.parent))
    return noted or get_entry(dataset).simulated or "simulated" in str(path).lower()
