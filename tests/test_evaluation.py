"""Derained images and their scores, and that the metric scripts agree with them."""

import dataclasses
import html
import math
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config import EVALUATIONS
from datasets.pairs import ImageRef, Pair
from DerainDataset import pair_crops
from machinery.backbones import AutocastModel
from machinery.checkpoints import load_checkpoint
from machinery.evaluation import score, score_pair, validation_set
from machinery.inference import Derainer
from machinery.loading import ImageCache
from metrix_code import tables
from metrix_code.metrics import METRICS
from metrix_code.psnr import psnr
from metrix_code.scores import average, average_line, read_scores, scores_line
from networks import Derained, DerainNet
from tests import layouts
from tests.small import CPU, ROOT, arguments, evaluation, refusal, teacher, trained, tree
from tests.test_golden import NETWORK, released_weights, swapped
from utils import UserError, read_image, to_tensor, to_uint8, write_image, write_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With a small teacher of two steps, and its test images derained and scored."""
    folder = tmp_path_factory.mktemp("evaluation")
    trained(teacher(folder, steps=2))
    score(evaluation(folder), CPU)
    return folder


@pytest.fixture
def scored(folder, tmp_path):
    """Scores the test images, or what is given in their place, into results/ of the test's own."""

    def scored(**changes) -> dict[str, Any]:
        changes = {"save_path": tmp_path / "results", "page": False} | changes
        return score(evaluation(folder, **changes), CPU)

    return scored


@pytest.fixture
def changed(folder, tmp_path):
    """Writes the teacher's checkpoint with changes, to its recipe too, and gives its path."""

    def changed(recipe: dict[str, Any], **changes) -> Path:
        content = load_checkpoint(folder / "teacher/net_latest")
        torch.save({**content, "recipe": content["recipe"] | recipe, **changes}, tmp_path / "net_latest")
        return tmp_path / "net_latest"

    return changed


def test_images_keep_their_names_and_are_rounded_and_clamped(folder):
    written = sorted(path.name for path in (folder / "results").glob("*.png"))
    assert written == ["norain-1x2.png", "norain-2x2.png"]
    rainy = read_image(folder / "data/rain_data_test_Heavy/rain/X2/norain-2x2.png")
    derained = Derainer.open(folder / "teacher").derained(to_tensor(rainy))
    saved = read_image(folder / "results/norain-2x2.png")
    assert np.array_equal(saved, np.rint(derained.clamp(0, 1).permute(1, 2, 0).numpy() * 255))
    values = torch.tensor([-0.2, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.3])
    assert to_uint8(values.expand(3, 1, -1))[0, :, 0].tolist() == [0, 0, 1, 255, 255]


@pytest.mark.parametrize("metric", ["psnr", "ssim"])
@pytest.mark.parametrize(("protocol", "suffix"), [("RGB", ""), ("Y", "_y"), ("DID/DDN", "_did")])
def test_the_metric_scripts_agree_to_the_last_digit(folder, run_here, capsys, metric, protocol, suffix):
    clean = folder / "data/rain_data_test_Heavy/norain"
    words = ["--res_path", folder / "results", "--gt_path", clean, "--protocol", protocol]
    assert run_here(f"metrix_code/{metric}.py", *map(str, words)) == 0
    theirs = [line.split()[1] for line in capsys.readouterr().out.splitlines()[:-1]]
    ours = read_scores(folder / "results/scores.json")["images"]
    assert theirs == [METRICS[metric + suffix].text(image[metric + suffix]) for image in ours]


def test_a_score_says_what_it_is_of(folder):
    scores = read_scores(folder / "results/scores.json")
    assert scores["checkpoint_step"] == 2 and scores["images_expected"] == 200
    assert scores["hardware"] and scores["command"] and scores["date"]
    assert scores["mean"]["psnr"] == pytest.approx(np.mean([each["psnr"] for each in scores["images"]]))


@pytest.mark.parametrize(
    ("data_path", "dataset"),
    [
        ("datasets/mine", "Rain200H"),  # early checkpoints record one folder as a text
        (["datasets/Rain800", "datasets/Rain200H"], "Rain800 + Rain200H"),
    ],
)
def test_the_training_sets_are_named(changed, scored, data_path, dataset):
    labels = scored(logdir=changed({"data_path": data_path, "real_path": ["datasets/Real"]}))["trained_on"]
    assert (labels["dataset"], labels["real_path"]) == (dataset, ["datasets/Real"])


