"""The quick start: the whole method on a small simulated dataset, by the very scripts of the true ones.

It makes the dataset, trains a small teacher, distils a small student, derains with both, and ends with a
table and a picture. The rain is rendered on photographs that ship with scikit-image, so no number here is a
benchmark's.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from machinery.checkpoints import LATEST
from machinery.checkpoints import SHIPPED as SHIPPED_AS
from machinery.options import Options, option, parse
from metrix_code.scores import FILE, read_scores
from tools.contact_sheet import from_folders
from utils import UserError, run, write_image

DATA, MODELS, RESULTS = Path("datasets/simulated"), Path("trained_model/demo"), Path("results/demo")
SHIPPED = {"teacher": "Rain200H", "student": "Rain200H+Real"}
PAIRS, REAL = DATA / "Simulated200H", DATA / "SimulatedReal"
SMALL = "--channels 12,16,24 --units 3,2,1 --batchSize 4 --patch_size 64 --use_GPU False --workers 1"


@dataclass(frozen=True)
class Demo(Options):
    """The options of this script."""

    steps: int = option(60, "of the teacher; the student takes a quarter", least=1)


def main() -> None:
    steps = parse(Demo(), __doc__).steps
    began = time.perf_counter()
    teacher, student = MODELS / "teacher", MODELS / "student"
    for folder in (MODELS, RESULTS):  # an earlier demo's
        shutil.rmtree(folder, ignore_errors=True)
    call(f"datasets/simulate.py --out {DATA}")
    call(f"train_Rain200H.py --data_path {PAIRS} --save_path {teacher} --steps {steps} --lr 0.001 {SMALL}")
    call(
        f"train_Rain200H_real.py --data_path {PAIRS} --real_path {REAL}/train/rain --teacher {teacher} "
        f"--save_path {student} --steps {max(1, steps // 4)} {SMALL}"
    )
    models = {"teacher": teacher, "student": student}
    score(PAIRS, "pairs", models)
    score(REAL, "real", models)
    sheets = [picture("pairs")]
    shipped = {name: Path("trained_model") / folder for name, folder in SHIPPED.items()}
    if all((folder / SHIPPED_AS / LATEST).exists() for folder in shipped.values()):
        print("\nthe same photographs, by the full network, trained on true pairs of Rain200H:")
        score(PAIRS, "shipped", shipped)
        sheets.append(picture("shipped"))
    print(table())
    print(f"to look at: {' and '.join(map(str, sheets))}, and index.html beside the images in {RESULTS}")
    print(f"to browse: tensorboard --logdir {MODELS}")
    print(f"{time.perf_counter() - began:.0f} s")


def score(data: Path, name: str, models: Mapping[str, Path]) -> None:
    """Derains the test photographs of `data` with teacher and student into results/demo/`name`."""
    scripts = {"teacher": "eval_Rain200H.py", "student": "eval_Rain200H_real.py"}
    call(
        *(
            f"{script} --logdir {models[role]} --data_path {data} --save_path {RESULTS / name / role} "
            "--use_GPU False"
            for role, script in scripts.items()
        )
    )


def call(*commands: str) -> None:
    """Runs scripts' command lines side by side and shows each with its output, in the order given.

    Raises UserError where one fails.
    """
    # A thread each: small networks gain little from a second, and two that spin for each other on a machine
    # that somebody else uses too are several times slower. The second core is for the second script.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with ExitStack() as opened:
        started: list[tuple[str, subprocess.Popen, IO[str] | None]] = []
        for command in commands:
            # the first one's output is seen as it comes, the others' when it is their turn
            held = opened.enter_context(TemporaryFile("w+")) if started else None
            arguments = [sys.executable, *shlex.split(command)]
            process = subprocess.Popen(arguments, env=environment, stdout=held, stderr=held)
            opened.callback(process.kill)  # none outlives the demo; no effect on one that has ended
            started.append((command, process, held))
        for command, process, output in started:
            print(f"\n$ python {command}", flush=True)
            failed = process.wait()
            if output:
                output.seek(0)
                print(output.read(), end="", flush=True)
            if failed:
                raise UserError(f"{command.split()[0]} ended with exit code {failed}: see above")


def table() -> str:
    """PSNR and SSIM of the rainy input, the teacher and the student, from what the eval scripts wrote."""
    captions = {
        "pairs": "pairs like Rain200H",
        "real": "'real': other streaks, haze",
        "shipped": "pairs, by the shipped models",
    }
    lines = ["\nsimulated rain, test photographs; RGB PSNR (dB) / SSIM", row("", "rainy input", *SHIPPED)]
    for name, caption in captions.items():
        if (RESULTS / name).exists():
            means = [read_scores(RESULTS / name / role / FILE)["mean"] for role in SHIPPED]
            lines.append(row(caption, shown(means[0], "rainy_"), *map(shown, means)))
    return "\n".join(lines)


def row(*cells: str) -> str:
    return "".join(f"{cell:{width}}" for cell, width in zip(cells, (32, 17, 17, 17), strict=True)).rstrip()


def shown(mean: dict[str, Any], of: str = "") -> str:
    return f"{mean[f'{of}psnr']:.2f} / {mean[f'{of}ssim']:.4f}"


def picture(name: str) -> Path:
    """A contact sheet of the paired test photographs."""
    path, test = RESULTS / f"{name}.png", PAIRS / "rain_data_test_Heavy"
    folders = {"rainy": test / "rain/X2", **{role: RESULTS / name / role for role in SHIPPED}}
    write_image(path, from_folders({**folders, "clean": test / "norain"}))
    return path


if __name__ == "__main__":
    run(main)
