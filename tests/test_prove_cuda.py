"""The proof for a card, as far as a CPU can give it: all that is predicted holds."""

import json
from collections import Counter

import pytest

from benchmarks import prove_cuda
from benchmarks.prove_cuda import CHECKS, Row
from utils import UserError

ROWS = {"agreement": 8, "ssim": 2, "dark_channel": 2, "strides": 4, "saved": 3, "resumed": 1}
ROWS |= {"speed": 3, "processes": 5}
ELSEWHERE = "killed"  # tests/test_training.py kills one


def test_on_a_cpu_everything_predicted_holds(monkeypatch, tmp_path):
    out = tmp_path / "proof.json"
    checks = [name for name in CHECKS if name != ELSEWHERE]
    words = ["prove_cuda.py", "--device", "cpu", "--small", "--out", str(out), "--only", *checks]
    monkeypatch.setattr("sys.argv", words)
    prove_cuda.main()
    rows = json.loads(out.read_text())["rows"]
    assert not [row for row in rows if row["holds"] is False]
    assert Counter(row["check"] for row in rows) == ROWS


def test_a_run_cut_short_keeps_its_rows_and_the_next_one_adds_to_them(monkeypatch, tmp_path, capsys):
    def breaks(at):
        yield Row("first", "1", "1", True)
        raise ValueError("no such thing\nat all")

    def cut_short(at):
        yield Row("second", "2", "3", False)
        raise KeyboardInterrupt

    monkeypatch.setitem(CHECKS, "ssim", breaks)
    monkeypatch.setitem(CHECKS, "speed", cut_short)
    out = tmp_path / "proof.json"
    for name, ending in (("ssim", UserError), ("speed", KeyboardInterrupt)):
        words = ["prove_cuda.py", "--device", "cpu", "--small", "--out", str(out), "--only", name]
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(ending):
            prove_cuda.main()
    rows = [(row["check"], row["what"], row["holds"]) for row in json.loads(out.read_text())["rows"]]
    assert rows == [("ssim", "first", True), ("ssim", "ssim", False), ("speed", "second", False)]
    told = capsys.readouterr().out
    assert "| second | 2 | 3 | DOES NOT HOLD |" in told
    assert "| ssim |  | failed: ValueError: no such thing | DOES NOT HOLD |" in told
