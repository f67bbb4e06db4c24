"""Both stages' loop: what it writes, how it stops, resumes and refuses."""

import contextlib
import dataclasses
import errno
import os
import re
import signal
import subprocess
from functools import partial
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import torch
from filelock import FileLock, Timeout
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import engine
from config import TEACHERS
from engine import Run
from machinery import runlog
from machinery.checkpoints import LATEST, load_checkpoint, save_checkpoint
from machinery.runlog import RunLog
from tests import layouts
from tests.small import (
    a_run,
    assert_resumes_alike,
    assert_same_runs,
    begun,
    command,
    lines,
    student,
    teacher,
    trained,
)
from utils import UserError

# ------------------------------------------------------------------------------------- what a run writes


def test_both_stages_write_their_logs_and_checkpoints(tmp_path):
    trained(teacher(tmp_path, val_every=1))
    run = trained(student(tmp_path, val_every=1))
    supervised = {"loss/total", "loss/minus_ssim", "loss/l1", "loss/minus_psnr"}
    real = {f"loss/{name}" for name in ("dark_syn", "dark_real", "tv_syn", "tv_real", "kl")}
    for stage, name, terms in (("SID", "teacher", supervised), ("SSID-KD", "student", supervised | real)):
        folder = tmp_path / name
        steps = [line for line in lines(folder) if "loss/total" in line]
        assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
        assert set(steps[0]) == terms | {"step", "optimizer/lr"}
        board = EventAccumulator(str(folder), {"images": 0, "tensors": 0}).Reload()
        others = {"optimizer/lr", "speed/images_per_second", "PSNR/validation", "SSIM/validation"}
        assert terms | others == set(board.Tags()["scalars"])
        assert {"pairs/norain-1x2", "pairs/norain-2x2"} <= set(board.Tags()["images"])
        assert b"| patch_size | " in board.Tensors("recipe/text_summary")[-1].tensor_proto.string_val[0]
        plugins = board.SummaryMetadata("_hparams_/session_start_info").plugin_data
        assert plugins.plugin_name == "hparams" and b"batchSize" in plugins.content
        assert b"patch_size" not in plugins.content  # a column for each option would hide the scores
        for name in ("net_latest", "net_best"):
            content = load_checkpoint(folder / name)
            assert {"net", "network", "training", "step", "recipe"} <= set(content)
            assert content["recipe"]["stage"] == stage
        assert not list(folder.glob(".*"))
    assert "photographs/1" in board.Tags()["images"]
    assert run.initialized_from == f"{tmp_path / 'teacher' / 'net_latest'}, step 6"


def test_an_earlier_run_is_set_aside_with_the_checkpoints_that_were_kept(tmp_path):
    folder = tmp_path / "teacher"
    trained(teacher(tmp_path, steps=4, keep_every=2))
    assert [load_checkpoint(folder / f"net_{step}")["step"] for step in (2, 4)] == [2, 4]
    before = (folder / "net_latest").read_bytes()
    trained(teacher(tmp_path, steps=1, seed=1))
    assert (folder / "earlier-1/net_latest").read_bytes() == before != (folder / "net_latest").read_bytes()
    assert (folder / "earlier-1/net_2").exists() and not (folder / "net_2").exists()
    assert [line["step"] for line in lines(folder)] == [1]


# ------------------------------------------------------------------------------------ stopping, resuming


@pytest.mark.parametrize("stage", [teacher, student])
def test_a_resumed_run_ends_at_the_same_weights(tmp_path, stage):
    trained(teacher(tmp_path))
    # stopped at a step of a validation, which is made first
    assert_resumes_alike(stage(tmp_path, save_path=tmp_path / "straight", augment=True, val_every=1.5))


def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    recipe = teacher(tmp_path, save_path=tmp_path / "killed", steps=40, workers=1)
    with begun("train_Rain200H.py", recipe, stderr=subprocess.DEVNULL) as process:
        os.kill(process.pid, signal.SIGKILL)
    assert load_checkpoint(recipe.save_path / "net_latest")["step"] < 40
    trained(dataclasses.replace(recipe, resume=True, workers=0))
    trained(dataclasses.replace(recipe, save_path=tmp_path / "straight"))
    assert_same_runs(tmp_path / "straight", tmp_path / "killed")


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    recipe = teacher(tmp_path, steps=100_000, workers=1)
    with begun("train_Rain200H.py", recipe, stdout=subprocess.PIPE, start_new_session=True) as process:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the loader's workers too
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.splitlines()[-1].endswith("and saved; to continue, add --resume to the command")
    assert load_checkpoint(recipe.save_path / "net_latest")["step"] == lines(recipe.save_path)[-1]["step"]


