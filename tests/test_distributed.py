"""One process or several: the same result, and what a killed process leaves."""

import dataclasses
import gc
import os
import re
import signal
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import psutil
import pytest
import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.nn.parallel import DistributedDataParallel

from config import Student, Teacher
from machinery import distributed
from machinery.checkpoints import load_checkpoint
from machinery.options import Machine
from tests import layouts, small
from tests.attack.scripts import begun_together
from tests.small import LIGHT, ROOT, begun, command, lines, student, teacher, trained, wait_for
from utils import UserError, one_line

TORCHRUN = ("-m", "torch.distributed.run")
ROUNDING = 5e-5  # of a weight, after a few of Adam's steps, which are 1e-4 or 5e-4 long


def join(rank: int, size: int, port: int) -> None:
    """As torchrun. Fails where a process that still holds its group leaves it: torch may wait for ever."""
    small.as_torchrun_does(rank, size, port)
    leave = distributed.dist.destroy_process_group

    def checked(group: Any = None) -> None:
        assert not [each for each in gc.get_objects() if type(each) is DistributedDataParallel]
        leave(group)

    distributed.dist.destroy_process_group = checked


def in_processes(size: int, recipe: Teacher | Student, folder: Path, **changes: Any) -> list[tuple]:
    """Trains in `size` processes on this machine: exit code and standard error of each."""
    script = "train_Rain200H_real.py" if isinstance(recipe, Student) else "train_Rain200H.py"
    running = begun_together(folder, " ".join(command(script, recipe, **changes)[1:]), size, join)
    for process in running:
        process.join()
    return [(each.exitcode, (folder / str(rank) / "err").read_text()) for rank, each in enumerate(running)]