def test_a_released_checkpoint_is_a_model_as_ours(tmp_path):
    released = {"net": released_weights(), "clock_net": 78_000, "opt_net": {"state": {}}}
    torch.save(released, tmp_path / "net_latest")
    derain = Derainer.open(tmp_path)
    with torch.no_grad():
        derained = derain.net(swapped(NETWORK["small_in"])).derained.flip(1).numpy()
    assert np.abs(derained - NETWORK["small_derained"]).max() < 1e-4
    assert derain.content["step"] == 78_000


def test_weights_of_something_else_are_named(tmp_path):
    for name, says in (
        ("encoder_decoder_1.a", "has no head1.weight: download it again"),
        ("layer.weight", "does not hold the weights of SID or SSID-KD: layer.weight"),
    ):
        torch.save({"net": {name: torch.zeros(1)}}, tmp_path / "net_latest")
        assert says in refusal(Derainer.open, tmp_path)


@pytest.mark.parametrize(
    "record", EVALUATIONS.values(), ids=lambda record: f"{record.dataset} {record.made_by}"
)
def test_the_script_that_makes_a_missing_model_is_there(record, tmp_path):
    said = refusal(score, dataclasses.replace(record, logdir=tmp_path), CPU)
    named = re.search(r"train one with (\S+),", said)
    assert named and (ROOT / named[1]).is_file()


@pytest.mark.parametrize("shipped", [True, False])
def test_the_shipped_lightnet_is_named_where_the_papers_model_is_missing(tmp_path, monkeypatch, shipped):
    monkeypatch.chdir(tmp_path)
    for module in ("machinery.evaluation", "machinery.checkpoints"):
        monkeypatch.setattr(f"{module}.ROOT", tmp_path)
    if shipped:
        (tmp_path / "trained_model/Rain200H-light/pretrained").mkdir(parents=True)
        (tmp_path / "trained_model/Rain200H-light/pretrained/net_latest").touch()
    said = refusal(score, EVALUATIONS["Rain200H", "SID"], CPU)
    assert "or give --logdir" in said
    assert ("--preset light for the shipped LightNet" in said) == shipped


def test_an_unreadable_image_is_named_in_one_line(tmp_path, scored):
    data = layouts.rain200(tmp_path / "data", test=12)
    broken = data / "rain_data_test_Heavy/rain/X2/norain-2x2.png"
    broken.write_bytes(broken.read_bytes()[:100])
    says = f"1 of 12 images were not scored, the first: {broken} is not an image"
    assert says in refusal(scored, data_path=data, page=True)
    scores = read_scores(tmp_path / "results/scores.json")
    assert len(scores["images"]) == 11 and scores["images_found"] == 12
    assert scores["mean"] == average(scores["images"])
    page = html.unescape((tmp_path / "results/index.html").read_text())
    measured = f"measured: {scores['date']}, {scores['hardware']}, float32\n{scores['command']}"
    assert measured in page and "12 pairs; Rain200H's official test set has 200" in page
    assert [row for row in tables.tables(tmp_path, ["measured"])[0].rows() if "11 of 200" in row[2]]


def test_images_too_small_for_a_metric_are_named_and_scored_by_the_others(tmp_path, scored, capsys):
    for side, image in zip(("rain", "norain"), layouts.pair(1, (8, 9)), strict=True):
        write_image(tmp_path / "tiny" / side / "1.png", image)
    (image,) = scored(data_path=tmp_path / "tiny", niqe=True, page=True)["images"]
    assert image["psnr"] > 0 and image["ssim"] > 0 and image["psnr_did"] > 0
    assert image["ssim_y"] is image["rainy_ssim_did"] is image["niqe"] is None
    out = capsys.readouterr().out
    assert "no SSIM (Y): 9x8 pixels are too few" in out and "no ssim_y: 1" not in out


def test_an_image_without_numbers_is_named_and_the_scores_of_the_others_are_kept(
    tmp_path, scored, monkeypatch
):
    forward, seen = AutocastModel.forward, []

    def broken_from_the_second_on(self, rainy):
        seen.append(rainy)
        output = forward(self, rainy)
        return output if len(seen) == 1 else output._replace(derained=output.derained * torch.nan)

    monkeypatch.setattr(AutocastModel, "forward", broken_from_the_second_on)
    said = refusal(scored)
    assert "1 of 2 images were not scored" in said and "net_latest produced NaN or Inf" in said
    scores = read_scores(tmp_path / "results/scores.json")
    assert [image["name"] for image in scores["images"]] == ["norain-1x2"] and scores["images_found"] == 2
    assert not (tmp_path / "results/norain-2x2.png").exists()


