"""The metrics against scikit-image, against direct formulas and against known values; folders; tables."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from scipy.ndimage import correlate
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from metrix_code import folders, tables
from metrix_code.metrics import HEADLINE_METRICS, METRICS
from metrix_code.niqe import niqe
from metrix_code.protocol import PROTOCOLS, luma, ssim_downsample
from metrix_code.psnr import psnr
from metrix_code.scores import SCORES, average, read_scores, write_scores
from metrix_code.ssim import ssim
from tests.small import ROOT, refusal
from utils import read_image, write_image


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """A noisy photograph and the photograph: (60, 83, 3), odd on purpose."""
    clean = data.astronaut()[100:160, 180:263]
    noise = np.random.default_rng(0).normal(0, 20, clean.shape)
    return np.clip(clean + noise, 0, 255).astype(np.uint8), clean


# --------------------------------------------------------------------------------------- the functions


REFERENCE = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}


def test_psnr_and_ssim_are_scikit_images(pair):
    on_rgb = peak_signal_noise_ratio(*pair, data_range=255)
    assert psnr(*pair) == pytest.approx(on_rgb, abs=1e-12)
    noisy, clean = map(luma, pair)
    on_y = peak_signal_noise_ratio(noisy, clean, data_range=255)
    assert psnr(pair[0], pair[1], "Y") == pytest.approx(on_y, abs=1e-12)
    valid = structural_similarity(noisy, clean, **REFERENCE)
    assert ssim(pair[0], pair[1], "Y") == pytest.approx(valid, abs=1e-12)


def test_ssim_on_rgb_is_the_direct_sum_with_zero_padding(pair):
    x, y = (image.astype(np.float64) for image in pair)
    grid = np.arange(11) - 5
    window = np.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / (2 * 1.5**2))[..., None]

    def blur(image: np.ndarray) -> np.ndarray:
        return correlate(image, window / window.sum(), mode="constant", cval=0)

    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = 0.01**2 * 255**2, 0.03**2 * 255**2
    direct = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert ssim(*pair) == pytest.approx(direct.mean(), abs=1e-12)


# what the peers' own evaluation scripts print, run under Octave: rainy against clean
PEERS = {
    ("SPA/rain/438.png", "SPA/gt/438gt.png"): {"DID/DDN": (23.73288, 0.793722), "Y": (23.737431, 0.858371)},
    ("Rain1400/rainy_image/2_1.jpg", "Rain1400/ground_truth/2.jpg"): {"DID/DDN": (21.19514, 0.604250)},
    ("Rain1400/rainy_image/1_1.jpg", "Rain1400/ground_truth/1.jpg"): {"DID/DDN": (26.89854, 0.781062)},
}


@pytest.mark.parametrize("paths", PEERS, ids=lambda paths: paths[0])
def test_the_peers_own_scripts_print_the_same(shared, paths):
    rainy, clean = (read_image(shared / "data" / path) for path in paths)
    for protocol, (their_psnr, their_ssim) in PEERS[paths].items():
        assert psnr(rainy, clean, protocol) == pytest.approx(their_psnr, abs=1e-5)
        assert ssim(rainy, clean, protocol) == pytest.approx(their_ssim, abs=1e-6)


def test_ssim_in_did_ddn_is_scikit_images_on_the_smaller_pair():
    clean = data.astronaut()
    noise = np.random.default_rng(0).normal(0, 20, clean.shape)
    noisy = np.clip(clean + noise, 0, 255).astype(np.uint8)
    # 512: a step of 2, so means of 2x2 blocks
    small = [luma(image.astype(float)).reshape(256, 2, 256, 2).mean(axis=(1, 3)) for image in (noisy, clean)]
    smaller = structural_similarity(*small, **REFERENCE)
    assert ssim(noisy, clean, "DID/DDN") == pytest.approx(smaller, abs=1e-12)


@pytest.mark.parametrize(
    ("shorter", "step"), [(200, 1), (383, 1), (384, 2), (639, 2), (640, 3), (768, 3), (1024, 4)]
)
def test_the_step_of_did_ddn_is_rounded_half_up_and_even_boxes_reach_right_and_below(shorter, step):
    image = np.random.default_rng(step).random((shorter, shorter + 9))
    smaller = ssim_downsample(image)
    assert smaller.shape == tuple(-(-side // step) for side in image.shape)
    before, after = (step - 1) // 2, step // 2
    mirrored = np.pad(image, (before, after), mode="symmetric")
    for row, column in ((0, 0), (5, 7), tuple(side - 1 for side in smaller.shape)):
        box = mirrored[row * step : row * step + step, column * step : column * step + step]
        assert smaller[row, column] == pytest.approx(box.mean(), abs=1e-12)


@pytest.mark.parametrize(
    ("rgb", "y"),
    [
        ((0, 0, 0), 16),
        ((255, 255, 255), 235),
        ((255, 0, 0), 81),  # 81.481
        ((0, 255, 0), 145),  # 144.553
        ((0, 0, 255), 41),  # 40.966
        ((128, 128, 128), 126),  # 125.929
        ((2, 44, 141), 53),  # 52.5 exactly, and halves go up
    ],
)
def test_luma_rounds_as_matlab_does(rgb, y):
    assert luma(np.full((1, 1, 3), rgb, np.uint8)) == y


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_floats_score_as_their_bytes_do(pair, metric):
    floats = [image.astype(np.float32) for image in pair]
    assert metric(*floats) == pytest.approx(metric(*pair), abs=1e-5)
    assert "use one type" in refusal(metric, floats[0], pair[1])


def test_luma_of_floats_is_not_rounded():
    assert luma(np.array([[[255.0, 0, 0]]])) == pytest.approx(81.481)
    red = np.full((20, 20, 3), (255, 0, 0), np.uint8)
    black = np.zeros_like(red)
    assert psnr(red, black, "Y") == pytest.approx(20 * math.log10(255 / (81 - 16)), abs=1e-12)
    assert psnr(red, black, "DID/DDN") == pytest.approx(20 * math.log10(255 / 65.481), abs=1e-12)


def test_what_is_no_pair_is_refused(pair):
    noisy, clean = pair
    assert "derained image is 83x60, the clean one 82x60" in refusal(psnr, noisy, clean[:, :-1])
    assert "no protocol is called 'rgb'" in refusal(ssim, noisy, clean, "rgb")
    assert "derained image is uint8, the clean one float64" in refusal(psnr, noisy, clean / 255)
    for protocol in ("Y", "DID/DDN"):
        assert "its window is 11x11" in refusal(ssim, noisy[:10], clean[:10], protocol)
    assert 0 < ssim(noisy[:1, :1], clean[:1, :1]) <= 1


# astronaut, which is clipped in places: 3.065 where rounding noise is counted
@pytest.mark.parametrize(("name", "value"), [("astronaut", 3.062), ("coffee", 4.115), ("chelsea", 2.626)])
def test_niqe_gives_the_check_values(name, value):
    assert niqe(getattr(data, name)()) == pytest.approx(value, abs=0.001)


@pytest.fixture
def clipped() -> np.ndarray:
    """A photograph of which a third is white and a column of blocks is flat."""
    image = data.astronaut().copy()
    image[image > 170] = 255
    image[:, :120] = 128
    return image


def test_niqe_counts_no_rounding_noise_where_areas_are_flat(clipped, monkeypatch):
    """One two-dimensional filter rounds differently: the score must not depend on it."""

    def in_two_dimensions(image, _, columns, rows, anchor=(-1, -1), borderType=None):
        return cv2.filter2D(image, cv2.CV_64F, np.outer(rows, columns), anchor=anchor, borderType=borderType)

    ours = niqe(clipped)
    monkeypatch.setattr(cv2, "sepFilter2D", in_two_dimensions)
    assert niqe(clipped) == pytest.approx(ours, abs=1e-3)


def test_niqe_takes_its_mean_over_all_blocks_that_have_a_feature(clipped, monkeypatch):
    """As LIVE's nanmean: a block whose shape is undefined at one scale still counts at the other."""
    mean_of = Mock(wraps=np.nanmean)
    monkeypatch.setattr(np, "nanmean", mean_of)
    niqe(clipped)
    features = mean_of.call_args.args[0]
    assert len(features) == 25 and 0 < np.isnan(features).any(axis=1).sum() < 25


