"""Four people want to change something: each finds one place, as docs/changing_the_method.md says."""

import copy
import dataclasses
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from config import TEACHERS, Teacher
from datasets import catalogue
from losses import l1
from machinery import backbones
from machinery.checkpoints import load_checkpoint
from machinery.evaluation import score
from machinery.options import option
from networks import Derained
from stages import SID, Average, frozen, supervised
from tests import layouts
from tests.small import (
    CPU,
    LIGHT,
    ROOT,
    a_run,
    assert_resumes_alike,
    assert_same_weights,
    evaluation,
    lines,
    student,
    teacher,
    trained,
)
from utils import UserError

# ---------------------------------------------------------------------------------------- a new loss term


@dataclasses.dataclass(frozen=True)
class WithEdges(Teacher):
    edges_weight: float = option(1.0, "of the edges' differences")


class Edges(SID):
    recipe: WithEdges

    def terms(self, net, batch):
        derained, clean = net(batch["rainy"]).derained, batch["clean"]
        edges = (derained.diff(dim=3) - clean.diff(dim=3)).abs().mean()
        return {**super().terms(net, batch), "edges": edges}


def with_edges(folder, **changes) -> WithEdges:
    return WithEdges(**{**vars(teacher(folder)), "ssim_weight": 0.0, **changes})


def test_a_term_is_optimised_and_logged(tmp_path):
    run = a_run(with_edges(tmp_path, steps=12), stage=Edges)
    fresh = copy.deepcopy(run.net.net.state_dict())
    run.run()
    logged = [line["loss/edges"] for line in lines(tmp_path / "teacher")]
    assert len(logged) == 12
    assert [line["loss/total"] for line in lines(tmp_path / "teacher")] == logged  # nothing else has a weight
    moved = load_checkpoint(tmp_path / "teacher/net_latest")["net"]
    assert any(not torch.equal(moved[key], fresh[key]) for key in fresh)  # it alone moved them


@pytest.mark.parametrize(("stage", "of"), [(Edges, teacher), (SID, with_edges)])
def test_a_term_without_a_weight_or_a_weight_without_a_term_stops(tmp_path, stage, of):
    with pytest.raises(UserError, match="a term without a weight, or a weight without a term: edges"):
        trained(of(tmp_path), stage)
    assert not (tmp_path / "teacher/net_latest").exists()


# ------------------------------------------------------------------------------------------ a new dataset


def test_a_dataset_is_an_entry_and_its_recipes(tmp_path, monkeypatch):
    monkeypatch.setitem(catalogue.CATALOGUE, "RainNew", catalogue.Entry("RainNew", train=4, test=2))
    layouts.rain200(tmp_path / "RainNew")
    small = vars(teacher(tmp_path, data_path=(tmp_path / "RainNew",), dataset="RainNew", val_every=1))
    run = trained(dataclasses.replace(TEACHERS["Rain800"], **small))
    assert not any("official" in line for line in run.data)  # four pairs are what it should have
    scores = score(evaluation(tmp_path, dataset="RainNew", data_path=tmp_path / "RainNew"), CPU)
    assert (scores["dataset"], scores["images_expected"], scores["method"]) == ("RainNew", 2, "SID")


# --------------------------------------------------------------------------------------- another backbone


class Tiny(nn.Module):
    def __init__(self, weights=None):  # not an option of the architecture: no recipe's value comes here
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, rainy):
        streaks = self.conv(rainy)
        return Derained(rainy - streaks, streaks, streaks)


def test_a_backbone_of_five_lines_trains_resumes_and_is_evaluated(tmp_path, monkeypatch):
    monkeypatch.setitem(backbones.BACKBONES, "Tiny", Tiny)
    straight = teacher(tmp_path, backbone="Tiny")
    assert_resumes_alike(straight)
    content = load_checkpoint(tmp_path / "teacher/net_latest")
    assert content["network"] == {"backbone": "Tiny", "arguments": {}}
    assert score(evaluation(tmp_path), CPU)["mean"]["psnr"] > 0
    with pytest.raises(UserError, match="--recompute: the backbone Tiny does not offer it"):
        a_run(dataclasses.replace(straight, recompute=True))
    with pytest.raises(UserError, match="there is no backbone 'Huge'"):
        a_run(dataclasses.replace(straight, backbone="Huge"))


# ----------------------------------------------------------------------------------- another distillation


@dataclasses.dataclass(frozen=True)
class WithTeacher(Teacher):
    teacher_weight: float = option(1.0, "of L1 to the teacher's result")


def test_the_documents_distillation_trains(tmp_path, monkeypatch):
    """The very lines that it shows."""
    text = (ROOT / "docs/changing_the_method.md").read_text()
    (lines_shown,) = re.findall(r"^    class Distilled.*?(?=^\S)", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"SID": SID, "frozen": frozen, "Path": Path, "supervised": supervised, "l1": l1}
    exec(textwrap.dedent(lines_shown), names)
    monkeypatch.chdir(tmp_path)  # where its teacher is
    trained(teacher(tmp_path, save_path=tmp_path / "trained_model/Rain200H", steps=1))
    small = teacher(tmp_path, save_path=tmp_path / "distilled", steps=2, **LIGHT)  # another backbone
    run = a_run(WithTeacher(**vars(small)), stage=names["Distilled"])
    before = copy.deepcopy(run.stage.aux_networks.state_dict())
    assert not run.stage.aux_networks["teacher"].training
    run.run()
    assert all(line["loss/teacher"] > 0 for line in lines(tmp_path / "distilled"))
    after = load_checkpoint(tmp_path / "distilled/net_latest")["training"]["aux_networks"]
    torch.testing.assert_close(after, dict(before), rtol=0, atol=0)  # it is never trained


class MeanTeacher(SID):
    def make_aux_networks(self, net):
        return {"mean": Average(net, 0.5)}

    def terms(self, net, batch):
        target = self.aux_networks["mean"](batch["rainy"]).derained
        return {**super().terms(net, batch), "teacher": l1(net(batch["rainy"]).derained, target)}


def test_a_stage_with_an_average_resumes_bit_for_bit(tmp_path):
    assert_resumes_alike(WithTeacher(**vars(teacher(tmp_path))), MeanTeacher)
    content = load_checkpoint(tmp_path / "teacher/net_latest")
    means = content["training"]["aux_networks"]
    assert any(not torch.equal(means[f"mean.module.net.{key}"], own) for key, own in content["net"].items())


# ---------------------------------------------------------------------------------- averages and parts


@pytest.mark.parametrize("stage", [teacher, student])
def test_a_batch_in_parts_moves_the_weights_alike(tmp_path, stage):
    trained(teacher(tmp_path))
    for parts in (1, 4):
        changes = {"batchSize": 4, "accumulate": parts, "steps": 3, "save_path": tmp_path / str(parts)}
        with torch.backends.nnpack.flags(enabled=False):  # it rounds differently by the size of the batch
            trained(stage(tmp_path, **changes))
    assert_same_weights(tmp_path / "1", tmp_path / "4", within=2e-5)
    for one, other in zip(lines(tmp_path / "1"), lines(tmp_path / "4"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
