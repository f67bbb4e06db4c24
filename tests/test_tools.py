"""The scripts beside training and evaluation: the study, the small checkpoint, the contact sheet."""

import json
import re
from typing import Any

import numpy as np
import pytest
import torch

from engine import Run
from machinery.checkpoints import load_checkpoint
from networks import Derained
from tests import layouts, small
from tests.small import SMALL, arguments
from tools import changes, study
from tools.adaptation import Adapted, Adapting, over_turns, statistics_gap
from tools.contact_sheet import CAPTION, GAP
from utils import read_image, write_image


def test_a_study_tells_every_variation_by_scores_and_differences(tmp_path, run_here, capsys):
    small.trained(small.teacher(tmp_path, steps=1))
    layouts.real_images(tmp_path / "real")
    layouts.rain200(tmp_path / "target")
    places = {"teacher": "teacher", "data_path": "data", "real_path": "real", "labelled": "target"}
    places |= {"save_path": "study", "tests": "data"}
    given = {**SMALL, "steps": 1, "seeds": (0,), **{name: tmp_path / at for name, at in places.items()}}
    both, turned = "mean teacher and streaks", "turned views at 10 %"
    some = (study.BASE, "KL at 10 %", both, turned, "KL alone", study.LABELLED)
    words = [*arguments(given), "--variations", *some]
    assert run_here("tools/study.py", *words) == 0
    text = (tmp_path / "study/study.md").read_text()
    scores, differences = text.split("Differences")
    assert set(some) < set(study.VARIATIONS)
    for name in some:
        assert scores.count(f"| {name} |") == 1
        assert differences.count(f"| {name} |") == (name != "no real terms")

    def recipe(name):
        return load_checkpoint(tmp_path / "study" / name / "0/net_latest")["recipe"]

    # the weights do what their names say: KL alone follows no clean image, and KL at a tenth is a tenth
    assert recipe("KL_alone")["l1_weight"] == recipe("KL_alone")["tv_real_weight"] == 0
    assert recipe("target_with_labels")["data_path"] == [str(tmp_path / "data"), str(tmp_path / "target")]
    terms = {"kl": "KL at 10 %", "consistency": both, "transplant": both, "turned": turned}
    for term, variation in terms.items():
        name = variation.replace(" ", "_").replace("%", "percent")
        first = json.loads((tmp_path / "study" / name / "0/log.jsonl").read_text().splitlines()[0])
        share = recipe(name)[f"{term}_weight"] * first[f"loss/{term}"] / first["loss/total"]
        assert 0.02 < share < 0.5  # on one batch, near what it is on average

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "study").rglob("net_latest")}
    assert len(before) == 1 + len(some)  # and the run that measures the shares
    capsys.readouterr()
    assert run_here("tools/study.py", *words) == 0  # all is done already
    assert capsys.readouterr().out.endswith(text + "\n")
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_what_a_student_may_learn_besides_from_real_rain(tmp_path):
    small.trained(small.teacher(tmp_path, steps=1))
    new = ("align", "consistency", "turned", "transplant")
    weights = {f"{term}_weight": 1.0 for term in new}
    recipe = Adapting(**{**vars(small.student(tmp_path, steps=1)), **weights})
    run = Run(Adapted, recipe, small.ALONE)
    (batch,) = next(iter(run.batches))
    terms = run.stage.terms(run.state.net, batch)
    first = run.state.net.net.head1.weight
    for term in new:
        assert 0 < terms[term] < 1
        assert torch.autograd.grad(terms[term], first, retain_graph=True)[0].any()
    assert set(run.stage.aux_networks) == {"teacher", "frozen"}
    with torch.no_grad():
        target = over_turns(run.stage.aux_networks["frozen"], batch["real_rainy"])
        derained = run.state.net(batch["real_rainy"]).derained
    torch.testing.assert_close(terms["turned"], (derained - target).abs().mean())
    code = torch.rand(2, 3, 4, 4)
    assert statistics_gap(code, code) == 0 and statistics_gap(code, code + 1) == pytest.approx(1)
    centred = code - code.mean((0, 2, 3), keepdim=True)  # then the deviations alone can differ
    deviations = float(centred.std((0, 2, 3)).mean())
    assert statistics_gap(centred, 3 * centred) == pytest.approx(2 * deviations, rel=1e-4)
    off = Run(Adapted, Adapting(**vars(small.student(tmp_path, steps=1))), small.ALONE)
    terms = off.stage.terms(off.state.net, batch)
    assert terms["consistency"] == terms["turned"] == terms["transplant"] == 0  # nor computed


def test_what_one_of_four_turned_views_alone_would_take_is_quartered():
    def takes_from_level_stripes(view):
        level = view.diff(dim=2).abs().mean() > 2 * view.diff(dim=3).abs().mean()
        return Derained(view - 0.1 * level, view, view)

    net: Any = takes_from_level_stripes
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[:, :, ::4] = 0.5
    for lying in (stripes, stripes.mT):
        torch.testing.assert_close(over_turns(net, lying)[..., 32, 32], lying[..., 32, 32] - 0.025)
    always: Any = lambda view: Derained(view - 0.1, view, view)  # noqa: E731
    torch.testing.assert_close(over_turns(always, stripes), stripes - 0.1)  # in the corners too