def test_niqe_leaves_out_what_fills_no_block_and_says_what_it_cannot_score():
    image = data.chelsea()
    assert niqe(image) == niqe(image[: 3 * 96, : 4 * 96])
    assert "150x96 pixels are too few for NIQE: it needs two blocks" in refusal(niqe, image[:96, :150])
    assert "any texture" in refusal(niqe, np.full((200, 200, 3), 128, np.uint8))


def test_every_metric_of_the_table_scores_what_it_says(pair):
    noisy, clean = (np.tile(image, (4, 3, 1)) for image in pair)  # large enough for NIQE
    for key, metric in METRICS.items():
        assert key == metric.key and (metric.protocol in PROTOCOLS or not metric.against)
        of_rainy, of_itself = metric(noisy, clean), metric(clean, clean)
        if metric.sign:
            assert metric.sign * (of_itself - of_rainy) > 0  # the clean image is better
        assert metric.title in metric.name and len(metric.text(0.5).split(".")[1]) == metric.digits
    assert METRICS["brightness"](clean - clean // 2, clean) == pytest.approx(-(clean // 2).mean())
    assert METRICS["psnr_input"](noisy, clean) == psnr(noisy, clean)
    assert {metric.title for metric in HEADLINE_METRICS} == {"PSNR", "SSIM", "NIQE"}


def test_rainy_images_beside_the_clean_ones_are_not_taken_for_clean(tmp_path, pair):
    for name in ("rain-001.png", "norain-001.png"):
        write_image(tmp_path / name, pair[0])
    assert [path.name for path in folders.clean_images(tmp_path)] == ["norain-001.png"]


# ------------------------------------------------------------------------------------------ the scripts


@pytest.fixture
def results(tmp_path, pair) -> Path:
    """derained/ and clean/ (in the manner of Rain200H) with three pairs, the third one identical."""
    noisy, clean = pair
    for k, image in enumerate((noisy, noisy[::-1].copy(), clean), start=1):
        write_image(tmp_path / f"derained/norain-{k}x2.png", image)
        write_image(tmp_path / f"clean/norain-{k}.png", clean)
    return tmp_path


@pytest.fixture
def call(results, monkeypatch):
    """Scores the results by a metric's script; `derained` and `clean` name other folders."""

    def call(title: str, *options: str, derained: str = "derained", clean: str = "clean") -> None:
        words = ["--res_path", results / derained, "--gt_path", results / clean, *options]
        monkeypatch.setattr(sys, "argv", ["score", *map(str, words)])
        folders.main(title.lower(), "")

    return call


def test_a_folder_is_scored_with_its_average(pair, call, capsys):
    call("PSNR", "--protocol", "Y")
    lines = capsys.readouterr().out.splitlines()
    expected = [psnr(pair[0], pair[1], "Y"), psnr(pair[0][::-1], pair[1], "Y")]
    assert lines[0] == f"norain-1x2.png  {expected[0]:.3f}"
    assert lines[2] == "norain-3x2.png  inf"
    assert lines[3].startswith(f"average PSNR (Y) of 3 images: {np.mean(expected):.3f}; 1 identical")
    call("PSNR", derained="clean")
    assert "average PSNR (RGB) of 3 images: inf; 3 identical" in capsys.readouterr().out


def test_images_without_a_partner_are_listed_and_the_rest_scored(results, pair, call, capsys):
    write_image(results / "derained/extra-77.png", pair[0])
    write_image(results / "clean/norain-5.png", pair[0])
    call("SSIM")
    out, err = capsys.readouterr()
    assert f"norain-1x2.png  {ssim(*pair):.4f}" in out and "norain-3x2.png  1.0000" in out
    assert "of 3 images" in out
    assert "not scored, derained images that match no other (1): extra-77.png" in err
    assert "not scored, images without a derained one (1): norain-5.png" in err


def test_results_numbered_from_0_against_images_from_1_are_refused(results, pair, call):
    for number in (0, 1, 2):
        write_image(results / f"shifted/{number}.png", pair[0])
    for derained, clean in (("shifted", "clean"), ("clean", "shifted")):
        said = refusal(call, "PSNR", derained=derained, clean=clean)
        assert "shifted/0.png" in said and "left over at opposite ends of the numbering" in said


def test_bad_folders_and_files_are_one_line_that_names_them(results, pair, call, capsys):
    (results / "empty").mkdir()
    for side in ("derained", "clean"):
        for place, says in (("empty", "empty contains no images"), ("nowhere", "nowhere is not a folder")):
            assert says in refusal(call, "PSNR", **{side: place})
    write_image(results / "empty/other.png", pair[0])
    assert f"no image of {results}/derained" in refusal(call, "PSNR", clean="empty")
    write_image(results / "clean/norain-2.png", pair[1][:, 1:])
    broken = results / "derained/norain-2x2.png"
    assert f"{broken} cannot be scored: the derained image is 83x60" in refusal(call, "PSNR")
    broken.write_bytes(b"no image")
    assert f"{broken} cannot be scored: {broken} is not an image" in refusal(call, "SSIM")
    assert capsys.readouterr().out.count("norain-1x2.png  ") == 2  # scored before, and printed


def test_niqes_script_runs_from_its_own_folder_and_ends_at_an_image_that_is_too_small(tmp_path, pair):
    write_image(tmp_path / "1.png", data.chelsea())
    write_image(tmp_path / "2.png", pair[0])
    words = [sys.executable, "niqe.py", "--res_path", tmp_path]
    done = subprocess.run(words, cwd=ROOT / "metrix_code", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, f"1.png  {niqe(data.chelsea()):.4f}\n")
    assert f"{tmp_path}/2.png cannot be scored: 83x60 pixels are too few for NIQE" in done.stderr
    assert done.stderr.count("\n") == 1


# ---------------------------------------------------------------------------------- scores and tables


IMAGE: dict[str, Any] = {"psnr": 20.0, "ssim": 0.5}


def scored(folder: Path, dataset: str, method: str, images: list[dict], **more) -> dict:
    images = [{"name": str(k), "file": f"{k}.png", **image} for k, image in enumerate(images)]
    scores = {"dataset": dataset, "method": method, "simulated": False, "checkpoint": "net_latest"}
    scores |= {"checkpoint_step": 7, "images_expected": None, "images_found": len(images)}
    scores |= {"images": images, "mean": average(images), **more}
    write_scores(folder, scores)
    return scores


def test_scores_come_back_as_written_in_strict_json(tmp_path):
    scores = scored(tmp_path, "Rain200H", "SID", [{"psnr": math.inf}, {"psnr": 30.0}])
    assert read_scores(tmp_path / SCORES) == scores
    assert scores["mean"]["psnr"] == 30 and scores["mean"]["infinite"] == {"psnr": 1}
    json.loads((tmp_path / SCORES).read_text(), parse_constant=pytest.fail)  # given where it is no JSON


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"dataset": 3}', "\x00", "\udcff", "null"])
def test_broken_scores_are_named(tmp_path, capsys, text):
    (tmp_path / "scores.json").write_text(text, errors="surrogateescape")
    assert f"{tmp_path}/scores.json cannot be read as scores" in refusal(read_scores, tmp_path / SCORES)
    assert not any(tables.gather(tmp_path)) and "skipped: " in capsys.readouterr().err


