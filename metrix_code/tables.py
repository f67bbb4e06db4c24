"""The paper's two tables: published and reproduced scores of other methods next to the scores measured here.

python metrix_code/tables.py --results results --format markdown
python metrix_code/tables.py --format latex --kinds measured reproduced > tables.tex

published: as printed by a method's authors. reproduced: retrained and scored by others on the same sets (see
the source). measured: from the scores.json files below --results. A cell that nobody measured is blank.
"""

import csv
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

sys.path.append(str(Path(__file__).resolve().parents[1]))  # so that it runs as a script from any folder

from datasets.catalogue import columns, printed
from machinery.options import Options, option, parse
from metrix_code.metrics import METRICS, Metric
from metrix_code.scores import SCORES, UNKNOWN, read_scores
from utils import UserError, escape_unprintable, run

KINDS = ("published", "reproduced", "measured")
RAINY = "rainy input"
# what a measured score's source says of its evaluation, by the keys of scores.json
DETAILS = {"precision": "{}", "tile": "tiles of {}", "seen": "TRAINED ON: {}", "hardware": "{}", "date": "{}"}
QUALITY_NOTE = "PSNR and SSIM compare only within one protocol; metrix_code/protocol.py explains each."
NIQE_NOTE = (
    "NIQE: lower is 'better', but untouched Real-275 already scores 3.66, so NIQE alone proves little. "
    "Ours uses the LIVE release's parameters, on Y (metrix_code/niqe.py). The tool behind the published NIQE "
    "is not known, so the two may not be comparable."
)


@dataclass(frozen=True)
class Cell:
    """The scores of one method on one dataset by one protocol, as text, and their source."""

    dataset: str
    method: str
    kind: str  # one of KINDS
    protocol: str
    scores: dict[str, str]  # by lower-case title: psnr and ssim, or niqe
    source: str
    remarks: tuple[str, ...] = ()  # '5 of 200 images': why it is not the paper's number
    images: int = 0  # how many were scored
    model: str = ""  # checkpoint and step
    simulated: bool = False

    @property
    def evaluated(self) -> tuple[str | bool, ...]:
        return self.dataset, self.method, self.model, self.protocol, self.simulated

    def __str__(self) -> str:
        return "\n".join([" / ".join(self.scores.values()), *self.remarks])


@dataclass
class Table:
    title: str
    datasets: list[str]
    cells: list[Cell]
    note: str

    def rows(self) -> list[list[str]]:
        """Method, kind and protocol, a cell per dataset. Two scores on one dataset take two rows."""
        rows: dict[tuple[str, str, int], dict[str, Cell]] = {}
        for cell in self.cells:
            label, turn = f"{cell.kind}, {cell.protocol}", 0
            while cell.dataset in rows.setdefault((cell.method, label, turn), {}):
                turn += 1
            rows[cell.method, label, turn][cell.dataset] = cell
        return [
            [method, label, *(str(row.get(dataset, "")) for dataset in self.datasets)]
            for (method, label, _), row in rows.items()
        ]

    def notes(self) -> list[str]:
        """The sources, one line per evaluation or collection; then the table's note."""
        origins: dict[tuple[str, str], dict[str, None]] = {}
        for cell in self.cells:
            # of a collection without the file in it, which published.csv and reproduced.csv name
            source = cell.source if cell.kind == "measured" else cell.source.partition(", ")[0]
            origins.setdefault((cell.kind, source), {})[cell.dataset] = None
        notes = [f"{kind}, {', '.join(sets)}: {source}" for (kind, source), sets in origins.items()]
        return [*notes, self.note]


# --------------------------------------------------------------------------------------------- gathering