class Bright(DerainNet):
    def forward(self, rainy):
        return Derained(rainy + 0.5, rainy, rainy)


def test_a_score_is_of_the_image_as_saved_or_of_the_output_before_it_is_clamped(tmp_path):
    for name, grey in (("rainy.png", 200), ("clean.png", 190)):
        write_image(tmp_path / name, np.full((40, 40, 3), grey, np.uint8))
    pair = Pair("1", ImageRef(tmp_path / "rainy.png"), ImageRef(tmp_path / "clean.png"))
    keys = ["psnr_float", "psnr", "rainy_psnr", "psnr_input", "brightness"]
    scores = score_pair(pair, Derainer(Bright((4, 6, 8), (1, 1, 1))), keys).scores
    errors = {"psnr_float": 0.5 + 10 / 255, "psnr": 65 / 255, "rainy_psnr": 10 / 255, "psnr_input": 55 / 255}
    expected = {key: -20 * np.log10(error) for key, error in errors.items()} | {"brightness": 55}
    assert scores.pop("seconds") and scores == pytest.approx(expected, abs=1e-3)


def test_a_set_that_is_not_divided_is_not_validated_on(tmp_path):
    for number in range(3):
        for side, image in zip(("rain", "norain"), layouts.pair(number, (60, 60)), strict=True):
            write_image(tmp_path / f"one/{side}/{number}.png", image)
    recipe = teacher(tmp_path, data_path=(tmp_path / "one",), val_every=1.0)
    found, notes = validation_set(recipe, pair_crops(recipe, ImageCache("off")))
    assert found is None and "is not divided into training and test pairs" in notes[0]


# ---------------------------------------------------------------------------- labels are of what was run


@pytest.mark.parametrize(
    ("make", "place", "script", "name", "expected"),
    [
        (layouts.rain12, "Rain12", "Rain200L", "Rain12", 12),
        (layouts.rain200, "Rain200L", "Rain200L", "Rain200H", 200),
        (layouts.rain200_light, "unpacked", "Rain200H", "Rain200L", 200),
        (layouts.rain1400, "unpacked", "Rain200H", "Rain1400", 1400),
        (layouts.rain12, "holiday", "Rain200L", "holiday", None),
        (layouts.rain200, "unpacked", "SPA", "Rain200H", 200),
        (lambda root: layouts.plain(root, "rain", "gt"), "mine", "SPA", "mine", None),
        # what tells nothing is the script's set if it has as many images
        (lambda root: layouts.plain(root, "input", "target", count=12), "unpacked", "Rain12", "Rain12", 12),
    ],
)
def test_a_set_is_what_its_folder_tells(
    folder, tmp_path, scored, capsys, make, place, script, name, expected
):
    given = {"data_path": make(tmp_path / place), "dataset": script, "made_by": "train_Rain200L_real.py"}
    scores = scored(**given)
    assert (scores["dataset"], scores["images_expected"]) == (name, expected)
    trained_on = scores["trained_on"]  # a teacher is a teacher, whatever the script
    assert (scores["method"], trained_on["dataset"]) == ("SID", "Rain200H")
    assert str(folder / "data") in trained_on["data"][0]
    out = capsys.readouterr().out
    assert (f"scored as {name}, not as {script}" in out) == (name != script)
    assert name == script or f"{script}'s official" not in out or expected is None
    assert tables.tables(tmp_path, ["measured"])[0].cells[0].dataset == name
    told = scored(**given, set_name="A set")
    assert (told["dataset"], told["images_expected"]) == ("A set", None)


def test_what_a_released_checkpoint_does_not_tell_stays_open_or_is_told(tmp_path, scored, capsys):
    torch.save({"net": released_weights(), "clock_net": 78_000}, tmp_path / "net_latest")
    scores = scored(logdir=tmp_path)
    assert (scores["method"], scores["trained_on"]["dataset"]) == ("unknown", "unknown")
    assert "give --method and --trained_on" in capsys.readouterr().out
    scores = scored(logdir=tmp_path, method="SID", trained_on="Rain200H")
    assert (scores["method"], scores["trained_on"]["dataset"]) == ("SID", "Rain200H")
    assert "not recorded" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("paths", "why"),
    [
        (["{here}"], "which"),
        (["/elsewhere/Real-275"], "which"),
        (["/elsewhere/SPA", "/elsewhere/real_input"], "near-duplicates"),
        (["/elsewhere/SPA"], ""),
    ],
)
def test_a_set_that_was_trained_on_is_warned_of_and_marked(tmp_path, changed, scored, capsys, paths, why):
    data = layouts.real275(tmp_path / "Real275")
    model = changed({"stage": "SSID-KD", "real_path": [path.format(here=data) for path in paths]})
    scores = scored(logdir=model, dataset="Real275", labelled=False, data_path=data, niqe=True)
    assert why in scores["seen"] and bool(scores["seen"]) == bool(why)
    assert ("warning: not new to this model" in capsys.readouterr().out) == bool(why)
    assert [image["niqe"] for image in scores["images"]] == [None] * 3  # too small for it, and no harm done


