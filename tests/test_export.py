"""export.py: the small checkpoint, and ONNX."""

import numpy as np
import pytest
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


@pytest.mark.parametrize("light", [False, True])
def test_a_network_in_onnx_derains_any_size_as_pytorch_does(tmp_path, run_here, light):
    pytest.importorskip("onnx", reason="needs photographs/requirements.txt")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs photographs/requirements.txt")
    small.trained(small.teacher(tmp_path, steps=1, **(small.LIGHT if light else {"units": (1, 1, 1)})))
    words = ("--logdir", str(tmp_path / "teacher"), "--save_path", str(tmp_path / "it.onnx"))
    assert run_here("export.py", *words) == 0
    session = onnxruntime.InferenceSession(tmp_path / "it.onnx", providers=["CPUExecutionProvider"])
    derain = Derainer.open(tmp_path / "teacher")
    # at 171 and 228 ONNX's own nearest upsampling takes other pixels than PyTorch's
    for shape in ((1, 3, 33, 171), (2, 3, 228, 36), (3, 3, 47, 64), (1, 3, 32, 32), (1, 3, 114, 57)):
        rainy = torch.rand(shape)
        (given,) = session.run(["derained"], {"rainy": rainy.numpy()})
        assert np.abs(given - torch.stack([derain.derained(image) for image in rainy]).numpy()).max() < 1e-5
