"""The paper's two tables: what others published beside what was measured here.

python metrix_code/tables.py --results results --format markdown

Measured is what the scores.json files below --results say. What was not measured is blank.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # found as a script too, whatever folder one is in

from metrix_code.scores import FILE, read_scores
from utils import UserError, run

QUALITY_SETS = ("Rain200H", "Rain200L", "Rain800", "Rain1200", "Rain1400", "SPA")
NIQE_SETS = ("SPA", "Real-275")
NIQE_NOTE = (
    "NIQE: lower is 'better', but untouched Real-275 already scores 3.66, so NIQE alone proves little. "
    "Ours has the LIVE release's parameters, on Y (metrix_code/niqe.py)."
)
PUBLISHED_NIQE_NOTE = (
    "With which tool the published NIQE was measured is not known: it may not compare with ours."
)


@dataclass(frozen=True)
class Cell:
    """One method on one dataset: scores as text, where they come from, and by which protocol."""

    dataset: str
    method: str
    kind: str  # "published" or "measured"
    protocol: str
    scores: dict[str, str]  # psnr and ssim, or niqe
    images: str = ""  # '5 of 200 images': not the paper's test set
    source: str = ""

    def __str__(self) -> str:
        lines = (" / ".join(self.scores.values()), f"{self.kind}, {self.protocol}", self.images)
        return "\n".join(line for line in lines if line)


@dataclass
class Table:
    title: str
    datasets: list[str]
    cells: list[Cell]
    notes: Sequence[str] = ()

    def rows(self) -> list[list[str]]:
        """The header, then a row a method; a method scored more than once on a dataset takes further rows."""
        rows: dict[tuple[str, str, int], dict[str, Cell]] = {}
        for cell in self.cells:
            turn = 0
            while cell.dataset in rows.setdefault((cell.method, cell.kind, turn), {}):
                turn += 1
            rows[cell.method, cell.kind, turn][cell.dataset] = cell
        header = ["method", *self.datasets]
        return [header] + [
            [method, *(str(row.get(dataset, "")) for dataset in self.datasets)]
            for (method, _, _), row in rows.items()
        ]


# --------------------------------------------------------------------------------------------- gathering


def published() -> list[Cell]:
    """The cells of published.csv, in its order."""
    with Path(__file__).with_name("published.csv").open(encoding="utf-8", newline="") as file:
        return [
            Cell(
                dataset=row["dataset"],
                method=row["method"],
                kind="published",
                protocol=row["protocol"],
                scores={"niqe": row["metric1"]}
                if row["table"] == "niqe"
                else {"psnr": row["metric1"], "ssim": row["metric2"]},
                source=row["source"],
            )
            for row in csv.DictReader(file)
        ]


def measured(path: Path, scores: dict[str, Any]) -> list[Cell]:
    """The cells that one scores.json gives: the method by each protocol, and the rainy input beside it."""
    mean = scores["mean"]
    cells = []
    for who, prefix in ((scores["method"], ""), ("rainy input", "rainy_")):
        for protocol, names, digits in (
            (scores["protocol"], {"psnr": f"{prefix}psnr", "ssim": f"{prefix}ssim"}, (3, 4)),
            ("Y", {"psnr": f"{prefix}psnr_y", "ssim": f"{prefix}ssim_y"}, (3, 4)),
            ("Y", {"niqe": f"{prefix}niqe"}, (4,)),
        ):
            values = [mean.get(name) for name in names.values()]
            if all(value is None for value in values):
                continue
            cells.append(
                Cell(
                    dataset=_dataset(scores),
                    method=f"{who} (ours)" if not prefix else who,
                    kind="measured",
                    protocol=protocol,
                    scores={
                        key: "" if value is None else f"{value:.{places}f}"
                        for key, value, places in zip(names, values, digits, strict=True)
                    },
                    images=_images(scores, next(iter(names.values()))),
                    source=_source(path, scores),
                )
            )
    return cells


def gather(results: Path) -> tuple[list[Cell], list[Cell]]:
    """The cells of every scores.json below `results`: of true benchmarks, then of simulated rain.

    A broken file is named on stderr and passed over.
    """
    paths = sorted(results.rglob(FILE))
    if not paths:
        print(f"no evaluation below {results} has left a {FILE}: nothing measured", file=sys.stderr)
    benchmarks: list[Cell] = []
    simulated: list[Cell] = []
    for path in paths:
        try:
            scores = read_scores(path)
        except UserError as error:
            print(f"passed over: {error}", file=sys.stderr)
            continue
        cells = simulated if scores["simulated"] else benchmarks
        cells += [cell for cell in measured(path, scores) if not _repeats(cell, cells)]
    return benchmarks, simulated


def tables(results: Path) -> list[Table]:
    """PSNR/SSIM and NIQE as in the paper; the same of simulated rain, apart, where there is any."""
    benchmarks, simulated = gather(results)
    cells = published() + benchmarks
    found = [
        _table("PSNR (dB) / SSIM", "psnr", cells, QUALITY_SETS),
        _table("NIQE", "niqe", cells, NIQE_SETS, [NIQE_NOTE, PUBLISHED_NIQE_NOTE]),
    ]
    if simulated:
        found += [
            _table("PSNR (dB) / SSIM on SIMULATED rain, no benchmark", "psnr", simulated),
            _table("NIQE on SIMULATED rain, no benchmark", "niqe", simulated, notes=[NIQE_NOTE]),
        ]
    return [table for table in found if table.datasets]


def _table(
    title: str, score: str, cells: list[Cell], datasets: Sequence[str] = (), notes: Sequence[str] = ()
) -> Table:
    """Of the cells that hold this `score`; the datasets in the order given, others after them."""
    chosen = [cell for cell in cells if score in cell.scores]
    others = (cell.dataset for cell in chosen if cell.dataset not in datasets)
    return Table(title, [*datasets, *dict.fromkeys(others)], chosen, notes)


def _dataset(scores: dict[str, Any]) -> str:
    """Its name as the paper writes it. Simulated rain goes by its folder, not by the set it imitates."""
    name = scores["dataset"]
    if scores["simulated"]:
        return Path(scores.get("data_path") or name).name
    known = {known.replace("-", "").lower(): known for known in (*QUALITY_SETS, *NIQE_SETS)}
    return known.get(name.replace("-", "").lower(), name)


def _repeats(cell: Cell, cells: list[Cell]) -> bool:
    # Teacher and student are scored on one rainy input: it needs one row.
    return cell.method == "rainy input" and any(
        (cell.dataset, cell.protocol, cell.scores, cell.images)
        == (other.dataset, other.protocol, other.scores, other.images)
        for other in cells
        if other.method == cell.method
    )


def _images(scores: dict[str, Any], name: str) -> str:
    """'5 of 200 images', where the paper's test set has 200; and how many of them the mean leaves out."""
    found = sum(image.get(name) is not None for image in scores["images"])
    official = None if scores["simulated"] else scores.get("images_expected")
    expected = official or len(scores["images"])
    infinite = sum(image.get(name) == math.inf for image in scores["images"])
    count = f"{found} images" if found == expected else f"{found} of {expected} images"
    return count + (f", {infinite} infinite" if infinite else "")


