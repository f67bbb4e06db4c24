"""Derained images and their scores, and that the metric scripts agree with them."""

import csv
import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config import EVALUATIONS
from evaluation import in_words, left_out, score
from inference import Derainer
from machinery.checkpoints import find_checkpoint, load_checkpoint
from metrix_code.scores import average, read_scores
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
    derain = Derainer.open(options.logdir)
    rainy = read_image(folder / "data/rain_data_test_Heavy/rain/X2/norain-2x2.png")
    derained = derain.derained(to_tensor(rainy))
    saved = read_image(folder / "results/norain-2x2.png")
    assert np.array_equal(saved, np.rint(derained.clamp(0, 1).permute(1, 2, 0).numpy() * 255))


@pytest.mark.parametrize("metric", ["psnr", "ssim"])
@pytest.mark.parametrize(("protocol", "suffix"), [("RGB", ""), ("Y", "_y"), ("DID/DDN", "_did")])
def test_the_metric_scripts_agree_to_the_last_digit(folder, metric, protocol, suffix):
    table = folder / f"{metric}{suffix}.csv"
    words = [
        *("--res_path", folder / "results", "--gt_path", folder / "data/rain_data_test_Heavy/norain"),
        *("--protocol", protocol, "--csv", table),
    ]
    subprocess.run([sys.executable, f"metrix_code/{metric}.py", *map(str, words)], cwd=ROOT, check=True)
    with table.open() as rows:
        theirs = [float(row[metric]) for row in csv.DictReader(rows)]
    assert theirs == [
        image[metric + suffix] for image in read_scores(folder / "results/scores.json")["images"]
    ]


def test_a_score_says_what_it_is_of(folder):
    scores = read_scores(folder / "results/scores.json")
    assert scores["checkpoint_step"] == 2 and scores["images_expected"] == 200
    assert scores["hardware"] and scores["command"] and scores["date"]
    first = scores["images"][0]
    assert scores["mean"]["psnr"] == pytest.approx(np.mean([each["psnr"] for each in scores["images"]]))
    assert (
        first["psnr_float"] == pytest.approx(first["psnr"], abs=0.1) and first["psnr_float"] != first["psnr"]
    )


def test_a_released_checkpoint_is_a_model_as_ours(tmp_path):
    released = {"net": released_weights(), "clock_net": 78_000, "opt_net": {"state": {}}}
    (tmp_path / "Rain200H").mkdir()
    torch.save(released, tmp_path / "Rain200H" / "net_latest")
    derain = Derainer.open(tmp_path / "Rain200H")
    with torch.no_grad():
        derained = derain.net(swapped(NETWORK["small_in"])).derained.flip(1).numpy()
    assert np.abs(derained - NETWORK["small_derained"]).max() < 1e-4
    assert derain.content["step"] == 78_000


def test_a_network_kept_in_float16_loads_into_float32(folder, tmp_path):
    content = load_checkpoint(folder / "teacher/net_latest")
    half = {name: value.half() for name, value in content["net"].items()}
    torch.save({"net": half}, tmp_path / "net_latest")
    assert {p.dtype for p in Derainer.open(tmp_path).net.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no checkpoint, or is cut short"),
        (b"not a checkpoint", "is no checkpoint, or is cut short"),
        ({"model": {}}, "holds no network under 'net'"),
        ({"net": torch.zeros(1)}, "holds no network under 'net'"),
        ({"net": {"head1.bias": [1.0]}}, "'head1.bias' of its network is no weight"),
        (
            {"net": {"head1.bias": torch.zeros(4, dtype=torch.int64)}},
            "'head1.bias' of its network is no weight",
        ),
        ({"net": {"head1.bias": torch.zeros(4).to_sparse()}}, "'head1.bias' of its network is no weight"),
        ({"net": {"head1.bias": torch.full((4,), torch.nan)}}, "1 of its 1 weights are no finite numbers"),
        ({"net": {"encoder_decoder_1.a": torch.zeros(1)}}, r"has no head1\.weight: fetch it again"),
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
    with pytest.raises(UserError, match=says):
        Derainer.open(tmp_path)


def test_a_checkpoint_is_never_unpickled_into_code(tmp_path):
    torch.save({"net": Path("anything that is not plain data")}, tmp_path / "net_latest")
    with pytest.raises(UserError, match="is no checkpoint"):
        load_checkpoint(tmp_path / "net_latest")


def test_a_missing_model_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist: train one"):
        find_checkpoint(tmp_path / "nowhere", "train one")


@pytest.mark.parametrize(
    "record", EVALUATIONS.values(), ids=lambda record: f"{record.dataset} {record.stage}"
)
def test_the_script_that_makes_a_missing_model_is_there(record, tmp_path):
    with pytest.raises(UserError) as refused:
        score(dataclasses.replace(record, logdir=tmp_path), CPU)
    named = re.search(r"train one with (\S+),", str(refused.value))
    assert named and (ROOT / named[1]).is_file()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_in_one_line(folder, tmp_path, workers):
    data = layouts.rain200(tmp_path / "data", test=12)
    broken = data / "rain_data_test_Heavy/rain/X2/norain-2x2.png"
    broken.write_bytes(broken.read_bytes()[:100])
    options = evaluation(folder, data_path=data, save_path=tmp_path / "results", workers=workers)
    with pytest.raises(UserError) as refused:
        score(options, CPU)
    assert str(broken) in str(refused.value) and "\n" not in str(refused.value)


def test_scores_in_words_are_those_that_there_are():
    both = {"name": "1", "psnr": 20.0, "rainy_psnr": 10.0, "ssim": 0.5, "rainy_ssim": 0.25, "niqe": None}
    assert in_words(both) == "1  PSNR 20.000 dB (rainy 10.000)  SSIM 0.5000 (rainy 0.2500)"
    assert in_words({"name": "2", "niqe": 3.0, "rainy_niqe": None}) == "2  NIQE 3.0000"


def test_what_an_average_leaves_out_is_counted():
    images: list[dict[str, Any]] = [
        {"psnr": math.inf, "ssim": 1.0, "niqe": 3.0},
        {"psnr": 30.0, "ssim": 0.9, "niqe": None},
        {"psnr": 20.0, "ssim": 0.8, "niqe": 5.0},
    ]
    assert left_out(images, average(images)) == "  (left out: infinite psnr: 1, no niqe: 1)"
    assert left_out(images[2:], average(images[2:])) == ""


def test_an_image_too_small_for_niqe_does_not_end_the_evaluation(folder, tmp_path):
    layouts.real_images(tmp_path / "test/rain")
    unlabelled = {"dataset": "Real275", "labelled": False, "data_path": tmp_path, "niqe": True}
    scores = score(evaluation(folder, save_path=tmp_path / "results", **unlabelled), CPU)
    assert [image["niqe"] for image in scores["images"]] == [None] * 3


def test_uint8_is_rounded_and_clamped():
    values = torch.tensor([-0.2, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.3])
    assert to_uint8(values.expand(3, 1, -1))[0, :, 0].tolist() == [0, 0, 1, 255, 255]
