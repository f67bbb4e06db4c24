"""Attacks: what must hold whatever comes in.

`make test` runs a few cases of each test, the same every time; `make attack` goes on for ATTACK seconds a
test, and says how many cases that were. A test takes `budget`: `budget.draw` for drawn inputs, `budget.seeds`
for whole runs. Inputs with one right answer are in a table: test_bad_inputs.
"""

import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.attack.scripts import TINY
from tests.small import student, teacher, trained

SECONDS = float(os.environ.get("ATTACK") or 0)  # a test; 0: the few cases of `make test`
hypothesis.settings.register_profile(
    "attack",
    deadline=None,
    database=None,  # a case is found again by its seed
    print_blob=False,
    suppress_health_check=list(hypothesis.HealthCheck),
)


class Budget:
    """Says when a test has had enough, and counts its cases."""

    def __init__(self) -> None:
        self.cases, self._end = 0, time.monotonic() + SECONDS

    def seeds(self, few: int) -> Iterator[int]:
        """0, 1, 2, ...: `few` of them in `make test`, else until the time is up. Each is a case."""
        while self.cases < few or time.monotonic() < self._end:
            self.cases += 1
            yield self.cases - 1

    def draw(self, few: int, check: Callable[..., None], **strategies: Any) -> None:
        """Calls `check` with what the strategies draw, as many times as `seeds`; a failure is shrunk."""

        def counted(**drawn: Any) -> None:
            self.cases += 1
            check(**drawn)

        profile = hypothesis.settings.get_profile("attack")
        settings = hypothesis.settings(profile, max_examples=max(few, 200) if SECONDS else few)
        for seed in itertools.count():
            settings(hypothesis.seed(seed)(hypothesis.given(**strategies)(counted)))()
            if time.monotonic() >= self._end:
                break


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ (four training pairs, two test pairs), real/, teacher/ and student/, each after two steps."""
    folder = tmp_path_factory.mktemp("whole")
    trained(teacher(folder, **TINY))
    trained(student(folder, **TINY))
    return folder


@pytest.fixture
def here(whole: Path, tmp_path: Path) -> Path:
    """A copy of `whole`, to damage."""
    return shutil.copytree(whole, tmp_path / "here")


@pytest.fixture
def budget(record_property: Callable[[str, object], None]) -> Iterator[Budget]:
    budget = Budget()
    yield budget
    record_property("attacked", budget.cases)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    for report in reports if SECONDS else ():
        counts = dict(getattr(report, "user_properties", ()))
        if getattr(report, "when", "") == "teardown" and "attacked" in counts:
            terminalreporter.write_line(f"{counts['attacked']:>10,} cases  {report.nodeid}")