def test_a_run_whose_terminal_has_hung_up_validates_and_saves(tmp_path, monkeypatch):
    def gone(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(engine.tqdm, "write", gone)
    trained(teacher(tmp_path, val_every=1.5))
    assert load_checkpoint(tmp_path / "teacher" / LATEST)["step"] == 6


@pytest.mark.parametrize("killed_in", ["mean_scores", "save"])
def test_a_validation_cut_short_is_made_up(tmp_path, monkeypatch, killed_in):
    straight = teacher(tmp_path, val_every=1.5, save_path=tmp_path / "straight")  # validates at steps 3 and 6
    trained(straight)
    cut = dataclasses.replace(straight, save_path=tmp_path / "cut")
    run = a_run(cut)
    save = run._save

    def killed(*_):
        raise ConnectionAbortedError

    def saves(name):  # the scores are logged and net_best is written, but net_latest is of an earlier step
        if name == LATEST and run.step == 3:
            killed()
        save(name)

    moments = {"mean_scores": (engine, "mean_scores", killed), "save": (run, "_save", saves)}
    with monkeypatch.context() as patched, pytest.raises(ConnectionAbortedError):
        patched.setattr(*moments[killed_in])
        run.run()
    trained(dataclasses.replace(cut, resume=True))
    assert_same_runs(straight.save_path, cut.save_path)
    board = EventAccumulator(str(cut.save_path)).Reload()
    assert [each.step for each in board.Scalars("PSNR/validation")] == [3, 6]
    assert [each.step for each in board.Images("pairs/norain-1x2")] == [3, 6]
    assert [each.step for each in board.Scalars("loss/total")] == [1, 2, 3, 4, 5, 6]
    best = [load_checkpoint(folder / "net_best") for folder in (straight.save_path, cut.save_path)]
    assert best[0]["step"] == best[1]["step"] and best[0]["training"]["best"] == best[1]["training"]["best"]
    torch.testing.assert_close(best[1]["net"], best[0]["net"], rtol=0, atol=0)


@pytest.mark.parametrize("best", [0, 1, 2])
def test_net_best_is_the_best_by_psnr_neither_the_last_nor_by_ssim(tmp_path, monkeypatch, best):
    scores = [{"psnr": 20.0, "ssim": 0.5} for _ in range(3)]
    scores[best]["psnr"], scores[best - 1]["ssim"] = 30.0, 0.6
    monkeypatch.setattr(engine, "mean_scores", lambda *_: (scores.pop(0), ""))
    run = trained(teacher(tmp_path, val_every=1))
    content = load_checkpoint(tmp_path / "teacher/net_best")
    assert content["step"] == 2 * (best + 1) and content["training"]["best"] == run.best == 30
    assert a_run(teacher(tmp_path, val_every=1, resume=True)).best == 30  # what there is to beat


def test_a_clock_that_was_set_back_hides_nothing_in_tensorboard(tmp_path):
    recipe = teacher(tmp_path, steps=2)
    trained(recipe)
    for path in recipe.save_path.glob("events.*"):
        path.rename(path.with_name(re.sub(r"\d{10}", "9999999999", path.name, count=1)))
    trained(dataclasses.replace(recipe, steps=4, resume=True))
    board = EventAccumulator(str(recipe.save_path)).Reload()
    assert [each.step for each in board.Scalars("loss/total")] == [1, 2, 3, 4]


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_belongs_to_one_training_at_a_time(tmp_path, run_here, monkeypatch, capsys, resume):
    recipe = teacher(tmp_path)
    words, lock = command("train_Rain200H.py", recipe, resume=resume)[1:], recipe.save_path / ".lock"
    trained(recipe)
    monkeypatch.setattr(runlog, "PATIENCE", 0.1)
    with monkeypatch.context() as patched, FileLock(lock):
        patched.setattr(engine, "load_checkpoint", lambda path: pytest.fail("read before it is locked"))
        assert run_here(*words) == 2
    assert "another training is running in" in capsys.readouterr().err
    assert not list(recipe.save_path.glob("earlier-*"))

    def at_work(run):
        with pytest.raises(Timeout):
            FileLock(lock).acquire(timeout=0)
        return True

    monkeypatch.setattr(Run, "run", at_work)
    assert run_here(*words) == 0


def test_a_picture_is_rainy_derained_streaks_and_clean_with_captions(tmp_path):
    rainy, clean = (np.full((8, 400, 3), grey, np.uint8) for grey in (90, 30))
    with contextlib.closing(RunLog(tmp_path, 0)) as log:
        for name, known, rain in (("pairs/1", clean, 50), ("pairs/2", clean, 20), ("photographs/1", None, 0)):
            log.strip(1, name, partial(torch.sub, other=rain / 255), rainy, known)
    board = EventAccumulator(str(tmp_path)).Reload()
    strips = {"pairs/1": [90, 40, 250, 30], "pairs/2": [90, 70, 13 * 20, 30], "photographs/1": [90, 90, 0]}
    captions = {}
    for name, greys in strips.items():
        encoded = np.frombuffer(board.Images(name)[0].encoded_image_string, np.uint8)
        picture: Any = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)
        panels = np.split(picture, len(greys), axis=1)
        assert [panel[-4, 100] for panel in panels] == [min(255, grey) for grey in greys]
        assert all(panel[:-8].min() < 128 for panel in panels)  # black letters
        captions[name] = [panel[:-8].tobytes() for panel in panels]
        assert len(set(captions[name])) == len(greys)
    same = [one == other for one, other in zip(captions["pairs/1"], captions["pairs/2"], strict=True)]
    assert same == [True, True, False, True]  # the streaks' gain differs


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    path = tmp_path / "net_latest"
    weights = {"first": torch.tensor([1.0, torch.nan]), "second": torch.ones(1)}
    with pytest.raises(UserError, match="net_latest is not written: 1 of 2 weights are NaN or Inf"):
        save_checkpoint(path, {"net": weights})
    assert not path.exists()