def texts(table: tables.Table) -> dict[str, list[str]]:
    """By method, protocol and all; the last where there are several."""
    return {f"{row[0]}, {row[1]}": row[2:] for row in table.rows()}


def test_the_rows_of_others_alone_have_blanks_and_nothing_measured(tmp_path, capsys):
    quality, quality_of_real = tables.tables(tmp_path)
    assert "nothing measured" in capsys.readouterr().err
    rows = texts(quality)
    assert quality.datasets == ["Rain200H", "Rain200L", "Rain800", "Rain1200", "Rain1400", "SPA"]
    assert rows["SSID-KD, published, RGB"][:3] == ["28.925 / 0.9079", "38.778 / 0.9864", ""]
    assert rows["PReNet, reproduced, RGB"][:3] == ["28.01 / 0.891", "36.92 / 0.981", "25.18 / 0.850"]
    assert rows["PMG, reproduced, RGB"][3] == ""
    assert texts(quality_of_real)["SSID-KD, published, tool not known"] == ["7.0006", "3.4739"]
    printed = tables.as_text(quality, "plain") + tables.as_text(quality_of_real, "plain")
    assert "measured, " not in printed and "3.66" in printed
    assert "Derain-toolbox d73d865" in printed and "SSID-KD README" in printed
    assert {cell.kind for cell in tables.tables(tmp_path, ["reproduced"])[0].cells} == {"reproduced"}


