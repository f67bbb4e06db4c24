"""What the tests share."""

import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real samples and golden values beside the project; a test that needs them is skipped without."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the real samples in ../shared")
    return folder


@pytest.fixture
def run_here(monkeypatch) -> Iterator[Callable[..., int]]:
    """Runs a script as __main__ in this process (imports are paid for once) and gives its exit code."""

    def run(script: str, *words: str) -> int:
        monkeypatch.setattr(sys, "argv", [script, *words])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        assert isinstance(left.value.code, int)
        return left.value.code

    # a train script takes Ctrl-C for itself; the tests want theirs back
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    yield run
    for each, handler in before.items():
        signal.signal(each, handler)
