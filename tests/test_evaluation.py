"""Derained images and their scores, and that the metric scripts agree with them."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints import find_checkpoint, load_checkpoint, open_network
from evaluation import score
from inference import derain
from metrix_code.scores import read_scores
from tests import layouts
from tests.small import CPU, evaluation, teacher, trained
from tests.test_golden import NETWORK, released_weights, swapped
from utils import UserError, read_image, to_tensor, to_uint8

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With a small teacher of two steps, and its test images derained and scored."""
    folder = tmp_path_factory.mktemp("evaluation")
    trained(teacher(folder, steps=2))
    score(evaluation(folder), CPU)
    return folder


def test_images_keep_their_names_and_are_rounded(folder):
    written = sorted(path.name for path in (folder / "results").glob("*.png"))
    assert written == ["norain-1x2.png", "norain-2x2.png"]
    options = evaluation(folder)
    net, _ = open_network(options.logdir, "")
    rainy = read_image(folder / "data/rain_data_test_Heavy/rain/X2/norain-2x2.png")
    derained = derain(net, to_tensor(rainy), options, CPU).derained[0]
    saved = read_image(folder / "results/norain-2x2.png")
    assert np.array_equal(saved, np.rint(derained.clamp(0, 1).permute(1, 2, 0).numpy() * 255))


@pytest.mark.parametrize("metric", ["psnr", "ssim"])
@pytest.mark.parametrize("protocol", ["RGB", "Y"])
def test_the_metric_scripts_agree_to_the_last_digit(folder, metric, protocol):
    table = folder / f"{metric}{protocol}.csv"
    words = [
        *("--res_path", folder / "results", "--gt_path", folder / "data/rain_data_test_Heavy/norain"),
        *("--protocol", protocol, "--csv", table),
    ]
    subprocess.run([sys.executable, f"metrix_code/{metric}.py", *map(str, words)], cwd=ROOT, check=True)
    with table.open() as rows:
        theirs = [float(row[metric]) for row in csv.DictReader(rows)]
    key = metric + ("_y" if protocol == "Y" else "")
    assert theirs == [image[key] for image in read_scores(folder / "results/scores.json")["images"]]


def test_a_score_says_what_it_is_of(folder):
    scores = read_scores(folder / "results/scores.json")
    assert scores["checkpoint_step"] == 2 and scores["images_expected"] == 200
    assert scores["protocol"] == "RGB" and scores["hardware"] and scores["command"] and scores["date"]
    first = scores["images"][0]
    assert scores["mean"]["psnr"] == pytest.approx(np.mean([each["psnr"] for each in scores["images"]]))
    assert (
        first["psnr_float"] == pytest.approx(first["psnr"], abs=0.1) and first["psnr_float"] != first["psnr"]
    )


def test_a_released_checkpoint_is_a_model_as_ours(tmp_path):
    released = {"net": released_weights(), "clock_net": 78_000, "opt_net": {"state": {}}}
    (tmp_path / "Rain200H").mkdir()
    torch.save(released, tmp_path / "Rain200H" / "net_latest")
    net, content = open_network(tmp_path / "Rain200H", "")
    with torch.no_grad():
        derained = net(swapped(NETWORK["small_in"])).derained.flip(1).numpy()
    assert np.abs(derained - NETWORK["small_derained"]).max() < 1e-4
    assert content["step"] == 78_000


def test_a_network_kept_in_float16_loads_into_float32(folder, tmp_path):
    content = load_checkpoint(folder / "teacher/net_latest")
    half = {name: value.half() for name, value in content["net"].items()}
    torch.save({"net": half}, tmp_path / "net_latest")
    net, _ = open_network(tmp_path, "")
    assert {p.dtype for p in net.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no checkpoint, or is cut short"),
        (b"not a checkpoint", "is no checkpoint, or is cut short"),
        ({"model": {}}, "holds no network under 'net'"),
        (
            {"net": {"layer.weight": torch.zeros(1)}},
            "does not hold the weights of SID or SSID-KD: layer.weight",
        ),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, says):
    path = tmp_path / "net_latest"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=says) as refused:
        open_network(tmp_path, "")
    assert str(path) in str(refused.value)


def test_a_checkpoint_is_never_unpickled_into_code(tmp_path):
    torch.save({"net": Path("anything that is not plain data")}, tmp_path / "net_latest")
    with pytest.raises(UserError, match="is no checkpoint"):
        load_checkpoint(tmp_path / "net_latest")


def test_a_missing_model_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist: train one"):
        find_checkpoint(tmp_path / "nowhere", "train one")


def test_an_image_too_small_for_niqe_does_not_end_the_evaluation(folder, tmp_path):
    layouts.real_images(tmp_path / "test/rain")
    unlabelled = {"dataset": "Real275", "labelled": False, "data_path": tmp_path, "niqe": True}
    scores = score(evaluation(folder, save_path=tmp_path / "results", **unlabelled), CPU)
    assert [image["niqe"] for image in scores["images"]] == [None] * 3


def test_uint8_is_rounded_and_clamped():
    values = torch.tensor([-0.2, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.3])
    assert to_uint8(values.expand(3, 1, -1))[0, :, 0].tolist() == [0, 0, 1, 255, 255]