def test_published_and_reproduced_cells_each_have_a_source_and_are_not_the_same():
    published, reproduced = map(tables.from_others, ("published", "reproduced"))
    assert (len(published), len(reproduced)) == (51, 146)
    assert all(cell.source and cell.protocol for cell in (*published, *reproduced))
    assert {cell.dataset for cell in published if "psnr" in cell.scores}.isdisjoint({"Rain800"})
    assert {cell.source.split(",")[0] for cell in reproduced} == {"Derain-toolbox d73d865"}


def test_measured_rows_say_their_protocol_and_how_many_images(tmp_path):
    image = IMAGE | {"psnr_y": 21.0, "ssim_y": 0.6, "psnr_did": 21.5, "ssim_did": 0.7}
    image |= {"rainy_psnr": 12.0, "rainy_ssim": 0.3, "rainy_psnr_did": 13.0, "rainy_ssim_did": 0.4}
    scored(tmp_path / "a", "Rain200H", "SID", [image] * 5, images_expected=200)
    scored(tmp_path / "b", "Rain200H", "SSID-KD", [image | {"psnr": 22.0}] * 5, images_expected=200)
    of_real = [{"niqe": 3.5, "rainy_niqe": 3.6}] * 275
    scored(tmp_path / "c", "Real275", "SSID-KD", of_real, images_expected=275)
    quality, quality_of_real = tables.tables(tmp_path, ["measured"])
    assert [(*row[:2], row[2].split("\n")[0]) for row in quality.rows()] == [
        ("SID (ours)", "measured, RGB", "20.000 / 0.5000"),
        ("SID (ours)", "measured, Y", "21.000 / 0.6000"),
        ("SID (ours)", "measured, DID/DDN", "21.500 / 0.7000"),
        ("rainy input", "measured, RGB", "12.000 / 0.3000"),
        ("rainy input", "measured, DID/DDN", "13.000 / 0.4000"),
        ("SSID-KD (ours)", "measured, RGB", "22.000 / 0.5000"),
        ("SSID-KD (ours)", "measured, Y", "21.000 / 0.6000"),
        ("SSID-KD (ours)", "measured, DID/DDN", "21.500 / 0.7000"),
    ]
    assert {row[2].split("\n")[1] for row in quality.rows()} == {"5 of 200 images"}
    assert all(row[3:] == [""] * 5 for row in quality.rows())
    assert ["SSID-KD (ours)", "measured, LIVE, Y", "", "3.5000\n275 images"] in quality_of_real.rows()


