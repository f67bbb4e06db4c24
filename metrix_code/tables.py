"""The paper's two tables: what others published and reproduced beside what was measured here.

python metrix_code/tables.py --results results --format markdown
python metrix_code/tables.py --format latex --kinds measured reproduced > tables.tex

published: as an author's page prints it. reproduced: retrained and scored by others, on the same sets (its
source says by whom). measured: what the scores.json files below --results say. What nobody measured is blank.
"""

import csv
import io
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # found as a script too, whatever folder one is in

from datasets.catalogue import columns, printed
from machinery.options import Options, option, parse
from metrix_code.metrics import METRICS, Metric
from metrix_code.scores import SCORES, UNKNOWN, read_scores
from utils import UserError, run

KINDS = ("published", "reproduced", "measured")
RAINY = "rainy input"
QUALITY_NOTE = "A PSNR compares within its protocol alone; metrix_code/protocol.py says what each is."
NIQE_NOTE = (
    "NIQE: lower is 'better', but untouched Real-275 already scores 3.66, so NIQE alone proves little. "
    "Ours has the LIVE release's parameters, on Y (metrix_code/niqe.py). With which tool the published NIQE "
    "was measured is not known: it may not compare with ours."
)


@dataclass(frozen=True)
class Cell:
    """One method on one dataset: scores as text, where they come from, and by which protocol."""

    dataset: str
    method: str
    kind: str  # one of KINDS
    protocol: str
    scores: dict[str, str]  # by lower-case title: psnr and ssim, or niqe
    remarks: tuple[str, ...] = ()  # '5 of 200 images': what keeps it from being the paper's number
    source: str = ""

    def __str__(self) -> str:
        return "\n".join([" / ".join(self.scores.values()), *self.remarks])


@dataclass
class Table:
    title: str
    datasets: list[str]
    cells: list[Cell]
    notes: Sequence[str] = ()

    def rows(self) -> list[tuple[str, str, list[Cell | None]]]:
        """(method, kind and protocol, a cell a dataset); two scores on one dataset take two rows."""
        rows: dict[tuple[str, str, int], dict[str, Cell]] = {}
        for cell in self.cells:
            label, turn = f"{cell.kind}, {cell.protocol}", 0
            while cell.dataset in rows.setdefault((cell.method, label, turn), {}):
                turn += 1
            rows[cell.method, label, turn][cell.dataset] = cell
        return [
            (method, label, [row.get(dataset) for dataset in self.datasets])
            for (method, label, _), row in rows.items()
        ]

    def as_text(self) -> list[list[str]]:
        """The header, then each row; a cell without a score is empty."""
        header = ["method", "protocol", *self.datasets]
        return [header] + [
            [method, label, *("" if cell is None else str(cell) for cell in cells)]
            for method, label, cells in self.rows()
        ]


# --------------------------------------------------------------------------------------------- gathering


def from_others(kind: str) -> list[Cell]:
    """The cells of published.csv or reproduced.csv, in their order."""
    with Path(__file__).with_name(f"{kind}.csv").open(encoding="utf-8", newline="") as file:
        return [
            Cell(
                dataset=row["dataset"],
                method=row["method"],
                kind=kind,
                protocol=row["protocol"],
                scores={"niqe": row["metric1"]}
                if row["table"] == "niqe"
                else {"psnr": row["metric1"], "ssim": row["metric2"]},
                source=row["source"],
            )
            for row in csv.DictReader(file)
        ]


def published(dataset: str, method: str) -> list[str]:
    """What is published of a method on a set, a line a table: 'published for PReNet: 27.640 / ...'."""
    whose = ", with the paper's network" if method in ("SID", "SSID-KD") else ""
    return [
        f"published for {cell.method}{whose}: {cell} ({cell.protocol}, {cell.source})"
        for cell in from_others("published")
        if (cell.dataset, cell.method) == (printed(dataset), method)
    ]


def measured(path: Path, scores: dict[str, Any]) -> list[Cell]:
    """The cells that one scores.json gives: the method in each protocol, and the rainy input beside it."""
    protocols: dict[tuple[str, bool], list[Metric]] = {}
    for metric in METRICS.values():
        if not metric.of_output:
            protocols.setdefault((metric.protocol, metric.paired), []).append(metric)
    cells = []
    for of_rainy in (False, True):
        for (protocol, _), metrics in protocols.items():
            keys = [metric.rainy_key if of_rainy else metric.key for metric in metrics]
            values = [scores["mean"].get(key) for key in keys]
            if all(value is None for value in values):
                continue
            cells.append(
                Cell(
                    dataset=_dataset(scores),
                    method=RAINY if of_rainy else _method(scores),
                    kind="measured",
                    protocol=protocol,
                    scores={
                        metric.title.lower(): "" if value is None else metric.text(value)
                        for metric, value in zip(metrics, values, strict=True)
                    },
                    remarks=_remarks(scores, keys, of_rainy),
                    source=_source(path, scores),
                )
            )
    return cells


