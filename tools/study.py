"""Does the distillation do anything? Students of one teacher, with and without the terms on real rain.

    python tools/study.py --teacher trained_model/Rain200H --tests PAIRS MORE_PAIRS --photographs FOLDER

Five weightings of the losses, each with several seeds and equal steps; every student is scored on every test
set, and on photographs by NIQE. Students of one seed see the same crops, so their differences tell more than
their means do. What is done already is not done again. The tables are also a file: study.md.
"""

from __future__ import annotations

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
from config import EVALUATIONS, STUDENTS, Evaluation, Schedule, Student
from engine import Run
from evaluation import score
from machinery import distributed
from machinery.checkpoints import LATEST, find_checkpoint, load_checkpoint
from machinery.distributed import World
from machinery.options import as_plain, binding, option, parse
from metrix_code.scores import FILE, read_scores
from stages import SSIDKD
from utils import UserError

BASE = "no real terms"  # plain fine-tuning: what the others are compared to
NO_REAL_TERMS = {"dark_real_weight": 0.0, "tv_real_weight": 0.0, "kl_weight": 0.0}


@dataclass(frozen=True)
class Study(Student):
    """A student's options, and what it is scored on."""

    dataset: str = "Rain200H"
    save_path: Path = option(Path("results/study"), "where students, scores and study.md go")
    seeds: tuple[int, ...] = option((0, 1, 2), "of each weighting's students")
    tests: tuple[Path, ...] = option((), "test sets with clean images, scored by PSNR and SSIM")
    photographs: tuple[Path, ...] = option((), "folders of real photographs, scored by NIQE")


def main() -> None:
    study = parse(Study(**defaults()), __doc__ or "")
    folders = [path.name for path in (*study.tests, *study.photographs)]
    if doubled := [name for name in folders if folders.count(name) > 1]:
        raise UserError(f"two sets are called {doubled[0]}, and a column is a set's name: rename one")
    device = distributed.device(study)
    weightings = weightings_of(study, device)
    found: dict[str, list[dict[str, float]]] = {"teacher": [scored(study, study.teacher, "teacher", device)]}
    for name, weights in weightings.items():
        for seed in study.seeds:
            folder = study.save_path / name.replace(" ", "_").replace("%", "percent") / str(seed)
            student = dataclasses.replace(study, save_path=folder, seed=seed, **weights)
            if not finished(student):
                Run(SSIDKD, student, World(0, 1, device)).run()
            found.setdefault(name, []).append(scored(study, folder, f"{name}, seed {seed}", device))
    text = table(study, found, weightings)
    utils.write_text(study.save_path / "study.md", text)
    print(text)


def defaults() -> dict[str, Any]:
    """The released recipe's fields, but for those that a study has of its own."""
    released = vars(STUDENTS["Rain200H"])
    return {name: value for name, value in released.items() if name != "save_path"}


def weightings_of(study: Study, device: torch.device) -> dict[str, dict[str, Any]]:
    """The losses' weights by name; KL's share of the loss is what it has on the teacher's first batches."""
    folder = study.save_path / "shares"
    first = dataclasses.replace(study, save_path=folder, steps=8, log_every=1, val_every=0, lr=1e-12)
    if not finished(first):
        Run(SSIDKD, first, World(0, 1, device)).run()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    others = {name: 0.0 for name in vars(study) if name.endswith("_weight") and name != "kl_weight"}
    total, kl = (float(np.mean([line[f"loss/{term}"] for line in lines])) for term in ("total", "kl"))
    total = abs(total)  # of LightNet's recipe it is negative
    return {
        BASE: NO_REAL_TERMS,
        "as released": {},
        # a share s of the loss with it: w * kl = s * (total + w * kl)
        "KL at 1 %": {"kl_weight": total / kl * 0.01 / 0.99},
        "KL at 10 %": {"kl_weight": total / kl * 0.1 / 0.9},
        "KL alone": {**others, "kl_weight": total / kl},
    }


def finished(student: Study) -> bool:
    """Whether this student has been trained, by an earlier call of the same study."""
    path = student.save_path / LATEST
    if not path.exists():
        return False
    content = load_checkpoint(path)
    steps = Schedule.of(student, content["counts"]["pairs"][0]).steps
    made_of, given = content["recipe"], as_plain(student)
    same = all(made_of.get(name) == given[name] for name in (*binding(student), "teacher"))
    return same and content["step"] == steps


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
            )
            mean = known(results, options) or score(options, device)["mean"]
            values |= {f"{folder.name} {metric}": mean[metric] for metric in metrics}
    return values


def known(results: Path, options: Evaluation) -> dict[str, float] | None:
    path = results / FILE
    if not path.exists():
        return None
    scores = read_scores(path)
    checkpoint = find_checkpoint(options.logdir, "give --teacher a checkpoint")
    fresh = path.stat().st_mtime > checkpoint.stat().st_mtime
    return scores["mean"] if fresh and scores["data_path"] == str(options.data_path) else None


def table(
    study: Study, found: dict[str, list[dict[str, float]]], weightings: dict[str, dict[str, Any]]
) -> str:
    """Markdown, a row a weighting, a column a score: the scores, then their differences to no real terms."""
    names = list(found["teacher"][0])
    head = ["| weighting | KL weight | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    scores, differences = [*head], [*head]
    for name, rows in found.items():
        weight = "" if name == "teacher" else f"{weightings[name].get('kl_weight', study.kl_weight):.3g}"
        cells = [cell([row[column] for row in rows]) for column in names]
        scores.append(f"| {name} | {weight} | " + " | ".join(cells) + " |")
        if name not in ("teacher", BASE):
            pairs = list(zip(rows, found[BASE], strict=True))
            cells = [cell([row[column] - base[column] for row, base in pairs], "+") for column in names]
            differences.append(f"| {name} | {weight} | " + " | ".join(cells) + " |")
    return "\n".join(
        [
            f"{study.steps or 'all'} steps, {len(study.seeds)} seeds; mean (standard deviation over them). "
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