def tables(results: Path, kinds: Sequence[str] = KINDS, protocol: str = "all") -> list[Table]:
    """PSNR/SSIM (by one `protocol`, or "all") and NIQE as in the paper; then the same of simulated rain."""
    cells = [
        cell for kind in kinds for cell in (gather(results) if kind == "measured" else from_others(kind))
    ]
    found = []
    for simulated in (False, True):
        for title, score, note in (("PSNR (dB) / SSIM", "psnr", QUALITY_NOTE), ("NIQE", "niqe", NIQE_NOTE)):
            chosen = [cell for cell in cells if cell.simulated == simulated and score in cell.scores]
            if score == "psnr" and protocol != "all":
                chosen = [cell for cell in chosen if cell.protocol == protocol]
            papers = [] if simulated else columns(score)
            datasets = dict.fromkeys([*papers, *(cell.dataset for cell in chosen)])
            title += " on SIMULATED rain, not a benchmark" * simulated
            found.append(Table(title, list(datasets), chosen, note))
    return [each for each in found if each.cells]


def from_others(kind: str) -> list[Cell]:
    """The cells of published.csv or reproduced.csv, in their order."""
    with Path(__file__).with_name(f"{kind}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    titles = {"psnr_ssim": ("psnr", "ssim"), "niqe": ("niqe",)}
    return [
        Cell(
            row["dataset"],
            row["method"],
            kind,
            row["protocol"],
            dict(zip(titles[row["table"]], (row["metric1"], row["metric2"]), strict=False)),
            row["source"],
        )
        for row in rows
    ]


def gather(results: Path) -> list[Cell]:
    """The cells of every scores.json below `results`; a broken file is named on stderr and skipped.

    Without a model's part of a set if more of it was scored too, and without equal rows of one model.
    """
    paths = sorted(results.rglob(SCORES))
    if not paths:
        print(f"no {SCORES} below {results}: nothing measured", file=sys.stderr)
    cells: list[Cell] = []
    for path in paths:
        try:
            cells += measured(path, read_scores(path))
        except UserError as error:
            print(f"skipped: {error}", file=sys.stderr)
    fullest: dict[Any, int] = {}
    for cell in cells:
        fullest[cell.evaluated] = max(cell.images, fullest.get(cell.evaluated, 0))
    kept = [cell for cell in cells if cell.images == fullest[cell.evaluated]]
    return list({(cell.evaluated, *cell.scores.values()): cell for cell in kept}.values())


def measured(path: Path, scores: dict[str, Any]) -> list[Cell]:
    """The cells of one scores.json: the method in each protocol, and the rainy input."""
    protocols: dict[str, list[Metric]] = {}
    for metric in METRICS.values():
        if metric.in_tables:
            protocols.setdefault(metric.protocol, []).append(metric)
    simulated, released = scores["simulated"], scores.get("trained_on", {}).get("released")
    # of simulated rain the folder's name, not that of the set that it imitates
    folder = Path(scores.get("data_path") or scores["dataset"]).name
    dataset = folder if simulated else printed(scores["dataset"])
    whose = f" ({'released' if released else 'ours'})" if scores.get("checkpoint") else ""
    method = f"{scores['method']}{whose}{' + self-ensemble' if scores.get('self_ensemble') else ''}"
    cells = []
    for of_rainy, (protocol, metrics) in itertools.product((False, True), protocols.items()):
        keys = [metric.rainy_key if of_rainy else metric.key for metric in metrics]
        means = [scores["mean"].get(key) for key in keys]
        if all(mean is None for mean in means):
            continue
        images = min(sum(image.get(key) is not None for image in scores["images"]) for key in keys)
        cell = Cell(
            dataset=escape_unprintable(dataset),
            method=RAINY if of_rainy else escape_unprintable(method),
            kind="measured",
            protocol=protocol,
            scores={
                metric.title.lower(): "" if mean is None else metric.text(mean)
                for metric, mean in zip(metrics, means, strict=True)
            },
            source=_source(path, scores),
            remarks=_remarks(scores, keys, images, of_rainy),
            images=images,
            model="" if of_rainy else f"{scores.get('checkpoint')} {scores.get('checkpoint_step')}",
            simulated=simulated,
        )
        cells.append(cell)
    return cells


def _remarks(scores: dict[str, Any], keys: Sequence[str], scored: int, of_rainy: bool) -> tuple[str, ...]:
    """'5 of 200 images' if the official test set has 200; infinite scores, which the mean leaves out; ..."""
    images = scores["images"]
    official = None if scores["simulated"] else scores.get("images_expected")
    expected = official or scores.get("images_found") or len(images)
    infinite = sum(image.get(keys[0]) == math.inf for image in images)
    count = f"{scored} images" if scored == expected else f"{scored} of {expected} images"
    remarks = [count + (f", {infinite} infinite" if infinite else "")]
    if scores.get("seen") and not of_rainy:
        remarks.append("TRAINED ON")
    return tuple(remarks)


def _source(path: Path, scores: dict[str, Any]) -> str:
    parts = [str(path)]
    if scores.get("checkpoint"):
        trained_on = scores.get("trained_on", {}).get("dataset", UNKNOWN)
        parts.append(f"checkpoint {scores['checkpoint']} at step {scores.get('checkpoint_step')}")
        parts.append(f"training {UNKNOWN}" if trained_on == UNKNOWN else f"trained on {trained_on}")
    parts += [text.format(scores[key]) for key, text in DETAILS.items() if scores.get(key)]
    return escape_unprintable(", ".join(parts))


# ---------------------------------------------------------------------------------------------- printing

FORMATS = {"plain": "plain", "markdown": "github", "latex": "latex_booktabs"}  # by tabulate's names


def as_text(table: Table, format: str) -> str:
    """A table with its sources, for a terminal, Markdown or LaTeX (\\usepackage{booktabs})."""

    def in_format(cell: str) -> str:
        if format == "markdown":
            cell = cell.replace("|", "\\|")
        return cell if format == "plain" else cell.replace("\n", "; ")

    cells = [["method", "protocol", *table.datasets], *table.rows()]
    header, *rows = (list(map(in_format, row)) for row in cells)
    text = tabulate(rows, header, FORMATS[format], disable_numparse=True)
    before, after = {"plain": ("", ""), "markdown": ("### ", "- "), "latex": ("% ", "% ")}[format]
    notes = [after + note for note in table.notes()]
    whole = "\n".join([before + table.title, "", text, "", *notes, ""])
    return whole.replace("<", "&lt;") if format == "markdown" else whole  # a name is text, not a tag


def write_csv(found: Sequence[Table]) -> None:
    """Prints one line per cell, so that each has its labels."""
    labels = ["table", "dataset", "method", "kind", "protocol"]
    titles = list(dict.fromkeys(metric.title.lower() for metric in METRICS.values() if metric.in_tables))
    writer = csv.DictWriter(
        sys.stdout, [*labels, *titles, "remarks", "source"], restval="", lineterminator="\n"
    )
    writer.writeheader()
    for table in found:
        for cell in table.cells:
            row = {key: getattr(cell, key) for key in (*labels[1:], "source")}
            row |= {"table": table.title, "remarks": "; ".join(cell.remarks)}
            # a spreadsheet takes a text that begins with one of these for a formula
            row = {key: f"'{text}" if text[:1] in ("=", "+", "-", "@") else text for key, text in row.items()}
            writer.writerow(row | cell.scores)


@dataclass(frozen=True)
class Tables(Options):
    results: Path = option(Path("results"), "folder of the evaluations")
    format: str = option("plain", "output format", (*FORMATS, "csv"))
    kinds: tuple[str, ...] = option(KINDS, "which rows, in which order", KINDS)
    protocol: str = option("RGB", "protocol of PSNR and SSIM", ("RGB", "Y", "DID/DDN", "all"))


def main() -> None:
    options = parse(Tables(), __doc__)
    found = tables(options.results, options.kinds, options.protocol)
    if options.format == "csv":
        write_csv(found)
    else:
        print("\n".join(as_text(table, options.format) for table in found), end="")


if __name__ == "__main__":
    run(main)