def gather(results: Path) -> tuple[list[Cell], list[Cell]]:
    """The cells of every scores.json below `results`: of true benchmarks, then of simulated rain.

    A broken file is named on stderr and passed over.
    """
    paths = sorted(results.rglob(SCORES))
    if not paths:
        print(f"no evaluation below {results} has left a {SCORES}: nothing measured", file=sys.stderr)
    benchmarks: list[Cell] = []
    simulated: list[Cell] = []
    for path in paths:
        try:
            scores = read_scores(path)
        except UserError as error:
            print(f"passed over: {error}", file=sys.stderr)
            continue
        found = measured(path, scores)
        if not found:
            print(f"passed over: {path} holds no scores", file=sys.stderr)
        cells = simulated if scores["simulated"] else benchmarks
        cells += [cell for cell in found if not _repeats(cell, cells)]
    return benchmarks, simulated


def tables(results: Path, kinds: Sequence[str] = KINDS) -> list[Table]:
    """PSNR/SSIM and NIQE as in the paper; the same of simulated rain, apart, where there is any."""
    benchmarks, simulated = gather(results) if "measured" in kinds else ([], [])
    cells = [cell for kind in kinds if kind != "measured" for cell in from_others(kind)] + benchmarks
    found = [
        _table("PSNR (dB) / SSIM", "psnr", cells, notes=[QUALITY_NOTE], datasets=columns("psnr")),
        _table("NIQE", "niqe", cells, notes=[NIQE_NOTE], datasets=columns("niqe")),
        _table("PSNR (dB) / SSIM on SIMULATED rain, no benchmark", "psnr", simulated, notes=[QUALITY_NOTE]),
        _table("NIQE on SIMULATED rain, no benchmark", "niqe", simulated, notes=[NIQE_NOTE]),
    ]
    return [table for table in found if table.cells]


def _table(
    title: str, score: str, cells: Iterable[Cell], *, notes: Sequence[str], datasets: Sequence[str] = ()
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
    return printed(name)


def _method(scores: dict[str, Any]) -> str:
    whose = "released" if _training(scores).get("released") else "ours"
    method = scores["method"] + (f" ({whose})" if scores.get("checkpoint") else "")
    return method + (" + self-ensemble" if scores.get("self_ensemble") else "")


def _repeats(cell: Cell, cells: list[Cell]) -> bool:
    # Teacher and student are scored on one rainy input: it needs one row.
    return cell.method == RAINY and any(
        (cell.dataset, cell.protocol, cell.scores, cell.remarks)
        == (other.dataset, other.protocol, other.scores, other.remarks)
        for other in cells
        if other.method == cell.method
    )


def _remarks(scores: dict[str, Any], keys: Sequence[str], of_rainy: bool) -> tuple[str, ...]:
    """'5 of 200 images', where the paper's test set has 200; how many the mean leaves out; what was seen."""
    images = scores["images"]
    scored = min(sum(image.get(key) is not None for image in images) for key in keys)
    official = None if scores["simulated"] else scores.get("images_expected")
    expected = official or scores.get("images_found") or len(images)
    infinite = sum(image.get(keys[0]) == math.inf for image in images)
    count = f"{scored} images" if scored == expected else f"{scored} of {expected} images"
    remarks = [count + (f", {infinite} infinite" if infinite else "")]
    if scores.get("seen") and not of_rainy:
        remarks.append("TRAINED ON")
    return tuple(remarks)


def _training(scores: dict[str, Any]) -> dict[str, Any]:
    trained_on = scores.get("trained_on")
    return trained_on if isinstance(trained_on, dict) else {}


def _source(path: Path, scores: dict[str, Any]) -> str:
    parts = [str(path)]
    trained_on = _training(scores).get("dataset") or UNKNOWN
    if scores.get("checkpoint"):
        parts.append(f"checkpoint {scores['checkpoint']} at step {scores.get('checkpoint_step')}")
    if trained_on != UNKNOWN:
        parts.append(f"trained on {trained_on}")
    elif scores.get("checkpoint"):
        parts.append(f"training {UNKNOWN}")
    if scores.get("precision", "float32") != "float32":
        parts.append(str(scores["precision"]))
    if scores.get("tile"):
        parts.append(f"tiles of {scores['tile']}")
    if scores.get("seen"):
        parts.append(f"TRAINED ON: {scores['seen']}")
    return ", ".join(parts + [str(scores[key]) for key in ("hardware", "date") if scores.get(key)])


# ---------------------------------------------------------------------------------------------- printing


def as_columns(table: Table) -> str:
    rows = [[cell.split("\n") for cell in row] for row in table.as_text()]
    widths = [max(len(line) for cell in column for line in cell) for column in zip(*rows, strict=True)]
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    lines, before = [table.title, rule], ""
    for row in rows:
        kind = row[1][0].split(",")[0]
        if before not in ("", kind):
            lines.append(rule)
        before = kind
        for k in range(max(map(len, row))):
            line = (cell[k] if k < len(cell) else "" for cell in row)
            lines.append(
                "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
            )
    return "\n".join([*lines, rule, *_footnotes(table)]) + "\n"


def as_markdown(table: Table) -> str:
    header, *rows = table.as_text()
    lines = [f"### {table.title}", "", _bars(header), _bars(["---"] * len(header))]
    lines += [_bars([_in_markdown(cell) for cell in row]) for row in rows]
    return "\n".join([*lines, "", *(f"- {_in_markdown(note)}" for note in _footnotes(table))]) + "\n"


def _in_markdown(text: str) -> str:
    """What a scores.json says is text: no tag of it reaches a browser."""
    return text.replace("<", "&lt;").replace("|", "\\|").replace("\n", "<br>")


def as_latex(table: Table) -> str:
    """A booktabs table (\\usepackage{booktabs}); cells' remarks are lettered and stand in the caption."""
    rows, letters, lines, before = table.rows(), dict[str, str](), list[str](), ""
    for method, label, cells in rows:
        if before not in ("", label.split(",")[0]):
            lines.append(r"\midrule")
        before = label.split(",")[0]
        texts = []
        for cell in cells:
            marks = (
                [letters.setdefault(remark, _letter(len(letters))) for remark in cell.remarks] if cell else []
            )
            scores = " / ".join(cell.scores.values()) if cell else ""
            texts.append(_escaped(scores) + (f"$^{{{','.join(marks)}}}$" if marks else ""))
        lines.append(" & ".join([_escaped(method), _escaped(label), *texts]) + r" \\")
    header = " & ".join(["Method", "Protocol", *map(_escaped, table.datasets)])
    notes = [f"$^{{{letter}}}$ {_escaped(remark)}." for remark, letter in letters.items()]
    sources = [f"% {note}" for note in _footnotes(table)]
    return (
        "\n".join(
            [
                *sources,
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{_escaped(table.title)}.{''.join(f' {note}' for note in notes)}}}",
                rf"\begin{{tabular}}{{ll{'c' * len(table.datasets)}}}",
                r"\toprule",
                rf"{header} \\",
                r"\midrule",
                *lines,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
            ]
        )
        + "\n"
    )