def test_what_changes_the_result_must_not_change_on_resuming(tmp_path):
    recipe = teacher(tmp_path, steps=2)
    trained(recipe)
    with pytest.raises(UserError, match=r"started with --lr 0.0005, not 0.1"):
        a_run(dataclasses.replace(recipe, resume=True, lr=0.1))
    a_run(dataclasses.replace(recipe, resume=True, workers=1))
    other = {**vars(recipe), "dataset": "Rain200L", "resume": True}
    with pytest.raises(UserError, match="a run of SID on Rain200H, and this script trains SID on Rain200L"):
        a_run(dataclasses.replace(TEACHERS["Rain200L"], **other))
    with pytest.raises(UserError, match=r"a run of SID on Rain200H, and this script trains SSID-KD"):
        a_run(student(tmp_path, save_path=recipe.save_path, resume=True))
    layouts.rain200(tmp_path / "data", train=5)
    with pytest.raises(UserError, match=r"started on pairs, number and checksum \[4,.* not \[5,"):
        a_run(dataclasses.replace(recipe, resume=True))


def test_resuming_to_a_greater_length_says_that_the_learning_rate_rises(tmp_path, capsys):
    trained(teacher(tmp_path, steps=2, cosine=True))
    for steps in (2, 4):
        capsys.readouterr()
        a_run(teacher(tmp_path, steps=steps, cosine=True, resume=True))
        said = "now 4 steps, not 2: the learning rate rises again" in capsys.readouterr().out
        assert said == (steps == 4)


def test_the_device_and_what_is_validated_on_are_told(tmp_path, capsys):
    recipe = teacher(tmp_path)
    simulated = (tmp_path / "data").rename(tmp_path / "Simulated200H")
    trained(dataclasses.replace(recipe, data_path=(simulated,), val_every=1.0, precision="tf32"))
    told = capsys.readouterr().out
    assert re.search(r"^on cpu: .+ threads, tf32$", told, re.MULTILINE)
    assert "rain/X2/ + norain/: 2 pairs" in told
    assert told.count("(RGB, simulated rain)") == 3  # six steps of two of four pairs


# --------------------------------------------------------------------------------------------- refusing


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, monkeypatch):
    recipe = teacher(tmp_path, steps=4)
    real_step, steps = engine.training_step, iter(range(1, 100))

    def breaks(*args, **options):
        terms = real_step(*args, **options)
        return terms if next(steps) < 4 else {**terms, "total": terms["total"] * float("nan")}

    monkeypatch.setattr(engine, "training_step", breaks)
    with pytest.raises(UserError, match="the loss is nan at step 4"):
        trained(recipe)
    assert load_checkpoint(recipe.save_path / "net_latest")["step"] == 2


def test_equal_runs_leave_equal_files(tmp_path):
    """Whatever the machine had free meanwhile: a checkpoint says nothing of it."""
    for name in ("one", "other"):
        trained(teacher(tmp_path, steps=2, ema=0.9, save_path=tmp_path / "run"))
        (tmp_path / "run/net_latest").rename(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_the_workers_of_a_killed_training_end_with_it(tmp_path):
    with begun("train_Rain200H.py", teacher(tmp_path, steps=10_000, workers=2)) as process:
        workers = psutil.Process(process.pid).children()
        process.kill()
    assert len(workers) >= 2 and not psutil.wait_procs(workers, timeout=30)[1]
