"""make in odd environments; terminal escapes and byte order marks in files and names."""

import json
import os
import subprocess

import torch

from datasets.pairs import ListedPairs
from machinery.evaluation import score
from metrix_code import tables
from tests import layouts
from tests.small import CPU, ROOT, evaluation, teacher, trained
from tests.test_metrics import scored
from utils import write_image

ESCAPE = "\x1b[2J"


def run_in(words, **environment):
    words, environment = list(map(str, words)), os.environ | environment
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment)


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


# ------------------------------------------------------------------------------------------ terminal escapes


def test_no_file_name_steers_a_terminal(tmp_path, run_here, capsys):
    for name in (f"res/1{ESCAPE}.png", f"gt/1{ESCAPE}.png", "res/2.png", "gt/2.png", f"res/3{ESCAPE}.png"):
        write_image(tmp_path / name, layouts.clean_image(1))
    run_here("metrix_code/psnr.py", "--res_path", f"{tmp_path}/res", "--gt_path", f"{tmp_path}/gt")
    told = "".join(capsys.readouterr())
    assert "\x1b" not in told and told.count("\\x1b[2J") == 2  # a score, and one without a clean image


def test_no_checkpoint_steers_a_terminal_or_a_table(tmp_path, run_here, capsys):
    trained(teacher(tmp_path, steps=1))
    path = tmp_path / "teacher/net_latest"
    content = torch.load(path, weights_only=True)
    content["recipe"] |= {"stage": f"SID{ESCAPE}", "dataset": f"<script>{ESCAPE}"}
    content["data"] = [ESCAPE]
    torch.save(content, path)
    scores = score(evaluation(tmp_path), CPU)
    assert ESCAPE not in json.dumps(scores, ensure_ascii=False)
    words = ["--logdir", str(path), "--only", "images", "--size", "32,32", "--rounds", "1"]
    assert run_here("benchmarks/run.py", *words, "--precision", "float32") == 0
    assert "\x1b" not in capsys.readouterr().out


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
