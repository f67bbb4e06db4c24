"""The quick start: the whole method on a small simulated dataset, run by the scripts of the real ones.

It makes the dataset, trains a small teacher and a small student, derains with both and with the models that
come with the project, and ends with a table and a picture. The rain is rendered on photographs that ship with
scikit-image, so none of the scores is a benchmark's.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from datasets.layouts import find_pairs
from datasets.pairs import read_pair
from machinery.checkpoints import LATEST, SHIPPED
from machinery.options import Options, parse
from utils import UserError, read_image, run, write_image

DATA, MODELS, RESULTS = Path("datasets/simulated"), Path("trained_model/demo"), Path("results/demo")
SHIPPED_MODELS = {  # LightNet
    "shipped student": Path("trained_model/Rain200H-light+Real") / SHIPPED / LATEST,
    "derain.py's": Path("trained_model/photographs") / SHIPPED / LATEST,
}
SETS = {"pairs": DATA / "Simulated200H", "real": DATA / "SimulatedReal"}
SMALL = "--channels 12,16,24 --units 3,2,1 --batchSize 4 --patch_size 64 --use_GPU False --workers 1"


def main() -> None:
    parse(Options(), __doc__)  # --help
    began = time.perf_counter()
    own = {"teacher": MODELS / "teacher", "student": MODELS / "student"}
    for folder in (MODELS, RESULTS):  # an earlier demo's
        shutil.rmtree(folder, ignore_errors=True)
    call(f"datasets/simulate.py --out {DATA}")
    pairs, real = SETS["pairs"], SETS["real"] / "train/rain"
    call(f"train_Rain200H.py --data_path {pairs} --save_path {own['teacher']} --steps 60 --lr 0.001 {SMALL}")
    call(
        f"train_Rain200H_real.py --data_path {pairs} --real_path {real} --teacher {own['teacher']} "
        f"--save_path {own['student']} --steps 15 {SMALL}"
    )
    models = own | {name: file for name, file in SHIPPED_MODELS.items() if file.exists()}
    for data in SETS:
        for name, model in models.items():
            call(
                f"eval_Rain200H{'_real' * ('student' in name)}.py --logdir {model} --data_path {SETS[data]} "
                f"--save_path {place(data, name)} --use_GPU False"
            )
    call(f"metrix_code/tables.py --results {RESULTS} --kinds measured")
    path = RESULTS / "demo.png"
    write_image(path, picture([name for name in models if name != "teacher"]))
    print(f"to look at: {path}, and index.html in each folder of {RESULTS}")
    print(f"to browse: tensorboard --logdir {MODELS}")
    print(f"{time.perf_counter() - began:.0f} s")


def place(data: str, name: str) -> Path:
    return RESULTS / data / re.sub(r"\W", "_", name)


def call(command: str) -> None:
    """Runs a script's command line. Raises UserError if it fails."""
    print(f"\n$ python {command}", flush=True)
    # small networks gain little from a second thread, and may lose much by it
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    if failed := subprocess.run([sys.executable, *shlex.split(command)], env=environment).returncode:
        raise UserError(f"{command.split()[0]} ended with exit code {failed}: see above")


def picture(shown: list[str], height: int = 160) -> np.ndarray:
    """uint8 RGB: a row for each test photograph, with columns rainy, derained by each model, clean."""
    rows: list[np.ndarray] = []
    for data in SETS:
        for pair in find_pairs(SETS[data], "test").pairs:
            derained = [read_image(place(data, name) / f"{pair.name}.png") for name in shown]
            rainy, clean = read_pair(pair)
            assert clean is not None  # these sets have both sides
            width = round(rainy.shape[1] * height / rainy.shape[0])
            row = np.hstack([cv2.resize(image, (width, height)) for image in (rainy, *derained, clean)])
            if not rows:
                for number, caption in enumerate(("rainy", *shown, "clean")):
                    at, font = (number * width + 5, 20), cv2.FONT_HERSHEY_SIMPLEX
                    cv2.putText(row, caption, at, font, 0.6, (255, 255, 0), 2)
            rows.append(row)
    widest = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 6), (0, widest - row.shape[1]), (0, 0))) for row in rows])


if __name__ == "__main__":
    run(main)
