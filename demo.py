"""The quick start: the whole method on a small simulated dataset, by the very scripts of the true ones.

It makes the dataset, trains a small teacher, distils a small student, derains with both and with the models
that come with the project, and ends with a table and pictures. The rain is rendered on photographs that ship
with scikit-image, so no number here is a benchmark's.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machinery.checkpoints import LATEST, SHIPPED
from machinery.options import Options, option, parse
from metrix_code.scores import SCORES, read_scores
from tools.contact_sheet import from_folders
from utils import UserError, run, write_image

DATA, MODELS, RESULTS = Path("datasets/simulated"), Path("trained_model/demo"), Path("results/demo")
COME_WITH = {  # the project: LightNet's
    "shipped teacher": Path("trained_model/Rain200H-light") / SHIPPED / LATEST,
    "shipped student": Path("trained_model/Rain200H-light+Real") / SHIPPED / LATEST,
}
SETS = {"pairs": DATA / "Simulated200H", "real": DATA / "SimulatedReal"}
TEST = {"pairs": "rain_data_test_Heavy/rain/X2", "real": "test/rain"}
CLEAN = {"pairs": "rain_data_test_Heavy/norain", "real": "test/norain"}
SMALL = "--channels 12,16,24 --units 3,2,1 --batchSize 4 --patch_size 64 --use_GPU False --workers 1"
CAPTIONS = {"pairs": "pairs like Rain200H", "real": "'real': other streaks, haze"}


@dataclass(frozen=True)
class Demo(Options):
    """The options of this script."""

    steps: int = option(60, "of the teacher; the student takes a quarter", min=1)


def main() -> None:
    steps = parse(Demo(), __doc__).steps
    began = time.perf_counter()
    own = {"teacher": MODELS / "teacher", "student": MODELS / "student"}
    for folder in (MODELS, RESULTS):  # an earlier demo's
        shutil.rmtree(folder, ignore_errors=True)
    call(f"datasets/simulate.py --out {DATA}")
    pairs, real = SETS["pairs"], SETS["real"] / "train/rain"
    call(
        f"train_Rain200H.py --data_path {pairs} --save_path {own['teacher']} --steps {steps} --lr 0.001 "
        f"{SMALL}"
    )
    call(
        f"train_Rain200H_real.py --data_path {pairs} --real_path {real} --teacher {own['teacher']} "
        f"--save_path {own['student']} --steps {max(1, steps // 4)} {SMALL}"
    )
    models = own | {name: file for name, file in COME_WITH.items() if file.exists()}
    for data in SETS:
        for name, model in models.items():
            call(
                f"eval_Rain200H{'_real' * ('student' in name)}.py --logdir {model} --data_path {SETS[data]} "
                f"--save_path {place(data, name)} --use_GPU False"
            )
    print(table(list(models)))
    print(in_plain_words())
    sheets = [picture(data, [name for name in models if "student" in name]) for data in SETS]
    print(f"to look at: {' and '.join(map(str, sheets))}, and index.html beside the images in {RESULTS}")
    print(f"to browse: tensorboard --logdir {MODELS}")
    print(f"{time.perf_counter() - began:.0f} s")


def place(data: str, name: str) -> Path:
    return RESULTS / data / name.replace(" ", "_")


def call(command: str) -> None:
    """Runs a script's command line. Raises UserError where it fails."""
    print(f"\n$ python {command}", flush=True)
    # small networks gain little from a second thread, and two that spin for each other may lose much
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    if failed := subprocess.run([sys.executable, *shlex.split(command)], env=environment).returncode:
        raise UserError(f"{command.split()[0]} ended with exit code {failed}: see above")


def mean(data: str, name: str) -> dict[str, Any]:
    return read_scores(place(data, name) / SCORES)["mean"]


def table(names: list[str]) -> str:
    """PSNR and SSIM of the rainy input and of each model, from what the eval scripts wrote."""

    def row(*cells: str) -> str:
        return "".join(f"{cell:{30 if not place else 17}}" for place, cell in enumerate(cells)).rstrip()

    def shown(scores: dict[str, Any], of: str = "") -> str:
        return f"{scores[f'{of}psnr']:.2f} / {scores[f'{of}ssim']:.4f}"

    lines = ["\nsimulated rain, test photographs; RGB PSNR (dB) / SSIM", row("", "rainy input", *names)]
    for data, caption in CAPTIONS.items():
        means = [mean(data, name) for name in names]
        lines.append(row(caption, shown(means[0], "rainy_"), *map(shown, means)))
    return "\n".join(lines)


def in_plain_words() -> str:
    """What the table shows of this demo's own student, be it good or bad."""
    pairs, real = (mean(data, "student")["psnr"] - mean(data, "teacher")["psnr"] for data in SETS)
    return f"""
The student just trained is {pairs:+.2f} dB from its teacher on the pairs, {real:+.2f} dB on 'real' rain.
It follows the clean images of its pairs by 20 L1, and as released the terms on real rain weigh next to
nothing (REPRODUCTION.md): in so few steps it learns the pairs, and not the real rain."""


def picture(data: str, students: list[str]) -> Path:
    """A contact sheet of a set's test photographs: rainy, derained by the students, clean."""
    path = RESULTS / f"{data}.png"
    folders = {"rainy": SETS[data] / TEST[data], **{name: place(data, name) for name in students}}
    write_image(path, from_folders({**folders, "clean": SETS[data] / CLEAN[data]}))
    return path


if __name__ == "__main__":
    run(main)
