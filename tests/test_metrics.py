"""The metrics against scikit-image, against direct formulas and against known values; folders; tables."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import correlate
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from metrix_code import folders, tables
from metrix_code.niqe import niqe
from metrix_code.protocol import luma
from metrix_code.psnr import psnr
from metrix_code.scores import METRICS, average, mean, read_scores, write_scores
from metrix_code.ssim import ssim
from utils import UserError, write_image

ROOT = Path(__file__).parents[1]


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """A noisy photograph and the photograph: (60, 83, 3), odd on purpose."""
    clean = data.astronaut()[100:160, 180:263]
    noise = np.random.default_rng(0).normal(0, 20, clean.shape)
    return np.clip(clean + noise, 0, 255).astype(np.uint8), clean


# --------------------------------------------------------------------------------------- the functions


def test_psnr_is_scikit_images(pair):
    noisy, clean = pair
    assert psnr(noisy, clean) == pytest.approx(
        peak_signal_noise_ratio(clean, noisy, data_range=255), abs=1e-12
    )
    on_y = peak_signal_noise_ratio(luma(clean), luma(noisy), data_range=255)
    assert psnr(noisy, clean, "Y") == pytest.approx(on_y, abs=1e-12)


def test_ssim_on_y_is_scikit_images_valid_one(pair):
    noisy, clean = pair
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    assert ssim(noisy, clean, "Y") == pytest.approx(
        structural_similarity(luma(noisy), luma(clean), **options), abs=1e-12
    )


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


def test_padding_and_valid_are_not_the_same_number(pair):
    grey = [np.repeat(image[..., :1], 3, axis=2) for image in pair]
    assert abs(ssim(grey[0], grey[1]) - ssim(grey[0], grey[1], "Y")) > 1e-3


@pytest.mark.parametrize("protocol", ["RGB", "Y"])
def test_identical_images(pair, protocol):
    clean = pair[1]
    assert psnr(clean, clean, protocol) == math.inf
    assert ssim(clean, clean, protocol) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_floats_in_unit_range_score_as_their_bytes_do(pair, metric):
    floats = [image.astype(np.float32) / np.float32(255) for image in pair]
    assert metric(*floats, peak=1.0) == pytest.approx(metric(*pair), abs=1e-5)
    # not rounded to whole numbers, so close and no more
    assert metric(*floats, "Y", peak=1.0) == pytest.approx(metric(*pair, "Y"), abs=0.02)


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


def test_luma_of_floats_is_not_rounded():
    assert luma(np.array([[[1.0, 0, 0]]]), peak=1.0) == pytest.approx(81.481)


def test_what_is_no_pair_is_refused(pair):
    noisy, clean = pair
    with pytest.raises(UserError, match=r"83x60.*82x60"):
        psnr(noisy, clean[:, :-1])
    with pytest.raises(UserError, match="protocol"):
        ssim(noisy, clean, "rgb")
    with pytest.raises(UserError, match="uint8"):
        psnr(noisy, clean / 255)
    with pytest.raises(UserError, match="11x11"):
        ssim(noisy[:10], clean[:10], "Y")
    assert 0 < ssim(noisy[:1, :1], clean[:1, :1]) <= 1


@pytest.mark.parametrize(("name", "value"), [("astronaut", 3.065), ("coffee", 4.115), ("chelsea", 2.626)])
def test_niqe_gives_the_check_values(name, value):
    assert niqe(getattr(data, name)()) == pytest.approx(value, abs=0.001)


def test_niqe_leaves_out_what_fills_no_block():
    image = data.chelsea()
    assert niqe(image) == niqe(image[: 3 * 96, : 4 * 96])


def test_niqe_says_what_it_cannot_score():
    with pytest.raises(UserError, match=r"150x96.*two blocks"):
        niqe(data.astronaut()[:96, :150])
    with pytest.raises(UserError, match="texture"):
        niqe(np.full((200, 200, 3), 128, np.uint8))


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


def call(monkeypatch, label, metric, *options, **more) -> None:
    monkeypatch.setattr(sys, "argv", ["score", *map(str, options)])
    folders.main(label, metric, digits=4, about="", **more)


def test_a_folder_is_scored_with_average_and_csv(results, pair, monkeypatch, capsys):
    paths = ("--res_path", results / "derained", "--gt_path", results / "clean")
    call(
        monkeypatch, "PSNR", psnr, *paths, "--protocol", "Y", "--csv", results / "scores.csv", "--workers", 2
    )
    lines = capsys.readouterr().out.splitlines()
    expected = [psnr(pair[0], pair[1], "Y"), psnr(pair[0][::-1], pair[1], "Y")]
    assert lines[0] == f"norain-1x2.png  {expected[0]:.4f}"
    assert lines[2] == "norain-3x2.png  inf"
    assert f"(Y) of 2 images: {np.mean(expected):.4f}; 1 of 3 identical" in lines[3]
    with (results / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["psnr"]) for row in rows] == [*expected, math.inf]
    assert {row["protocol"] for row in rows} == {"Y"}


def test_images_without_a_partner_are_listed_and_the_rest_scored(results, pair, monkeypatch, capsys):
    write_image(results / "derained/extra-77.png", pair[0])
    write_image(results / "clean/norain-5.png", pair[0])
    call(monkeypatch, "SSIM", ssim, "--res_path", results / "derained", "--gt_path", results / "clean")
    out, err = capsys.readouterr()
    assert "of 3 images" in out
    assert "derained images without a clean one, not scored (1): extra-77.png" in err
    assert "clean images not derained, not scored (1): norain-5.png" in err


@pytest.mark.parametrize("half", ["left", "right"])
def test_the_clean_side_may_be_half_of_a_file(results, pair, monkeypatch, capsys, half):
    noisy, clean = pair
    halves = (clean, noisy) if half == "left" else (noisy, clean)
    write_image(results / "both/1.png", np.hstack(halves))
    paths = ("--res_path", results / "derained", "--gt_path", results / "both")
    with pytest.raises(UserError, match=r"both/1.png is twice as wide .*--gt_half"):
        call(monkeypatch, "PSNR", psnr, *paths)
    call(monkeypatch, "PSNR", psnr, *paths, "--gt_half", half)
    assert f"{psnr(noisy, clean):.4f}" in capsys.readouterr().out
    with pytest.raises(UserError, match="not twice as wide"):
        call(monkeypatch, "PSNR", psnr, *paths[:3], results / "clean", "--gt_half", half)


def test_bad_folders_and_files_are_one_line_that_names_them(results, pair, monkeypatch):
    derained, clean, empty = results / "derained", results / "clean", results / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="empty holds no images"):
        call(monkeypatch, "PSNR", psnr, "--res_path", empty, "--gt_path", clean)
    with pytest.raises(UserError, match="empty holds no images"):
        call(monkeypatch, "PSNR", psnr, "--res_path", derained, "--gt_path", empty)
    write_image(empty / "other.png", pair[0])
    with pytest.raises(UserError, match=r"no image of .*derained"):
        call(monkeypatch, "PSNR", psnr, "--res_path", derained, "--gt_path", empty)
    with pytest.raises(UserError, match=r"norain-1x2.png: 83x60 pixels are too few for NIQE"):
        call(monkeypatch, "NIQE", niqe, "--res_path", derained, paired=False)
    write_image(clean / "norain-2.png", pair[1][:, 1:])
    with pytest.raises(UserError, match=r"norain-2x2.png with .*norain-2.png: .*82x60"):
        call(monkeypatch, "PSNR", psnr, "--res_path", derained, "--gt_path", clean)


@pytest.mark.parametrize(
    ("folder", "script"), [(ROOT, "metrix_code/ssim.py"), (ROOT / "metrix_code", "ssim.py")]
)
def test_the_script_runs_from_the_root_and_from_its_own_folder(results, pair, folder, script):
    paths = ["--res_path", str(results / "derained"), "--gt_path", str(results / "clean")]
    done = subprocess.run([sys.executable, script, *paths], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"norain-1x2.png  {ssim(*pair):.4f}" in done.stdout
    assert "norain-3x2.png  1.0000" in done.stdout


def test_a_script_says_in_one_line_what_is_wrong(tmp_path):
    line = [sys.executable, "metrix_code/niqe.py", "--res_path", str(tmp_path / "nowhere")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "nowhere is not a folder" in done.stderr


# ---------------------------------------------------------------------------------- scores and tables


def scored(folder: Path, dataset: str, method: str, images: list[dict], **more) -> dict:
    images = [
        {"name": str(k), "file": f"{k}.png", **dict.fromkeys(METRICS), **i} for k, i in enumerate(images)
    ]
    scores = {
        "dataset": dataset,
        "method": method,
        "protocol": "RGB",
        "simulated": False,
        "images_expected": None,
    }
    scores |= {"images": images, "mean": average(images), **more}
    write_scores(folder, scores)
    return scores


def test_mean_counts_the_infinite():
    assert mean([20.0, 30.0, math.inf, None]) == (25.0, 1)
    assert mean([math.inf, math.inf]) == (math.inf, 2)
    assert mean([None]) == (None, 0)


def test_scores_come_back_as_written_in_strict_json(tmp_path):
    scores = scored(tmp_path, "Rain200H", "SID", [{"psnr": math.inf}, {"psnr": 30.0}])
    assert read_scores(tmp_path / "scores.json") == scores
    assert scores["mean"]["psnr"] == 30 and scores["mean"]["infinite"] == {"psnr": 1}

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    json.loads((tmp_path / "scores.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"dataset": 3}', "\x00"])
def test_broken_scores_are_named(tmp_path, text):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(UserError, match=r"scores\.json"):
        read_scores(tmp_path / "scores.json")


def test_the_published_rows_alone_have_blanks_and_nothing_measured(tmp_path, capsys):
    quality, quality_of_real = tables.tables(tmp_path)
    assert "nothing measured" in capsys.readouterr().err
    rows = {row[0]: row[1:] for row in quality.rows()}
    assert rows["method"] == ["Rain200H", "Rain200L", "Rain800", "Rain1200", "Rain1400", "SPA"]
    assert rows["SSID-KD"][0] == "28.925 / 0.9079\npublished, RGB"
    assert rows["SSID-KD"][2] == ""
    assert rows["RESCAN"] == ["", "", "26.42 / 0.838\npublished, RGB", "", "", ""]
    niqe_rows = {row[0]: row[1:] for row in quality_of_real.rows()}
    assert niqe_rows["SSID-KD"] == ["7.0006\npublished, Y", "3.4739\npublished, Y"]
    assert "measured, " not in tables.as_plain(quality) + tables.as_plain(quality_of_real)
    assert "3.66" in tables.as_plain(quality_of_real)
    assert "not known" in tables.as_plain(quality_of_real)


def test_measured_rows_say_so_and_how_many_images(tmp_path):
    image = {"psnr": 20.0, "ssim": 0.5, "psnr_y": 21.0, "ssim_y": 0.6, "rainy_psnr": 12.0, "rainy_ssim": 0.3}
    scored(tmp_path / "a", "Rain200H", "SID", [image] * 5, images_expected=200)
    scored(tmp_path / "b", "Rain200H", "SSID-KD", [image | {"psnr": 22.0}] * 5, images_expected=200)
    scored(
        tmp_path / "c", "Real275", "SSID-KD", [{"niqe": 3.5, "rainy_niqe": 3.6}] * 275, images_expected=275
    )
    quality, quality_of_real = tables.tables(tmp_path)
    rows = [row for row in quality.rows() if "ours" in row[0] or row[0] == "rainy input"]
    assert [(row[0], row[1]) for row in rows] == [
        ("SID (ours)", "20.000 / 0.5000\nmeasured, RGB\n5 of 200 images"),
        ("SID (ours)", "21.000 / 0.6000\nmeasured, Y\n5 of 200 images"),
        ("rainy input", "12.000 / 0.3000\nmeasured, RGB\n5 of 200 images"),
        ("SSID-KD (ours)", "22.000 / 0.5000\nmeasured, RGB\n5 of 200 images"),
        ("SSID-KD (ours)", "21.000 / 0.6000\nmeasured, Y\n5 of 200 images"),
    ]
    assert all(row[2:] == [""] * 5 for row in rows)
    assert ["SSID-KD (ours)", "", "3.5000\nmeasured, Y\n275 images"] in quality_of_real.rows()


def test_simulated_rain_is_never_among_the_benchmarks(tmp_path):
    made = {"simulated": True, "data_path": "datasets/Made200H", "images_expected": 200}
    scored(tmp_path, "Rain200H", "SID", [{"psnr": 77.0, "ssim": 0.9, "niqe": 4.0}], **made)
    quality, quality_of_real, apart, apart_niqe = (table.rows() for table in tables.tables(tmp_path))
    assert not any("77.000" in cell or "4.0000" in cell for row in quality + quality_of_real for cell in row)
    assert apart == [["method", "Made200H"], ["SID (ours)", "77.000 / 0.9000\nmeasured, RGB\n1 images"]]
    assert apart_niqe == [["method", "Made200H"], ["SID (ours)", "4.0000\nmeasured, Y\n1 images"]]
    titles = [table.title for table in tables.tables(tmp_path)]
    assert ["SIMULATED" in title for title in titles] == [False, False, True, True]


def test_what_a_mean_leaves_out_is_shown(tmp_path):
    scored(tmp_path, "Rain12", "SID", [{"psnr": math.inf, "ssim": 1.0}, {"psnr": 30.0, "ssim": 0.9}])
    quality = tables.tables(tmp_path)[0]
    assert quality.rows()[-1][-1] == "30.000 / 0.9500\nmeasured, RGB\n2 images, 1 infinite"
    assert quality.rows()[0][-1] == "Rain12"


def test_two_evaluations_of_one_method_both_stay(tmp_path):
    for folder, value in (("a", 20.0), ("b", 21.0)):
        scored(tmp_path / folder, "Rain200H", "SID", [{"psnr": value, "ssim": 0.5}])
    cells = [row[1].split(" ")[0] for row in tables.tables(tmp_path)[0].rows() if row[0] == "SID (ours)"]
    assert cells == ["20.000", "21.000"]


def test_a_broken_file_is_passed_over_and_the_csv_labels_every_cell(tmp_path, monkeypatch, capsys):
    scored(tmp_path / "good", "Rain200H", "SID", [{"psnr": 20.0, "ssim": 0.5}])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/scores.json").write_text("{")
    monkeypatch.setattr(sys, "argv", ["tables.py", "--results", str(tmp_path), "--format", "csv"])
    tables.main()
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(out.splitlines()))
    assert err.startswith("passed over: ") and "bad/scores.json" in err
    assert len(rows) == len(tables.published()) + 1
    assert {row["kind"] for row in rows} == {"published", "measured"}
    assert all(row["protocol"] and row["source"] for row in rows)
    ours = next(row for row in rows if row["kind"] == "measured")
    assert (ours["dataset"], ours["psnr"], ours["niqe"]) == ("Rain200H", "20.000", "")
