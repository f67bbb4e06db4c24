"""The benchmark: MACs counted by hand and as the tables of others count them; what each row says."""

import sys
from typing import Any

import pytest
import torch
from torch import nn

import benchmarks.run as benchmark
from benchmarks.run import macs
from machinery.inference import Derainer
from networks import DerainNet, Fusion
from tests import small


class PReNetsConvolutions(nn.Module):
    """Every convolution of PReNet: 32 channels, an LSTM of four, five residual blocks, in six recursions."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(6, 32), *[(64, 32)] * 4, *[(32, 32)] * 10, (32, 3)]
        self.layers = nn.ModuleList(nn.Conv2d(*size, 3, padding=1) for size in sizes)

    def forward(self, image):
        for _ in range(6):
            for layer in self.layers:
                layer(image[:, :1].expand(-1, layer.in_channels, -1, -1))


def test_macs_are_counted_as_the_peers_tables_count_them():
    """Derain-toolbox has 66.56 G of PReNet at 256x256, biases and the like included."""
    assert macs(PReNetsConvolutions(), (256, 256)) == pytest.approx(66.56e9, rel=0.005)


def test_macs_of_a_convolution_and_of_a_fusion_are_those_counted_by_hand():
    assert macs(nn.Conv2d(3, 8, 3, padding=1), (16, 20)) == 16 * 20 * 8 * 3 * 9

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fusion = Fusion(9, 5)

        def forward(self, image):
            half = image[..., ::2, ::2]
            return self.fusion(iter([image, image + 1, half]))

    # a same-sized map is added in place, a smaller one meets its slice at its own size
    assert macs(Fused(), (16, 20)) == (2 * 16 * 20 + 8 * 10) * 3 * 5


SMALL = ["--size", "48,64", "--batch", "2", "--patch_size", "32", "--rounds", "3", "--use_GPU", "False"]


@pytest.fixture
def rows(monkeypatch, capsys):
    """Runs the benchmark in this process; gives the cells of its second table, and all it prints."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["benchmarks/run.py", *map(str, words)])
        benchmark.main()
        out = capsys.readouterr().out
        table = out.split("| work |")[-1].splitlines()[2:]
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table if line[:1] == "|"], out

    return run


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    small.trained(small.teacher(folder, steps=1))
    small.trained(small.teacher(folder, steps=1, save_path=folder / "light", **small.LIGHT))
    return folder / "teacher", folder / "light"


def test_two_checkpoints_are_measured_in_turn(models, rows, monkeypatch):
    run_ = []
    for name in ("image_call", "step_call"):
        call = getattr(benchmark, name)

        def noted(make, *how, call=call):
            real, count = call(make, *how), sum(each.numel() for each in make().parameters())
            return lambda: [run_.append(count), real()]  # type: ignore[func-returns-value]

        monkeypatch.setattr(benchmark, name, noted)
    found, out = rows("--logdir", *models, *SMALL, "--precision", "float32")
    names = [f"SID, {each}/net_latest" for each in models]
    one, two = (sum(p.numel() for p in Derainer.open(each).net.parameters()) for each in models)
    assert run_[:10] == [one, one, two, two, *[one, two] * 3] and len(run_) == 20
    works = ("image 64x48", "float32"), ("step SID 2x32x32", "float32, eager")
    assert [row[:3] for row in found] == [[work, name, how] for work, how in works for name in names]
    for name, path in zip(names, models, strict=True):
        net = Derainer.open(path).net.net
        parameters = sum(each.numel() for each in net.parameters())
        assert f"| {name} | {parameters:,} | {macs(net, (48, 64)) / 1e9:.1f} G |" in out


def test_time_is_the_median_pace_and_ratio_follow_and_memory_is_in_gigabytes(models, rows, monkeypatch):
    times = iter([9.0, 8.0, 7.0, 6.0, 4.0, 1.0, 1.0, 1.0, 2.0, 2.0])  # first, second, then in turn
    monkeypatch.setattr(benchmark, "seconds", lambda *_: next(times))
    monkeypatch.setattr(benchmark, "peak_memory", lambda device: 1_230_000_000)
    (one, other), _ = rows("--logdir", *models, *SMALL, "--only", "steps", "--precision", "float32")
    assert one[3:] == ["9", "2 (1 to 4)", "1", "1", "1.23 GB"]
    assert other[3:] == ["7", "1 (1 to 2)", "2", "1", "1.23 GB"]


@pytest.mark.parametrize(
    ("precision", "mode"),
    [("tf32", "eager"), ("bfloat16", "compiled"), ("float32", "compiled, CUDA graphs")],
)
def test_a_row_runs_what_it_says(models, monkeypatch, precision, mode):
    seen: list[str] = []
    compiled: list[str | None] = []
    nets: list[Any] = []
    monkeypatch.setattr(benchmark.distributed, "set_arithmetic", seen.append)
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: compiled.append(how["mode"]))
    monkeypatch.setattr(benchmark, "training_step", lambda stage, net, *_: nets.append(net))
    options, (_, make) = benchmark.Benchmark(patch_size=32), benchmark._from_checkpoint(models[0])
    benchmark.step_call(make, precision, mode, options, 2, small.CPU)()
    assert seen == [precision] == [nets[0].precision]
    assert set(compiled) == {benchmark.MODES[mode]} - {None}


def test_what_fails_is_a_row_and_does_not_end_the_others(models, rows, monkeypatch):
    real = benchmark.step_call

    def failing(make, precision, *how):
        if precision == "float32" and isinstance(make(), DerainNet):
            raise torch.OutOfMemoryError("out\nof memory")
        return real(make, precision, *how)

    monkeypatch.setattr(benchmark, "step_call", failing)
    words = [*SMALL, "--only", "steps", "--rounds", "1", "--precision", "float32", "bfloat16"]
    found, _ = rows("--logdir", *models, *words)
    assert found[0][3:] == ["failed: OutOfMemoryError: out of memory"]
    assert [len(row) for row in found[1:]] == [8, 8, 8] and all(float(row[3]) > 0 for row in found[1:])
    assert [bool(row[6]) for row in found[1:]] == [False, True, True]


def test_peak_memory_is_that_of_the_call():
    def peak(megabytes):
        benchmark.reset_peak(small.CPU)
        torch.ones(megabytes << 18).sum()
        return benchmark.peak_memory(small.CPU) / (1 << 20)

    low, high, again = peak(1), peak(300), peak(1)
    assert 250 < high - low < 350 and abs(again - low) < 50


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--logdir", "nowhere"], "nowhere"),
        (["--size", "48"], "--size takes a height and a width"),
        (["--precision", "tf32", "--use_GPU", "False"], "--precision tf32 exists on CUDA only"),
    ],
)
def test_a_mistake_gets_one_line(run_here, capsys, words, message):
    assert run_here("benchmarks/run.py", *words) == 2
    assert message in capsys.readouterr().err
