"""Small recipes and networks, for tests in which the full ones are not the point."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from config import EVALUATIONS, STUDENTS, TEACHERS, Evaluation, Student, Teacher
from engine import Run
from machinery.checkpoints import load_checkpoint
from machinery.distributed import World
from stages import SID, SSIDKD, Stage
from tests import layouts
from utils import UserError

ROOT = Path(__file__).resolve().parents[1]
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
LIGHT: dict[str, Any] = {"backbone": "LightNet", "channels": (4, 6, 8), "units": (1, 1, 1)}


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
    paths = {"data_path": (data,), "save_path": folder / "teacher"}
    return dataclasses.replace(TEACHERS["Rain200H"], **{**SMALL, **paths, **changes})


def student(folder: Path, **changes: Any) -> Student:
    """Its student, on a few generated real images too."""
    real = folder / "real"
    if not real.exists():
        layouts.real_images(real)
    paths = {
        "data_path": (folder / "data",),
        "real_path": (real,),
        "teacher": folder / "teacher",
        "save_path": folder / "student",
    }
    return dataclasses.replace(STUDENTS["Rain200H"], **{**SMALL, **paths, **changes})


def evaluation(folder: Path, **changes: Any) -> Evaluation:
    """Of that teacher, on the generated test pairs."""
    paths = {"data_path": folder / "data", "logdir": folder / "teacher", "save_path": folder / "results"}
    return dataclasses.replace(EVALUATIONS["Rain200H", "SID"], use_GPU=False, **{**paths, **changes})


def a_run(recipe: Teacher | Student, of: type[Run] = Run, stage: type[Stage] | None = None) -> Run:
    return of(stage or (SSIDKD if isinstance(recipe, Student) else SID), recipe, ALONE)


def trained(recipe: Teacher | Student, stage: type[Stage] | None = None) -> Run:
    run = a_run(recipe, stage=stage)
    run.run()
    return run


class StopsAfterThree(Run):
    def run(self) -> bool:
        self.batches = self._interrupted(self.batches)  # type: ignore[assignment]
        return super().run()

    def _interrupted(self, batches: Iterable) -> Iterator:
        for parts in batches:
            if self.step == 2:
                self.stop.on_signal(signal.SIGINT, None)
            yield parts


def assert_resumes_alike(recipe: Teacher | Student, stage: type[Stage] | None = None) -> None:
    """Stopped after three steps and resumed, a run ends as one that was never stopped."""
    trained(recipe, stage)
    stopped = dataclasses.replace(recipe, save_path=recipe.save_path.with_name("stopped"))
    assert not a_run(stopped, StopsAfterThree, stage).run()
    assert load_checkpoint(stopped.save_path / "net_latest")["step"] == 3
    trained(dataclasses.replace(stopped, resume=True), stage)
    assert_same_runs(recipe.save_path, stopped.save_path)


# ------------------------------------------------------------------------------- scripts, and what they leave


def command(script: str, recipe: Teacher | Student, *launcher: str, **changes: Any) -> list[str]:
    """The command line that trains `recipe` with `changes`, by a launcher if one is given."""
    given = {
        field.name: getattr(recipe, field.name)
        for field in dataclasses.fields(recipe)
        if field.name in SMALL or field.name.endswith("_path") or field.name == "teacher"
    }
    words = arguments({name: value for name, value in (given | changes).items() if value != ()})
    return [sys.executable, *launcher, script, *words]


def run_script(
    script: str, recipe: Teacher | Student, *launcher: str, **changes: Any
) -> subprocess.CompletedProcess:
    line = command(script, recipe, *launcher, **changes)
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def as_torchrun_does(rank: int, size: int, port: int) -> None:
    """Makes this process one of `size` on this machine."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.02)


@contextlib.contextmanager
def begun(script: str, recipe: Teacher | Student, *launcher: str, **how: Any) -> Iterator[subprocess.Popen]:
    """A script's process that has written a checkpoint, and does not outlive the test."""
    with subprocess.Popen(command(script, recipe, *launcher), text=True, cwd=ROOT, **how) as process:
        try:
            wait_for(recipe.save_path / "net_latest", 180)
            yield process
        finally:
            process.kill()


def refusal(act: Callable[..., object], *given: Any, **how: Any) -> str:
    """The message, in one line, of the UserError that `act` raises."""
    with pytest.raises(UserError) as refused:
        act(*given, **how)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def tree(folder: Path) -> dict[Path, bytes]:
    """The content of every file below `folder`, by its relative path."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines(folder: Path) -> list[dict]:
    """The log without what a clock decides."""
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "speed" not in name} for line in logged]


def assert_same_weights(one: Path, other: Path, within: float = 0) -> None:
    ours, theirs = (load_checkpoint(folder / "net_latest")["net"] for folder in (one, other))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=within)


def assert_same_runs(one: Path, other: Path) -> None:
    """Weights, optimizer, auxiliary networks and log are the same, to the last bit."""
    ends = []
    for folder in (one, other):
        content = load_checkpoint(folder / "net_latest")
        training = content["training"]
        ends.append([content["net"], training["optimizer"]["state"], training["aux_networks"]])
    torch.testing.assert_close(*ends, rtol=0, atol=0)
    assert lines(one) == lines(other)