def as_csv(found: Sequence[Table]) -> str:
    """A line a cell, so that none loses its label."""
    text = io.StringIO()
    labels = ["table", "dataset", "method", "kind", "protocol"]
    titles = list(dict.fromkeys(metric.title.lower() for metric in METRICS.values()))
    writer = csv.DictWriter(text, [*labels, *titles, "remarks", "source"], restval="", lineterminator="\n")
    writer.writeheader()
    for table in found:
        for cell in table.cells:
            row = {key: getattr(cell, key) for key in (*labels[1:], "source")}
            row |= {"table": table.title, "remarks": "; ".join(cell.remarks)}
            writer.writerow(row | cell.scores)
    return text.getvalue()


def _bars(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _letter(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else f"a{number - 25}"


def _escaped(text: str) -> str:
    """As LaTeX prints it: its special characters are text here."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    return " ".join("".join(special.get(character, character) for character in text).split())


def _footnotes(table: Table) -> list[str]:
    """Where the cells come from, a line an evaluation or a foreign collection; then the table's notes."""
    origins: dict[tuple[str, str], tuple[dict[str, None], dict[str, None]]] = {}
    for cell in table.cells:
        source, _, place = (cell.source, "", "") if cell.kind == "measured" else cell.source.partition(", ")
        sets, places = origins.setdefault((cell.kind, source), ({}, {}))
        sets[cell.dataset] = places[place] = None
    notes = []
    for (kind, source), (sets, places) in origins.items():
        notes.append(f"{kind}, {', '.join(sets)}: {', '.join(filter(None, (source, *places)))}")
    return [" ".join(note.split()) for note in (*notes, *table.notes)]


PRINTED = {"plain": as_columns, "markdown": as_markdown, "latex": as_latex}


@dataclass(frozen=True)
class Tables(Options):
    """The options of this script."""

    results: Path = option(Path("results"), "where the evaluations are")
    format: str = option("plain", "how they are printed", (*PRINTED, "csv"))
    kinds: tuple[str, ...] = option(KINDS, "which rows, in which order", KINDS)


def main() -> None:
    options = parse(Tables(), __doc__)
    if not options.results.is_dir():
        print(f"nothing is measured in {options.results}: published figures alone", file=sys.stderr)
    found = tables(options.results, options.kinds)
    if options.format == "csv":
        print(as_csv(found), end="")
    else:
        print("\n".join(map(PRINTED[options.format], found)))


if __name__ == "__main__":
    run(main)
