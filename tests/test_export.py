"""export.py: the small checkpoint."""

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from machinery.checkpoints import find_checkpoint, load_checkpoint
from machinery.inference import Derainer
from tests import small
from tests.test_golden import released_weights


def test_an_exported_model_is_small_derains_alike_and_gives_way_to_a_new_run(tmp_path, run_here):
    run = small.trained(small.teacher(tmp_path))
    words = ("--logdir", str(tmp_path / "teacher"))
    assert run_here("export.py", *words) == 0
    whole, alone = (tmp_path / "teacher" / below / "net_latest" for below in ("", "pretrained"))
    assert alone.stat().st_size < whole.stat().st_size / 4  # float16, and no moments of Adam
    content = load_checkpoint(alone)
    assert content["recipe"] == load_checkpoint(whole)["recipe"] and "training" not in content
    for name, value in Derainer.open(alone).net.net.state_dict().items():
        torch.testing.assert_close(value, run.net.net.state_dict()[name], rtol=1e-3, atol=1e-6)
    assert (alone.parent / "log.jsonl").read_text() == (whole.parent / "log.jsonl").read_text()
    before, after = (EventAccumulator(str(path.parent)).Reload() for path in (whole, alone))
    assert set(after.Tags()["scalars"]) == set(before.Tags()["scalars"])
    for name in after.Tags()["scalars"]:
        assert after.Scalars(name) == before.Scalars(name)  # step, value, time of the run
    for kind in ("images", "tensors"):  # pictures of a dataset, and texts with its folder
        assert before.Tags()[kind] and not after.Tags()[kind]
    assert run_here("export.py", *words) == 2  # nothing is written over
    before = alone.read_bytes()
    assert find_checkpoint(tmp_path / "teacher", "") == whole
    small.trained(small.teacher(tmp_path, steps=1))
    assert alone.read_bytes() == before  # a new run does not touch it
    whole.unlink()
    assert find_checkpoint(tmp_path / "teacher", "") == alone


def test_an_export_keeps_what_the_model_was_trained_on_and_never_writes_into_a_run(
    tmp_path, run_here, capsys
):
    small.trained(small.teacher(tmp_path, steps=1))
    run = tmp_path / "teacher"
    assert run_here("export.py", "--logdir", str(run)) == 0
    whole, alone = (load_checkpoint(run / name) for name in ("net_latest", "pretrained/net_latest"))
    assert alone["data"] == whole["data"] and alone["data"]
    torch.save({"net": released_weights(), "clock_net": 78_000}, tmp_path / "net_latest")
    assert run_here("export.py", "--logdir", str(tmp_path)) == 0
    assert load_checkpoint(tmp_path / "pretrained/net_latest")["released"]
    (run / "net_latest").rename(run / "net_best")  # a run that has only this, or only its log
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    for taken in ("net_best", "log.jsonl"):
        assert run_here("export.py", "--logdir", str(run / "pretrained"), "--save_path", str(run)) == 2
        assert f"{run} already has a {taken}: give another" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
        before.pop(run / taken)
        (run / taken).unlink()
