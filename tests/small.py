"""Small recipes and networks, for tests in which the full ones are not the point."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from config import EVALUATIONS, STUDENTS, TEACHERS, Evaluation, Student, Teacher
from distributed import World
from engine import Run
from tests import layouts

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
SMALL: dict[str, Any] = {
    "channels": (4, 6, 8),
    "units": (2, 1, 1),
    "batchSize": 2,
    "patch_size": 32,
    "steps": 6,
    "workers": 0,
    "use_GPU": False,
    "val_every": 0,
    "save_every": 2,
    "log_every": 1,
}


def arguments(changes: dict[str, Any]) -> list[str]:
    """The same as a command line."""

    def text(value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return [word for name, value in changes.items() for word in (f"--{name}", text(value))]


def teacher(folder: Path, **changes: Any) -> Teacher:
    """A teacher of Rain200H on a few generated pairs below `folder`."""
    data = folder / "data"
    if not data.exists():
        layouts.rain200(data)
    paths = {"data_path": data, "save_path": folder / "teacher"}
    return dataclasses.replace(TEACHERS["Rain200H"], **{**SMALL, **paths, **changes})


def student(folder: Path, **changes: Any) -> Student:
    """Its student, on a few generated real images too."""
    real = folder / "real"
    if not real.exists():
        layouts.real_images(real)
    paths = {
        "data_path": folder / "data",
        "real_path": (real,),
        "teacher": folder / "teacher",
        "save_path": folder / "student",
    }
    return dataclasses.replace(STUDENTS["Rain200H"], **{**SMALL, **paths, **changes})


def evaluation(folder: Path, **changes: Any) -> Evaluation:
    """Of that teacher, on the generated test pairs."""
    paths = {"data_path": folder / "data", "logdir": folder / "teacher", "save_path": folder / "results"}
    few = {"use_GPU": False, "workers": 0}
    return dataclasses.replace(EVALUATIONS["Rain200H", "SID"], **{**few, **paths, **changes})


def trained(recipe: Teacher | Student) -> Run:
    run = Run(recipe, ALONE)
    run.go()
    return run
