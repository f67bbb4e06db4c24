"""Does unlabelled rain help? Students of one teacher, with and without what they can learn from real rain.

    python tools/study.py --teacher trained_model/Rain200H --tests PAIRS MORE_PAIRS --photographs FOLDER
    python tools/study.py --preset light --teacher trained_model/Rain200H-light --real_path TARGET/rainy \\
        --labelled TARGET --tests TARGET SOURCE

Variations of the student's losses: the released terms, each real term alone at a share of the loss, and ways
that the paper does not have (tools/adaptation.py); each with several seeds and equal steps. `--labelled` is
the ceiling, the variation 'target with labels': the target's own pairs. Every student is scored on every test
set, and on photographs by NIQE. Students of one seed see the same crops, so their differences tell more than
their means do. What is done already is not done again. The tables are also a file: study.md.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # found as a script too, whatever folder one is in

import utils
from config import EVALUATIONS, STUDENTS, Evaluation, Schedule
from engine import Run
from evaluation import score
from machinery import distributed
from machinery.checkpoints import LATEST, find_checkpoint, load_checkpoint
from machinery.distributed import World
from machinery.options import option, parse, resume_keys, to_dict
from metrix_code.scores import SCORES, read_scores
from tools.adaptation import Adapted, Adapting
from utils import UserError, join_names

BASE = "no real terms"  # plain fine-tuning: what the others are compared to
NO_REAL_TERMS = {"dark_real_weight": 0.0, "tv_real_weight": 0.0, "kl_weight": 0.0}
# what each adds to BASE: a term, and its share of the loss on the teacher's first batches
SHARES: dict[str, dict[str, float]] = {
    **{
        f"{name} at {100 * share:g} %": {term: share}
        for name, term in {
            "dark channel": "dark_real",
            "total variation": "tv_real",
            "KL": "kl",
            "statistics": "align",
        }.items()
        for share in (0.01, 0.1)
    },
    "mean teacher": {"consistency": 0.1},
    "turned views at 10 %": {"turned": 0.1},
    "turned views at 30 %": {"turned": 0.3},
    "transplanted streaks": {"transplant": 0.1},
    "mean teacher and streaks": {"consistency": 0.1, "transplant": 0.1},
}
LABELLED = "target with labels"
VARIATIONS = (BASE, "as released", *SHARES, "KL alone", LABELLED)


@dataclass(frozen=True)
class Study(Adapting):
    """A student's options, what it is compared with, and what it is scored on."""

    dataset: str = "Rain200H"
    save_path: Path = option(Path("results/study"), "where students, scores and study.md go")
    seeds: tuple[int, ...] = option((0, 1, 2), "of each variation's students")
    variations: tuple[str, ...] = option(VARIATIONS, "what is compared", VARIATIONS)
    labelled: tuple[Path, ...] = option((), f"pairs of the target, for '{LABELLED}' alone")
    tests: tuple[Path, ...] = option((), "test sets with clean images, scored by PSNR and SSIM")
    photographs: tuple[Path, ...] = option((), "folders of real photographs, scored by NIQE")


def main() -> None:
    study = parse(Study(**defaults()), __doc__ or "")
    folders = [path.name for path in (*study.tests, *study.photographs)]
    if doubled := [name for name in folders if folders.count(name) > 1]:
        raise UserError(f"two sets are called {doubled[0]}, and a column is a set's name: rename one")
    device = distributed.device(study)
    variations = variations_of(study, device)
    found: dict[str, list[dict[str, float]]] = {"teacher": [scored(study, study.teacher, "teacher", device)]}
    for seed in study.seeds:  # all of a seed first: a study that is cut short compares what it has
        for name, changes in variations.items():
            folder = study.save_path / name.replace(" ", "_").replace("%", "percent") / str(seed)
            student = dataclasses.replace(study, save_path=folder, seed=seed, **changes)
            train_unless_finished(student, device)
            found.setdefault(name, []).append(scored(study, folder, f"{name}, seed {seed}", device))
    text = table(study, found)
    utils.write_text(study.save_path / "study.md", text)
    print(text)


def defaults() -> dict[str, Any]:
    """The released recipe's fields, but for those that a study has of its own."""
    released = vars(STUDENTS["Rain200H"])
    return {name: value for name, value in released.items() if name != "save_path"}