def test_simulated_rain_is_never_among_the_benchmarks(tmp_path):
    made = {"simulated": True, "data_path": "datasets/Made200H", "images_expected": 200}
    scored(tmp_path, "Rain200H", "SID", [{"psnr": 77.0, "ssim": 0.9, "niqe": 4.0}], **made)
    *benchmarks, apart, apart_niqe = found = tables.tables(tmp_path)
    assert ["SIMULATED" in table.title for table in found] == [False, False, True, True]
    of_benchmarks = [cell for table in benchmarks for row in table.rows() for cell in row]
    assert not any("77.000" in cell or "4.0000" in cell for cell in of_benchmarks)
    for table, protocol, text in ((apart, "RGB", "77.000 / 0.9000"), (apart_niqe, "LIVE, Y", "4.0000")):
        row = ["SID (ours)", f"measured, {protocol}", f"{text}\n1 images"]
        assert (table.datasets, table.rows()) == (["Made200H"], [row])


def test_a_set_that_was_trained_on_is_marked_and_the_rainy_input_is_not(tmp_path):
    image = {"niqe": 3.4, "rainy_niqe": 3.6}
    scored(tmp_path, "Real275", "SSID-KD", [image], seen="--real_path held Real275")
    table = tables.tables(tmp_path)[1]
    rows = texts(table)
    assert rows["SSID-KD (ours), measured, LIVE, Y"][1] == "3.4000\n1 images\nTRAINED ON"
    assert rows["rainy input, measured, LIVE, Y"][1] == "3.6000\n1 images"
    assert "TRAINED ON: --real_path held Real275" in tables.as_text(table, "plain")