# ------------------------------------------------------------------------------------------- one result


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small dataset of five test pairs, which two processes cannot share evenly."""
    folder = tmp_path_factory.mktemp("distributed")
    layouts.rain200(folder / "data", test=5)
    trained(teacher(folder, steps=1))
    return folder


# heavier than released: as they are, the sums over the batch are too small to show in the gradient
HEAVY = {f"{term}_weight": 1e-3 for term in ("dark_syn", "dark_real", "tv_syn", "tv_real")}
HEAVY["kl_weight"] = 1.0
OURS = {**LIGHT, "ema": 0.9, "clip": 1.0, "cosine": True, "optimizer": "muon", "context": True}
OURS |= {"late_start": 0.4, "late_patch_size": 40}


@pytest.mark.parametrize(("make", "options"), [(teacher, {}), (student, HEAVY), (teacher, OURS)])
def test_two_processes_give_what_one_gives(data: Path, tmp_path: Path, make, options) -> None:
    one = make(data, save_path=tmp_path / "one", steps=3, val_every=1, **options)
    trained(one)
    two = dataclasses.replace(one, save_path=tmp_path / "two")
    ends = in_processes(2, two, tmp_path / "ranks", **options)
    assert [code for code, _ in ends] == [0, 0], ends
    logs = lines(one.save_path), lines(two.save_path)
    assert len(logs[0]) == len(logs[1]) == 5  # three steps, two validations
    for ours, theirs in zip(*logs, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-5)
    for ours, theirs in zip(*(momenta(each.save_path) for each in (one, two)), strict=True):
        assert (theirs - ours).norm() <= 1e-4 * ours.norm()
    small.assert_same_weights(one.save_path, two.save_path, within=ROUNDING)


def momenta(folder: Path) -> list[torch.Tensor]:
    """Running averages of the gradient. The weights alone would not show that it is half as long."""
    state = load_checkpoint(folder / "net_latest")["training"]["optimizer"]["state"]
    return [each.get("exp_avg", each.get("momentum")) for each in state.values()]


# ---------------------------------------------------------------------------------- killed, interrupted


def test_a_run_on_two_nodes_ends_with_a_killed_process_and_resumes_in_one(data: Path, tmp_path: Path) -> None:
    recipe = teacher(data, save_path=tmp_path / "killed", batchSize=4, steps=100_000, lr_factor=1.0)
    where = (
        "--nnodes=2",
        "--nproc_per_node=2",
        "--master_addr=127.0.0.1",
        f"--master_port={small.free_port()}",
    )
    how = (*TORCHRUN, *where)
    words = (command("train_Rain200H.py", recipe, *how, f"--node_rank={n}", lr_factor=1.0) for n in (0, 1))
    nodes = [subprocess.Popen(line, stderr=subprocess.PIPE, text=True, cwd=ROOT) for line in words]
    wait_for(recipe.save_path / "net_latest", 180)
    workers = psutil.Process(nodes[1].pid).children()
    next(each for each in workers if each.environ()["RANK"] == "3").kill()
    for node in nodes:
        errors = node.communicate(timeout=60)[1]
        assert node.returncode
        assert "train_Rain200H.py: another process of this run ended: see its own message, then" in errors

    steps = load_checkpoint(recipe.save_path / "net_latest")["step"] + 2
    trained(dataclasses.replace(recipe, steps=steps, resume=True))
    straight = dataclasses.replace(recipe, steps=steps, save_path=tmp_path / "straight")
    trained(straight)
    small.assert_same_weights(recipe.save_path, straight.save_path, within=ROUNDING)
    for ours, theirs in zip(lines(straight.save_path), lines(recipe.save_path), strict=True):
        assert theirs == pytest.approx(ours, rel=1e-5)


def test_ctrl_c_under_torchrun_saves(data: Path, tmp_path: Path) -> None:
    recipe = teacher(data, save_path=tmp_path / "stopped", steps=100_000, workers=1)
    launcher = (*TORCHRUN, "--standalone", "--nproc_per_node=2")
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with begun("train_Rain200H.py", recipe, *launcher, start_new_session=True, **how) as process:
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert out.endswith("and saved; to continue, add --resume to the command\n")
    assert load_checkpoint(recipe.save_path / "net_latest")["step"] == lines(recipe.save_path)[-1]["step"]


# ------------------------------------------------------------------------------------------- errors, once


def test_an_uneven_batch_is_refused_and_touches_nothing(data: Path, tmp_path: Path) -> None:
    before = sorted((data / "teacher").glob("[!.]*"))
    ends = in_processes(2, teacher(data, batchSize=3), tmp_path / "ranks")
    refusal = "a batch of 3 does not split over 2 processes or accumulation steps: give multiples of 2 as"
    assert [(code, f": {refusal} --batchSize" in text) for code, text in ends] == [(2, True)] * 2
    assert sorted((data / "teacher").glob("[!.]*")) == before


def test_only_a_lost_connection_is_taken_for_one() -> None:
    lost = RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")
    assert "another process of this run ended" in one_line(lost)
    assert one_line(RuntimeError("shape mismatch")) == ""


# ------------------------------------------------------------------------------------------- launching


WHOLE = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
WHOLE |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(small.free_port())}


@pytest.fixture
def two_cards(monkeypatch) -> list[list[str]]:
    """A machine with two cards, and what the launcher is called with on it."""
    calls: list[list[str]] = []
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("sys.argv", ["train_Rain200H.py", "--gpu_id", "0,1"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(distributed.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(distributed.logging, "disable", lambda level: None)
    monkeypatch.setattr(distributed, "torchrun", calls.append)
    return calls


def test_several_cards_are_a_process_each(two_cards, monkeypatch) -> None:
    distributed.launch(Machine(gpu_id=(0,)))
    distributed.launch(Machine(gpu_id=(1, 1, 5)))  # there is no card 5
    distributed.launch(Machine(use_GPU=False))
    assert two_cards == []
    with pytest.raises(SystemExit, match=r"^0$"):
        distributed.launch(Machine(gpu_id=(0, 1)))
    assert two_cards == [["--standalone", "--nproc_per_node=2", "train_Rain200H.py", "--gpu_id", "0,1"]]
    assert os.environ["OMP_NUM_THREADS"] == "8"
    monkeypatch.setenv("RANK", "0")  # already launched
    distributed.launch(Machine(gpu_id=(0, 1)))
    assert len(two_cards) == 1


def test_the_launchers_exit_code_is_its_processes(two_cards, monkeypatch) -> None:
    ends = [ChildFailedError("", {0: ProcessFailure(0, 1, code, "none")}) for code in (2, -signal.SIGKILL)]
    for error, code in zip((*ends, SignalException("stopped", signal.SIGINT)), (2, 137, 130), strict=True):
        monkeypatch.setattr(distributed, "torchrun", Mock(side_effect=error))
        with pytest.raises(SystemExit, match=rf"^{code}$"):
            distributed.launch(Machine(gpu_id=(0, 1)))


def test_each_process_has_its_card_and_a_missing_one_is_named(two_cards, monkeypatch) -> None:
    assert distributed.devices(Machine(gpu_id=(1,))) == [torch.device("cuda", 1)]
    with pytest.raises(UserError, match="--gpu_id 7: this machine has CUDA devices 0 to 1"):
        distributed.devices(Machine(gpu_id=(7,)))
    monkeypatch.setattr(os, "environ", WHOLE | {"WORLD_SIZE": "3", "RANK": "2", "LOCAL_RANK": "2"})
    with pytest.raises(UserError, match="process 3 of this machine has no card: --gpu_id lists 2"):
        distributed.start(Machine(gpu_id=(0, 1)))


@pytest.mark.parametrize("script", ["train_Rain200H.py", "eval_Rain200H.py", "derain.py nothing.png"])
def test_one_process_is_on_the_card_asked_for(two_cards, monkeypatch, run_here, capsys, tmp_path, script):
    """Else its pinned memory and its streams would be the first card's."""

    def asked(device: torch.device) -> None:
        raise UserError(f"all of it on {device}")

    (tmp_path / "nothing.png").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "set_device", asked)
    assert run_here(*script.split(), "--gpu_id", "1") == 2
    assert capsys.readouterr().err.endswith("all of it on cuda:1\n")
    assert two_cards == []