def variations_of(study: Study, device: torch.device) -> dict[str, dict[str, Any]]:
    """Those asked for, as changes of the student's recipe. A share is that on the teacher's first batches."""
    measured = dataclasses.replace(
        study,
        save_path=study.save_path / "shares",
        steps=8,
        log_every=1,
        val_every=0,
        lr=1e-12,
        consistency_weight=1e-12,  # a term without a weight is not computed
        turned_weight=1e-12,
        transplant_weight=1e-12,
    )
    train_unless_finished(measured, device)
    lines = [json.loads(line) for line in (measured.save_path / "log.jsonl").read_text().splitlines()]

    def mean(term: str) -> float:
        return abs(float(np.mean([line[f"loss/{term}"] for line in lines])))

    def weights(shares: dict[str, float]) -> dict[str, float]:
        # a share s of the loss with it: w * term = s * (total + w * term)
        return {
            f"{term}_weight": mean("total") / max(mean(term), 1e-12) * share / (1 - share)
            for term, share in shares.items()
        }

    none = {name: 0.0 for name in vars(study) if name.endswith("_weight")}
    every: dict[str, dict[str, Any]] = {
        BASE: NO_REAL_TERMS,
        "as released": {},
        **{name: NO_REAL_TERMS | weights(shares) for name, shares in SHARES.items()},
        "KL alone": none | weights({"kl": 0.5}),
    }
    if study.labelled:
        every[LABELLED] = NO_REAL_TERMS | {"data_path": (*study.data_path, *study.labelled)}
    return {name: changes for name, changes in every.items() if name in study.variations}


def train_unless_finished(student: Study, device: torch.device) -> None:
    if not finished(student):
        Run(Adapted, student, World(0, 1, device)).run()


def finished(student: Study) -> bool:
    """Whether this student has been trained, by an earlier call of the same study."""
    path = student.save_path / LATEST
    if not path.exists():
        return False
    content = load_checkpoint(path)
    made_of, given = content["recipe"], to_dict(student)
    same = all(made_of.get(name) == given[name] for name in (*resume_keys(student), "teacher", "data_path"))
    pairs = sum(count for what, (count, _) in content["counts"].items() if what.startswith("pairs"))
    return same and content["step"] == Schedule.of(student, pairs).steps


def scored(study: Study, logdir: Path, name: str, device: torch.device) -> dict[str, float]:
    """Mean scores of one model on every set, by '<set> <metric>'."""
    kind = EVALUATIONS["Rain200H", "SSID-KD"]
    values: dict[str, float] = {}
    for folders, metrics in ((study.tests, ("psnr", "ssim")), (study.photographs, ("niqe",))):
        for folder in folders:
            results = study.save_path / "scores" / name.replace(" ", "_") / folder.name
            options = dataclasses.replace(
                kind,
                dataset=folder.name,
                logdir=logdir,
                data_path=folder,
                save_path=results,
                labelled="psnr" in metrics,
                niqe="niqe" in metrics,
                page=False,
                precision=study.precision,
            )
            mean = known(results, options) or score(options, device)["mean"]
            values |= {f"{folder.name} {metric}": mean[metric] for metric in metrics}
    return values


def known(results: Path, options: Evaluation) -> dict[str, float] | None:
    path = results / SCORES
    if not path.exists():
        return None
    scores = read_scores(path)
    checkpoint = find_checkpoint(options.logdir, "give --teacher a checkpoint")
    fresh = path.stat().st_mtime > checkpoint.stat().st_mtime
    return scores["mean"] if fresh and scores["data_path"] == str(options.data_path) else None


def table(study: Study, found: dict[str, list[dict[str, float]]]) -> str:
    """Markdown, a row a variation, a column a score: the scores, then their differences to no real terms."""
    names = list(found["teacher"][0])
    head = ["| variation | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    scores, differences = [*head], [*head]
    for name, rows in found.items():
        cells = [cell([row[column] for row in rows]) for column in names]
        scores.append(f"| {name} | " + " | ".join(cells) + " |")
        if name not in ("teacher", BASE) and BASE in found:
            pairs = list(zip(rows, found[BASE], strict=True))
            cells = [cell([row[column] - base[column] for row, base in pairs], "+") for column in names]
            differences.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(
        [
            f"{study.steps or 'all'} steps, seeds {join_names(study.seeds)}; mean (standard deviation). "
            "PSNR in dB and SSIM: RGB, 8 bits; NIQE: LIVE parameters.",
            "",
            *scores,
            "",
            f"Differences to '{BASE}' with the same seed, which sees the same crops:",
            "",
            *differences,
            "",
        ]
    )


def cell(values: list[float], sign: str = "") -> str:
    mean = f"{np.mean(values):{sign}.3f}"
    return mean if len(values) == 1 else f"{mean} ({np.std(values, ddof=1):.3f})"


if __name__ == "__main__":
    utils.run(main)
