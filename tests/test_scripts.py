"""Every script at the top: held to one pattern, started, and run on its dataset's own official layout."""

import ast
import json
import re
from pathlib import Path

import pytest

from config import STUDENTS, TEACHERS
from machinery.checkpoints import load_checkpoint
from metrix_code.scores import read_scores
from tests import layouts
from tests.small import SMALL, arguments

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*ROOT.glob("train_*.py"), *ROOT.glob("eval_*.py")])
EXPECTED = {
    **{f"train_{name}.py": f"train(SID, TEACHERS['{name}'])" for name in TEACHERS},
    **{f"train_{name}_real.py": f"train(SSIDKD, STUDENTS['{name}'])" for name in STUDENTS},
    "train_photographs.py": "train(SID, PHOTOGRAPHS['SID'])",
    "train_photographs_real.py": "train(SSIDKD, PHOTOGRAPHS['SSID-KD'])",
    **{f"eval_{name}.py": f"evaluate(EVALUATIONS['{name}', 'SID'])" for name in TEACHERS},
    **{f"eval_{name}_real.py": f"evaluate(EVALUATIONS['{name}', 'SSID-KD'])" for name in STUDENTS},
    # of these there is a student's model alone
    **{f"eval_{name}.py": f"evaluate(EVALUATIONS['{name}', 'SSID-KD'])" for name in ("SPA", "Real275")},
}
LOOPS = {"train": "engine", "evaluate": "machinery.evaluation"}


def test_there_is_a_script_for_every_dataset_and_stage():
    assert [path.name for path in SCRIPTS] == sorted(EXPECTED)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_a_docstring_its_imports_and_one_call(path):
    text = path.read_text()
    assert len(text.splitlines()) < 10
    docstring, *statements = ast.parse(text).body
    assert isinstance(docstring, ast.Expr)
    loop, *stage, record = re.findall(r"\w+", EXPECTED[path.name].partition("[")[0])
    assert [ast.unparse(each) for each in statements] == [
        f"from config import {record}",
        f"from {LOOPS[loop]} import {loop}",
        *(f"from stages import {each}" for each in stage),
        f"if __name__ == '__main__':\n    {EXPECTED[path.name]}",
    ]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_help_explains_each_option_with_its_default(path, run_here, capsys):
    assert run_here(path.name, "--help") == 0
    shown = capsys.readouterr().out
    own = {"train": "--batchSize", "eval_": "--logdir"}[path.name[:5]]
    for option in ("--use_GPU", "--gpu_id", "--data_path", "--save_path", own):
        assert option in shown
    assert shown.count("(default:") == shown.count("\n  --") > 8


@pytest.mark.parametrize(
    ("words", "says"),
    [
        *(
            (f"train_Rain200H.py --{name} -1", f"--{name} -1")
            for name in ("steps", "seed", "workers", "val_every", "batchSize", "lr")
        ),
        ("train_Rain200H.py --gpu_id -1", "-1 must be in [0, inf]"),
        ("train_Rain200H.py --preset /", "config.PRESETS has no such recipe"),
        ("eval_Rain200H.py --preset /", "invalid choice"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_its_name(words, says, run_here, capsys):
    script, option, wrong = words.split()
    assert run_here(script, option, wrong) == 2
    *usage, error = capsys.readouterr().err.splitlines()
    assert option in error and says in error and bool(usage) == ("invalid choice" in error)


@pytest.mark.parametrize("dataset", TEACHERS)
def test_both_stages_train_and_are_evaluated(dataset, tmp_path, run_here):
    data = layouts.OFFICIAL_LAYOUT[dataset](tmp_path / "data")
    few = {**SMALL, "steps": 2, "data_path": data}
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    begins = {"teacher": teacher, "real_path": layouts.real_images(tmp_path / "real")}
    for name, more in (("", {"save_path": teacher}), ("_real", {"save_path": student, **begins})):
        assert run_here(f"train_{dataset}{name}.py", *arguments({**few, **more})) == 0
    for name, method, model in (("", "SID", teacher), ("_real", "SSID-KD", student)):
        content = load_checkpoint(model / "net_latest")
        told = content["recipe"]
        assert (content["step"], told["dataset"], told["stage"]) == (2, dataset, method)
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
    words = {"data_path": data, "logdir": model, "save_path": save_path, "use_GPU": False}
    assert run_here(script, *arguments(words)) == 0
    results = read_scores(save_path / "scores.json")
    assert results["images"] and all((save_path / image["file"]).is_file() for image in results["images"])
    assert (save_path / "index.html").is_file()
    json.dumps(results["mean"], allow_nan=False)
    return results