def test_a_self_ensemble_has_a_name_and_a_place_of_its_own(tmp_path, scored, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for ensemble in (False, True):
        scored(save_path=EVALUATIONS["Rain200H", "SID"].save_path, self_ensemble=ensemble, tile=256)
    results = Path("results/Rain200H")
    assert sorted(each.name for each in results.iterdir()) == ["SID", "SID+self-ensemble"]
    rows = {row[0] for row in tables.tables(Path("results"), ["measured"])[0].rows()}
    assert rows == {"SID (ours)", "SID (ours) + self-ensemble", "rainy input"}
    single, mean = (read_scores(results / f"SID{more}/scores.json") for more in ("", "+self-ensemble"))
    assert single["mean"]["psnr"] != mean["mean"]["psnr"] and single["tile"] == 256
    assert (single["self_ensemble"], mean["self_ensemble"]) == (False, True)


@pytest.mark.parametrize(
    ("real_path", "seen"),
    [("Merged", True), ("SPA", False), ("Elsewhere", False), ("gone", False)],
)
def test_test_images_that_were_trained_on_are_found_by_content(tmp_path, changed, scored, real_path, seen):
    """Of the folder SPA a training leaves the test part out."""
    for number in (1, 2):
        image = layouts.clean_image(number)
        for name in (
            f"SPA/test/rain/{number}.png",
            f"SPA/test/gt/{number}gt.png",
            f"Merged/{number}-copy.png",
        ):
            write_image(tmp_path / name, image)
    for name in ("SPA/train", "Merged", "Elsewhere"):
        write_image(tmp_path / name / "3.png", layouts.clean_image(3))
    same_size = (tmp_path / "SPA/test/rain/1.png").read_bytes()[:-1] + b"x"
    (tmp_path / "Elsewhere/1.png").write_bytes(same_size)
    place = tmp_path / real_path
    model = changed({"real_path": [str(place)]}, data=[f"unlabelled: 3 real images from {place}"])
    told = scored(logdir=model, dataset="SPA", data_path=tmp_path / "SPA/test")["seen"]
    assert told == (f"it was trained on {place}, which contains 2 of these 2 images" if seen else "")


# ------------------------------------------------------------------------------------ any method's results


def test_any_folder_of_results_is_scored_into_the_tables(folder, tmp_path, scored, capsys):
    one, two = (folder / f"data/rain_data_test_Heavy/norain/norain-{number}.png" for number in (1, 2))
    half = read_image(two) // 2
    # named as the clean images, one of them the clean image itself
    for name, image in ((one.name, read_image(one)), (two.name, half), ("77.png", half)):
        write_image(tmp_path / "out" / name, image)
    assert "name the method of these images, --method" in refusal(scored, derained=tmp_path / "out")
    scores = scored(derained=tmp_path / "out", method="Restormer", page=True)
    assert "not scored, derained images that match no other (1): 77.png" in capsys.readouterr().err
    assert [each["psnr"] for each in scores["images"]] == [math.inf, psnr(half, read_image(two))]
    assert scores["checkpoint"] is None
    rows = {f"{row[0]}, {row[1]}": row[2] for row in tables.tables(tmp_path, ["measured"])[0].rows()}
    assert rows["Restormer, measured, RGB"].endswith("2 of 200 images, 1 infinite")
    assert "rainy input, measured, DID/DDN" in rows
    assert (tmp_path / "results/index.html").is_file()


def test_results_of_another_size_or_of_none_are_named(tmp_path, scored):
    for number, size in ((1, (7, 5)), (2, layouts.SIZE)):
        write_image(tmp_path / f"out/norain-{number}x2.png", np.zeros((*size, 3), np.uint8))
    said = refusal(scored, derained=tmp_path / "out", method="m")
    assert "1 of 2 " in said and "norain-1x2.png is 5x7, " in said and "norain-1x2.png is 56x48" in said
    assert len(read_scores(tmp_path / "results/scores.json")["images"]) == 1
    for number in (0, 1):
        write_image(tmp_path / f"shifted/{number}.png", layouts.clean_image(1))
    write_image(tmp_path / "real/x.png", layouts.clean_image(1))
    for name, says in (
        ("shifted", "are left over at opposite ends of the numbering"),
        ("real", f"no image of {tmp_path}/real (x.png, ...) matches one of"),
    ):
        assert says in refusal(scored, derained=tmp_path / name, method="m")


# ---------------------------------------------------------------------------------------- where it goes


@pytest.mark.parametrize("place", [".", "rain_data_test_Heavy", "rain_data_test_Heavy/rain/X2", "mine"])
def test_results_never_go_over_inputs_or_other_files(folder, scored, place):
    write_text(folder / "data/mine/index.html", "mine")
    before = tree(folder / "data")
    path = folder / "data" / place
    says = f"--save_path {path} contains files of something else: give another"
    assert says in refusal(scored, save_path=path, page=True)
    assert tree(folder / "data") == before


def test_results_never_go_around_the_derained_images_that_are_scored(folder, scored):
    path = folder / "results"
    says = f"--save_path {path} contains the input {path}"
    assert says in refusal(scored, derained=path, save_path=path, method="m")


def test_earlier_results_are_moved_aside_whole(tmp_path, scored, monkeypatch, capsys):
    """Of the same model or another: no old score stands beside a new picture, and none is lost."""
    place = tmp_path / "results"
    first = scored(page=True)
    assert scored(page=True)["mean"]["psnr"] == first["mean"]["psnr"]

    def broken(self, rainy):
        raise UserError("no good")

    monkeypatch.setattr(Derainer, "derained", broken)
    assert refusal(scored, page=True).endswith("no good")
    assert not list(place.iterdir())  # which is as good as new
    for number in (1, 2):
        earlier = tmp_path / f"results-earlier-{number}"
        assert read_scores(earlier / "scores.json")["mean"]["psnr"] == first["mean"]["psnr"]
        assert (earlier / "index.html").exists() and (earlier / "norain-1x2.png").exists()
    assert f"the earlier results are now in {tmp_path}/results-earlier-1" in capsys.readouterr().out
    assert len(tables.tables(tmp_path, ["measured"])[0].rows()) == 6  # a row a protocol, of one model


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_evaluation_that_is_asked_to_end_writes_its_scores(folder, tmp_path, number):
    data = layouts.rain200(tmp_path / "data", test=400)
    given = {"data_path": data, "logdir": folder / "teacher", "save_path": tmp_path / "results"}
    words = arguments({**given, "page": False, "use_GPU": False})
    words = [sys.executable, "eval_Rain200H.py", *words]
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True}
    how["preexec_fn"] = partial(signal.signal, number, signal.SIG_DFL)  # the tests may run under nohup
    with subprocess.Popen(words, cwd=ROOT, **how) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("norain-2x2  PSNR"):
                process.send_signal(number)
                break
        process.stdout.read()
    assert process.returncode == 130
    scores = read_scores(tmp_path / "results/scores.json")
    assert 2 <= len(scores["images"]) < scores["images_found"] == 400 and scores["mean"]["psnr"] > 0


def test_scores_in_words_are_those_that_there_are_and_what_a_mean_leaves_out_is_counted():
    both = {"name": "1", "psnr": 20.0, "rainy_psnr": 10.0, "ssim": 0.5, "rainy_ssim": 0.25, "niqe": None}
    both["brightness"] = -1.5
    scores = "1  PSNR 20.000 dB (rainy 10.000)  SSIM 0.5000 (rainy 0.2500)"
    assert scores_line(both) == f"{scores}  change of brightness -1.50 of 255"
    assert scores_line({"name": "2", "niqe": 3.0, "rainy_niqe": None}) == "2  NIQE 3.0000"
    values = ((math.inf, 1.0, 3.0), (30.0, 0.9, None), (20.0, 0.8, 5.0))
    images: list[dict[str, Any]] = [dict(zip(("psnr", "ssim", "niqe"), each, strict=True)) for each in values]
    means = "PSNR 25.000 dB  SSIM 0.9000  NIQE 4.0000"
    assert average_line(images) == f"{means}  (left out: infinite psnr: 1, no niqe: 1)"
    assert "left out" not in average_line(images[2:])