def test_processes_wait_for_each_other_so_long_and_know_their_card(two_cards, monkeypatch) -> None:
    asked = Mock()
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr("torch.distributed.init_process_group", asked)
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **how: iter([("store", how["timeout"])]))
    monkeypatch.setattr(os, "environ", WHOLE | {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"})
    card = torch.device("cuda", 1)
    assert distributed.start(Machine(gpu_id=(0, 1))) == distributed.World(3, 4, card)
    assert distributed.start(Machine(use_GPU=False)).device.type == "cpu"
    how: dict[str, Any] = {"store": "store", "rank": 3, "world_size": 4, "timeout": distributed.TIMEOUT}
    assert asked.mock_calls == [call("cpu:gloo,cuda:nccl", device_id=card, **how), call("gloo", **how)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"WORLD_SIZE": None}, "WORLD_SIZE is not set"),
        ({"RANK": "3"}, "RANK is 3, WORLD_SIZE is 2"),
        ({"MASTER_PORT": "x"}, "invalid literal for int() with base 10: 'x'"),
        ({"MASTER_ADDR": "no.such.host.invalid"}, "MASTER_ADDR is no.such.host.invalid"),
        ({}, "MASTER_ADDR is 127.0.0.1, MASTER_PORT is {MASTER_PORT}"),
    ],
)
def test_what_is_wrong_with_torchruns_environment_is_told(monkeypatch, changes, says) -> None:
    monkeypatch.setattr(distributed, "STARTUP", timedelta(seconds=2))
    environment = {name: value for name, value in (WHOLE | changes).items() if value}
    monkeypatch.setattr(os, "environ", environment)
    with pytest.raises(UserError, match=re.escape(says.format_map(environment))):
        distributed.start(Machine(use_GPU=False))
