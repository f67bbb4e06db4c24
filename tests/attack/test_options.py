"""Whatever is typed after an option of any script: sound values, or the one line that names the option."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from typing import Any

from hypothesis import strategies as st

from config import EVALUATIONS, STUDENTS, TEACHERS, Training
from derain import Derain
from engine import Schedule
from machinery.loading import BatchStream
from machinery.options import Machine, as_plain, parse, problem
from tests.attack.conftest import Budget
from tools.cost import Cost

RECORDS: list[Machine] = [*TEACHERS.values(), *STUDENTS.values(), *EVALUATIONS.values(), Derain(), Cost()]
# fmt: off
WORDS = st.one_of(
    st.sampled_from([
        "", " ", "nan", "inf", "-inf", "1e400", "-0.0", "0", "-1", "1", "2", "1.5", "0.5", "1e-320", "1e308",
        "9" * 30, "9" * 5000, "1" + "0" * 400, "0x10", "1_000", "٣", "²", "True", "False", "yes", "none",
        "auto", "left", "/", ".", "a\nb", "\udce9", "{dataset}", "1,2,3", "8,8,8", "1,,2", ",", "1,nan,2",
        "24,32", "64,64,64", "512,512,513",
    ]),
    st.integers().map(str),
    st.floats().map(repr),
    st.lists(st.integers(-3, 600), max_size=4).map(lambda numbers: ",".join(map(str, numbers))),
    st.text(max_size=6).filter(lambda text: "\0" not in text and not text.startswith("-")),
)
# fmt: on


def options_of(record: Machine) -> list[str]:
    fields = dataclasses.fields(record)
    return [each.name for each in fields if "help" in each.metadata and not each.metadata["positional"]]


def numbers_in(value: Any) -> list[float]:
    if isinstance(value, tuple):
        return [number for each in value for number in numbers_in(each)]
    return [value] if isinstance(value, int | float) else []


def test_options_are_sound_or_refused_by_name(budget: Budget) -> None:
    def check(which: int, given: list[tuple[int, list[str]]]) -> None:
        record = RECORDS[which % len(RECORDS)]
        names = [options_of(record)[at % len(options_of(record))] for at, _ in given]
        line = [word for name, (_, words) in zip(names, given, strict=True) for word in (f"--{name}", *words)]
        if isinstance(record, Derain):
            line = ["photograph.jpg", *line]
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                made = parse(record, "", line)
        except SystemExit as left:
            assert left.code == 2
            *usage, error = said.getvalue().splitlines()
            assert all(text.startswith(("usage: ", " ")) for text in usage)
            assert any(f"--{name}" in error for name in names) or "unrecognized arguments" in error
            return
        assert problem(made) is None
        assert all(map(math.isfinite, numbers_in(tuple(vars(made).values()))))
        assert as_plain(made).keys() == vars(made).keys()
        if isinstance(made, Training):  # what the loop makes of them, before it creates anything
            schedule = Schedule.of(made, 1800)
            assert schedule.steps > 0 and all(drop >= 0 for drop in schedule.drops)
            assert schedule.validates(schedule.steps) and bool(schedule.validations) == bool(made.val_every)
            stream = BatchStream(1800, made.batchSize, seed=made.seed, steps=range(schedule.steps))
            assert len(stream) == schedule.steps and len(next(iter(stream))) == made.batchSize

    words = st.lists(WORDS, min_size=1, max_size=2)
    budget.draw(
        150, check, which=st.integers(0, 99), given=st.lists(st.tuples(st.integers(0, 99), words), max_size=4)
    )
