"""What float32 means, and runs that repeat: what of it shows on a CPU."""

import os

import pytest
import torch

import engine
from machinery.distributed import set_arithmetic
from tests.small import a_run, teacher


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    set_arithmetic("float32")
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "tf32"])
def test_float32_is_tf32_only_where_asked_for(precision):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision != "tf32"
    set_arithmetic(precision)
    expected = "tf32" if precision == "tf32" else "none or ieee"
    for backend in (torch.backends.cudnn.conv, torch.backends.cuda.matmul):  # type: ignore[attr-defined]
        assert backend.fp32_precision in expected
    # what inductor asks, and what raises where the older and the newer way of saying so are mixed
    assert torch.get_float32_matmul_precision() == ("high" if precision == "tf32" else "highest")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("best", ["float32", "bfloat16"])
def test_a_training_says_where_bfloat16_is_faster(tmp_path, monkeypatch, capsys, precision, best):
    monkeypatch.setattr(engine, "best_precision", lambda device: best)
    a_run(teacher(tmp_path, precision=precision))
    told = "faster with --precision bfloat16" in capsys.readouterr().out
    assert told == (precision == "float32" and best == "bfloat16")


def test_deterministic_asks_everyone():
    set_arithmetic("float32", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    set_arithmetic("float32")
    assert not torch.are_deterministic_algorithms_enabled()