def _source(path: Path, scores: dict[str, Any]) -> str:
    parts = [str(path)]
    if scores.get("checkpoint"):
        parts.append(f"checkpoint {scores['checkpoint']} at step {scores.get('checkpoint_step')}")
    return ", ".join(parts + [str(scores[key]) for key in ("hardware", "date") if scores.get(key)])


# ---------------------------------------------------------------------------------------------- printing


def as_plain(table: Table) -> str:
    rows = [[cell.split("\n") for cell in row] for row in table.rows()]
    widths = [max(len(line) for cell in column for line in cell) for column in zip(*rows, strict=True)]
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    lines = [table.title, rule]
    for row in rows:
        for k in range(max(map(len, row))):
            line = (cell[k] if k < len(cell) else "" for cell in row)
            lines.append(
                "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
            )
        lines.append(rule)
    return "\n".join(lines + _footnotes(table)) + "\n"


def as_markdown(table: Table) -> str:
    header, *rows = table.rows()
    lines = [f"### {table.title}", "", _bars(header), _bars(["---"] * len(header))]
    lines += [_bars([cell.replace("|", "\\|").replace("\n", "<br>") for cell in row]) for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in _footnotes(table))]) + "\n"


def as_csv(found: list[Table]) -> str:
    """A line a cell, so that none loses its label."""
    text = io.StringIO()
    columns = ["table", "dataset", "method", "kind", "protocol", "psnr", "ssim", "niqe", "images", "source"]
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for table in found:
        for cell in table.cells:
            labels = {key: getattr(cell, key) for key in columns if hasattr(cell, key)}
            writer.writerow({"table": table.title} | labels | cell.scores)
    return text.getvalue()


def _bars(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _footnotes(table: Table) -> list[str]:
    origins: dict[tuple[str, str], dict[str, None]] = {}
    for cell in table.cells:
        origins.setdefault((cell.kind, cell.source), {})[cell.dataset] = None
    notes = [f"{kind}, {', '.join(sets)}: {source}" for (kind, source), sets in origins.items()]
    return [*notes, *table.notes]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="where the evaluations are (default: results)"
    )
    parser.add_argument(
        "--format", choices=("plain", "markdown", "csv"), default="plain", help="(default: plain)"
    )
    options = parser.parse_args()
    found = tables(options.results)
    if options.format == "csv":
        print(as_csv(found), end="")
    else:
        print(
            "\n".join({"plain": as_plain, "markdown": as_markdown}[options.format](table) for table in found)
        )


if __name__ == "__main__":
    run(main)
