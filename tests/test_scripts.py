"""Every script at the top: held to one pattern, started, and run on its dataset's own official layout."""

import ast
import json
import re
from pathlib import Path

import pytest

from config import EVALUATIONS, PHOTOGRAPHS, STUDENTS, TEACHERS
from machinery.checkpoints import load_checkpoint
from metrix_code.scores import read_scores
from tests import layouts
from tests.small import SMALL, arguments

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*ROOT.glob("train_*.py"), *ROOT.glob("eval_*.py")])
EXPECTED = {
    **{f"train_{name}.py": ("engine", "train", f"TEACHERS['{name}']") for name in TEACHERS},
    **{f"train_{name}_real.py": ("engine", "train", f"STUDENTS['{name}']") for name in STUDENTS},
    **{
        f"train_photographs{'_real' * (stage == 'SSID-KD')}.py": (
            "engine",
            "train",
            f"PHOTOGRAPHS['{stage}']",
        )
        for stage in PHOTOGRAPHS
    },
    **{f"eval_{name}.py": ("evaluation", "evaluate", f"EVALUATIONS['{name}', 'SID']") for name in TEACHERS},
    **{
        f"eval_{name}{'_real' if name in STUDENTS else ''}.py": (
            "evaluation",
            "evaluate",
            f"EVALUATIONS['{name}', 'SSID-KD']",
        )
        for name, method in EVALUATIONS
        if method == "SSID-KD"
    },
}


def test_there_is_a_script_for_every_dataset_and_stage():
    assert [path.name for path in SCRIPTS] == sorted(EXPECTED)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_a_docstring_its_imports_and_one_call(path):
    text = path.read_text()
    assert len(text.splitlines()) < 10
    docstring, *imports, guard = ast.parse(text).body
    assert isinstance(docstring, ast.Expr)
    module, function, record = EXPECTED[path.name]
    stage = {"TEACHERS": "SID", "STUDENTS": "SSIDKD"}.get(record.split("[")[0])
    stage = {"PHOTOGRAPHS['SID']": "SID", "PHOTOGRAPHS['SSID-KD']": "SSIDKD"}.get(record, stage)
    expected = [f"from config import {record.split('[')[0]}", f"from {module} import {function}"]
    assert [ast.unparse(each) for each in imports] == expected + (
        [f"from stages import {stage}"] if stage else []
    )
    call = f"{function}({stage}, {record})" if stage else f"{function}({record})"
    assert ast.unparse(guard) == f"if __name__ == '__main__':\n    {call}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_help_explains_each_option_with_its_default(path, run_here, capsys):
    assert run_here(path.name, "--help") == 0
    shown = capsys.readouterr().out
    own = {"train": "--batchSize", "eval_": "--logdir"}[path.name[:5]]
    for option in ("--use_GPU", "--gpu_id", "--data_path", "--save_path", own):
        assert option in shown
    assert shown.count("(default:") == shown.count("\n  --") > 8


@pytest.mark.parametrize("name", ["steps", "seed", "workers", "val_every", "batchSize", "lr"])
def test_a_number_below_what_makes_sense_is_refused(name, run_here, capsys):
    assert run_here("train_Rain200H.py", f"--{name}", "-1") == 2
    assert re.search(rf"--{name} -1(\.0)? must be", capsys.readouterr().err)


@pytest.mark.parametrize("dataset", TEACHERS)
def test_both_stages_train_and_are_evaluated(dataset, tmp_path, run_here):
    data = layouts.OFFICIAL_LAYOUT[dataset](tmp_path / "data")
    layouts.real_images(tmp_path / "real")
    few = {**SMALL, "steps": 2, "data_path": data}
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    words = arguments({**few, "save_path": teacher})
    assert run_here(f"train_{dataset}.py", *words) == 0
    words = arguments({**few, "save_path": student, "teacher": teacher, "real_path": tmp_path / "real"})
    assert run_here(f"train_{dataset}_real.py", *words) == 0
    for name, method, model in (("", "SID", teacher), ("_real", "SSID-KD", student)):
        content = load_checkpoint(model / "net_latest")
        assert (content["step"], content["recipe"]["dataset"]) == (2, dataset)
        assert content["recipe"]["stage"] == method
        results = evaluated(run_here, f"eval_{dataset}{name}.py", data, model, tmp_path / method)
        assert (results["dataset"], results["method"]) == (dataset, method)


@pytest.mark.parametrize("dataset", ["SPA", "Real275"])
def test_sets_that_are_evaluated_only(dataset, tmp_path, run_here):
    pairs = layouts.rain200(tmp_path / "pairs")
    words = arguments({**SMALL, "steps": 1, "data_path": pairs, "save_path": tmp_path / "model"})
    assert run_here("train_Rain200L.py", *words) == 0
    data = layouts.OFFICIAL_LAYOUT[dataset](tmp_path / "data")
    results = evaluated(run_here, f"eval_{dataset}.py", data, tmp_path / "model", tmp_path / "results")
    assert (results["mean"]["psnr"] is None) == (dataset == "Real275")  # it has no clean side


def evaluated(run_here, script: str, data: Path, model: Path, save_path: Path) -> dict:
    """What an eval script wrote: a derained image for each input, scores and a page."""
    words = {"data_path": data, "logdir": model, "save_path": save_path, "use_GPU": False, "workers": 0}
    assert run_here(script, *arguments(words)) == 0
    results = read_scores(save_path / "scores.json")
    assert results["images"] and all((save_path / image["file"]).is_file() for image in results["images"])
    assert (save_path / "index.html").is_file()
    json.dumps(results["mean"], allow_nan=False)
    return results