def test_a_self_ensemble_a_foreign_method_and_a_second_evaluation_have_rows_of_their_own(tmp_path):
    scored(tmp_path / "a", "Rain200H", "SID", [IMAGE])
    scored(tmp_path / "b", "Rain200H", "SID", [IMAGE], self_ensemble=True)
    scored(tmp_path / "c", "Rain200H", "Restormer", [IMAGE], checkpoint=None)
    authors = {"released": True, "dataset": "unknown"}
    scored(tmp_path / "d", "Rain200H", "SID", [IMAGE], trained_on=authors, precision="bfloat16", tile=256)
    scored(tmp_path / "e", "Rain200H", "SID", [IMAGE | {"psnr": 21.0}])
    (table,) = tables.tables(tmp_path, ["measured"])
    rows = [row[0] for row in table.rows()]
    assert rows == ["SID (ours)", "SID (ours) + self-ensemble", "Restormer", "SID (released)", "SID (ours)"]
    assert [row[2][:6] for row in table.rows()] == ["20.000"] * 4 + ["21.000"]
    assert "at step 7, training unknown, bfloat16, tiles of 256" in tables.as_text(table, "plain")


def test_markdown_and_latex_escape_what_they_must(tmp_path):
    images = [IMAGE, IMAGE | {"ssim": None}]  # of a pair of scores, the one with fewer images is counted
    scored(tmp_path, "My_set & 5 %", "a|b <c>", images, checkpoint=None, images_found=4)
    table = tables.tables(tmp_path)[0]
    rows = [line for line in tables.as_text(table, "latex").splitlines() if line.endswith(r"\\")]
    assert all(row.count(" & ") == 8 for row in rows) and len(rows) == len(table.rows()) + 1
    assert r"My\_set \& 5 \%" in rows[0] and r"20.000 / 0.5000; 1 of 4 images" in rows[-1]
    row = next(line for line in tables.as_text(table, "markdown").splitlines() if "20.000" in line)
    assert row.startswith(r"| a\|b &lt;c> ") and row.count(" | ") == 8


def test_of_one_model_the_fullest_evaluation_is_shown_once(tmp_path):
    more = [IMAGE | {"psnr": 21.0}] * 3
    for folder, images, step in (("a", [IMAGE], 7), ("b", more, 7), ("c", more, 7), ("d", [IMAGE], 8)):
        scored(tmp_path / folder, "Rain200H", "SID", images, images_expected=3, checkpoint_step=step)
    (table,) = tables.tables(tmp_path, ["measured"])
    assert [row[2] for row in table.rows()] == ["21.000 / 0.5000\n3 images", "20.000 / 0.5000\n1 of 3 images"]


def test_one_protocol_is_shown_unless_all_are_asked_for(tmp_path, run_here, capsys):
    scored(tmp_path / "a", "Rain200H", "SID", [IMAGE | {"psnr_y": 33.0, "ssim_y": 0.6, "niqe": 3.0}])
    for words, expected in (((), (1, 0)), (("--protocol", "Y"), (0, 1)), (("--protocol", "all"), (1, 1))):
        words = ("--results", str(tmp_path), "--kinds", "measured", *words)
        assert run_here("metrix_code/tables.py", *words) == 0
        out = capsys.readouterr().out
        assert (out.count("20.000"), out.count("33.000")) == expected and "3.0000" in out


def test_a_csv_labels_every_cell_and_no_text_of_it_is_a_formula(tmp_path, run_here, capsys):
    scored(tmp_path, "Rain200H", "=1+1", [IMAGE], checkpoint=None)
    assert run_here("metrix_code/tables.py", "--results", str(tmp_path), "--format", "csv") == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert {row["kind"] for row in rows} == set(tables.KINDS)
    assert all(row["protocol"] and row["source"] for row in rows)
    ours = next(row for row in rows if row["kind"] == "measured")
    assert [ours[key] for key in ("dataset", "method", "psnr", "niqe")] == ["Rain200H", "'=1+1", "20.000", ""]
