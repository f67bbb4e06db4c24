"""Odd environments, terminal escapes in files and names, and results that would overwrite inputs."""

import json
import os
import subprocess
import sys

import pytest
import torch

from datasets.pairs import ListedPairs
from machinery.evaluation import score
from metrix_code import tables
from tests import layouts
from tests.small import CPU, ROOT, command, evaluation, teacher, trained
from tests.test_metrics import scored
from utils import write_image

ESCAPE = "\x1b[2J"


def run_in(words, **environment):
    words, environment = list(map(str, words)), os.environ | environment
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment)


def psnr_of(folder, *names):
    """The scores of two folders' images of these names."""
    for name in names:
        for side in ("res", "gt"):
            write_image(folder / side / name, layouts.clean_image(1))
    sides = ["--res_path", folder / "res", "--gt_path", folder / "gt"]
    return [sys.executable, "metrix_code/psnr.py", *sides]


def test_make_hides_no_module_from_its_scripts():
    """Python, told so by PYTHONSAFEPATH, would not search a script's own folder."""
    told = 'told: ; @echo "[$(origin PYTHONSAFEPATH) $$PYTHONSAFEPATH]"'
    done = run_in(["make", "--eval", told, "told"], PYTHONSAFEPATH="1", MAKEFLAGS="")
    assert "[environment ]\n" in done.stdout, done.stderr


def test_make_card_fails_with_its_tests_and_a_linked_venv_is_used(tmp_path):
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\ntest $2 != pytest\n")  # a Python whose tests fail
    python.chmod(0o755)
    (tmp_path / ".venv").symlink_to("venv")
    for name in ("requirements.txt", "constraints.txt", "tests/requirements.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    make = ["make", "-C", tmp_path, "-f", ROOT / "Makefile", "PYTHON=false"]
    assert run_in([*make, ".venv/ready"], MAKEFLAGS="").returncode == 0
    assert run_in([*make, "card"], MAKEFLAGS="").returncode == 2
    assert "## benchmarks/run.py" in (tmp_path / "card.md").read_text()


WHOLE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RANK": "0"}, "KeyError('WORLD_SIZE')"),
        (WHOLE | {"RANK": "3", "WORLD_SIZE": "2"}, "RANK is 3 and WORLD_SIZE is 2"),
        (WHOLE | {"MASTER_PORT": "x"}, "invalid literal for int() with base 10: 'x'"),
        (WHOLE | {"MASTER_ADDR": "no.such.host.invalid"}, "MASTER_ADDR no.such.host.invalid: "),
    ],
)
def test_half_an_environment_of_torchrun_is_one_line(tmp_path, environment, says):
    done = run_in(command("train_Rain200H.py", teacher(tmp_path, steps=1)), **environment)
    assert done.returncode == 2 and says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# ------------------------------------------------------------------------------------------ terminal escapes


def test_no_file_name_steers_a_terminal(tmp_path):
    words = psnr_of(tmp_path, f"1{ESCAPE}.png", "2.png")
    write_image(tmp_path / f"res/3{ESCAPE}.png", layouts.clean_image(1))  # without a clean one
    done = run_in(words)
    assert "\x1b" not in done.stdout + done.stderr and "\\x1b[2J" in done.stdout


def test_no_checkpoint_steers_a_terminal_or_a_table(tmp_path, capsys):
    trained(teacher(tmp_path, steps=1))
    path = tmp_path / "teacher/net_latest"
    content = torch.load(path, weights_only=True)
    content["recipe"] |= {"stage": f"SID{ESCAPE}", "dataset": f"<script>{ESCAPE}"}
    content["data"] = [ESCAPE]
    torch.save(content, path)
    scores = score(evaluation(tmp_path), CPU)
    assert ESCAPE not in json.dumps(scores, ensure_ascii=False) + capsys.readouterr().out
    words = ["--only", "images", "--size", "32,32", "--rounds", "1"]
    done = run_in([sys.executable, "benchmarks/run.py", "--logdir", path, *words])
    assert done.returncode == 0 and "\x1b" not in done.stdout


def test_no_scores_steer_a_terminal_or_a_browser(tmp_path):
    method, image = f"<script>alert(1)</script>{ESCAPE}", {"psnr": 20.0, "ssim": 0.5}
    scored(tmp_path / "a", "Rain200H", method, [image])
    for table in tables.tables(tmp_path, ["measured"]):
        assert "<script>" not in tables.as_text(table, "markdown")
        assert all("\x1b" not in tables.as_text(table, each) for each in tables.FORMATS)


def test_a_list_with_a_byte_order_mark_names_the_right_files(tmp_path):
    layouts.spa(tmp_path / "spa")
    path = next((tmp_path / "spa").rglob("real_world.txt"))
    before = [pair.rainy.path for pair in ListedPairs(path)]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [pair.rainy.path for pair in ListedPairs(path)] == before
    assert all(each.is_file() for each in before)