def test_a_network_that_changes_nothing_agrees_with_its_teacher_in_any_view(tmp_path):
    """Both views must be turned and lit alike; and streaks that are none fall on the clean image."""

    class Keeps(torch.nn.Module):
        def __init__(self, share):
            super().__init__()
            self.share = share

        def forward(self, rainy):
            return Derained(self.share * rainy, rainy - self.share * rainy, rainy)

    batch = {name: torch.rand(2, 3, 16, 16) for name in ("rainy", "clean", "real_rainy")}
    weights = {"consistency_weight": 1.0, "transplant_weight": 1.0}
    stage = Adapted(Adapting(**{**vars(small.student(tmp_path)), **weights}))
    stage.aux_networks["teacher"] = Keeps(1)
    terms = stage.terms(Keeps(1), batch)
    assert terms["consistency"] == pytest.approx(0, abs=1e-7) and terms["transplant"] == 0
    seen = []

    def darkened(rainy):
        seen.append(rainy)
        return Derained(rainy - 0.1, 0 * rainy + 0.1, rainy)

    terms = stage.terms(darkened, batch)
    assert terms["consistency"] > 0.05
    view, light = seen[1].flip(3), torch.tensor([0.8, 1.2]).view(-1, 1, 1, 1)
    torch.testing.assert_close(view, batch["real_rainy"] * light)
    stage.aux_networks["teacher"], seen = Keeps(0.5), []
    stage.terms(darkened, batch)
    streaks = (batch["real_rainy"] / 2).mean(1, keepdim=True)
    torch.testing.assert_close(seen[2], (batch["clean"] + streaks).clamp(max=1))


def test_a_contact_sheet_has_a_column_a_folder_and_a_row_an_image(tmp_path, run_here):
    for column, value in (("rainy", 250), ("clean", 10)):
        for name in ("a", "b", f"extra-{value}"):
            write_image(tmp_path / column / f"{name}.png", np.full((20, 40, 3), value, np.uint8))
    folders = [f"{column}={tmp_path / column}" for column in ("rainy", "clean")]
    words = ("--out", str(tmp_path / "sheet.png"), "--height", "10")
    assert run_here("tools/contact_sheet.py", *folders, *words) == 0
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape == (CAPTION + 2 * 10 + GAP, 2 * 20 + GAP, 3)
    for top in (CAPTION, CAPTION + 10 + GAP):
        assert (sheet[top : top + 10, :20] == 250).all() and (sheet[top : top + 10, 20 + GAP :] == 10).all()
    assert run_here("tools/contact_sheet.py", "rainy", *words) == 2


@pytest.mark.parametrize(
    "script", ["tools/study.py", "export.py", "tools/contact_sheet.py", "demo.py", "derain.py"]
)
def test_help(script, run_here, capsys):
    assert run_here(script, "--help") == 0
    assert "--" in capsys.readouterr().out


def test_changes_tell_what_is_kept_of_images_and_how_they_darken(tmp_path, run_here, capsys):
    image = np.random.default_rng(0).integers(40, 200, (200, 220, 3), dtype=np.uint8)
    for by in (2, 4):
        darker: Any = lambda each, by=by: each - np.uint8(by)  # noqa: E731
        clean = image - np.uint8(3)
        to_input, brighter, to_clean, than_clean, before, after = changes.changes(darker, image, clean)
        assert to_input == pytest.approx(20 * np.log10(255 / by)) and brighter == pytest.approx(-by)
        assert to_clean == pytest.approx(20 * np.log10(255)) and than_clean == pytest.approx(3 - by)
        assert np.isnan(changes.changes(darker, image)[2:4]).all()
        assert before > 0 and after == pytest.approx(before, rel=0.05)
    told = changes.row("folder", [(42.11, -2.0, 30.0, 1.0, 3.0, 4.0), (36.09, -4.0, 31.0, -2.0, 5.0, 4.0)])
    assert told.endswith(
        " 39.10 dB, lowest 36.09 | -3.00, at most -4.00 | 30.50 dB; -0.50, lowest -2.00 | 4.000 to 4.000 |"
    )
    small.trained(small.teacher(tmp_path, steps=1))
    write_image(tmp_path / "photographs/1.png", image)
    write_image(tmp_path / "photographs/large.png", np.zeros((16, 300, 3), np.uint8))
    words = ("--logdir", str(tmp_path / "teacher"), "--images", str(tmp_path / "photographs"))
    assert run_here("tools/changes.py", *words, "--most", "250", "--use_GPU", "False") == 0
    assert "| photographs | 1 | " in capsys.readouterr().out
    assert run_here("tools/changes.py", *words, "--strength", "0", "--niqe", "False") == 0
    assert re.search(r"\| photographs \| 2 \| inf dB, .* \|  \|  \|\n", capsys.readouterr().out)
    assert run_here("tools/changes.py", *words[:2], "--pairs", str(tmp_path / "data")) == 0
    assert re.search(
        r"\| data \| \d .* \| [\d.]+ dB; [+-][\d.]+, lowest [+-][\d.]+ \| .* \|", capsys.readouterr().out
    )
    assert run_here("tools/changes.py", *words, "--most", "20", "--use_GPU", "False") == 2
    assert "every image is longer than 20 pixels: give more by --most" in capsys.readouterr().err
