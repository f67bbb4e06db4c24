"""What a script is started in, and what strangers' files and names hold: closed streams, odd environments,
terminal escapes, results that would lie over what is read."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from datasets.pairs import ListedPairs
from evaluation import score
from machinery.checkpoints import load_checkpoint
from metrix_code import tables
from metrix_code.scores import read_scores, write_scores
from tests import layouts
from tests.small import CPU, ROOT, command, evaluation, teacher, trained
from tests.test_metrics import scored
from utils import read_image, write_image

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


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-", "<&-"])
def test_a_closed_stream_is_no_reason_to_die(tmp_path, closed):
    """As cron and daemons start programs."""
    words = command("train_Rain200H.py", teacher(tmp_path, steps=1))
    quoted = " ".join(f"'{word}'" for word in words)
    done = run_in(["bash", "-c", f"{quoted} {closed}"])
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(tmp_path / "teacher/net_latest")["step"] == 1


def test_make_hides_no_module_from_its_scripts():
    """Python, told so by PYTHONSAFEPATH, would not search a script's own folder."""
    told = 'told: ; @echo "[$(origin PYTHONSAFEPATH) $$PYTHONSAFEPATH]"'
    done = run_in(["make", "--eval", told, "told"], PYTHONSAFEPATH="1", MAKEFLAGS="")
    assert "[environment ]\n" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is ''"),
        ({"RANK": "x"}, "RANK is 'x'"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "LOCAL_RANK is ''"),
        ({"RANK": "0", "WORLD_SIZE": "one", "LOCAL_RANK": "0"}, "WORLD_SIZE is 'one'"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": "x"}, "MASTER_ADDR"),
    ],
)
def test_half_an_environment_of_torchrun_is_one_line(tmp_path, environment, says):
    done = run_in(command("train_Rain200H.py", teacher(tmp_path, steps=1)), **environment)
    assert done.returncode == 2 and says in done.stderr and "unset RANK" in done.stderr
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
    scores = scored(tmp_path / "a", "Rain200H", method, [image])
    write_scores(tmp_path / "a", scores)
    assert ESCAPE not in read_scores(tmp_path / "a/scores.json")["method"]
    for table in tables.tables(tmp_path, ["measured"]):
        assert "<script>" not in tables.as_markdown(table)
        assert "\x1b" not in tables.as_columns(table) + tables.as_latex(table) + tables.as_csv([table])


# --------------------------------------------------------------------- what is read is never written over


@pytest.mark.parametrize("side", ["res", "gt"])
def test_scores_do_not_lie_over_an_image(tmp_path, side):
    words = psnr_of(tmp_path, "1.png")
    (tmp_path / "link.csv").symlink_to(tmp_path / side / "1.png")
    for target in (tmp_path / side / "1.png", tmp_path / "link.csv"):
        done = run_in([*words, "--csv", target])
        assert done.returncode == 2 and "is one of the images that are read" in done.stderr
    assert np.array_equal(read_image(tmp_path / side / "1.png"), layouts.clean_image(1))


def test_a_contact_sheet_does_not_lie_over_an_image(tmp_path, run_here, capsys):
    write_image(tmp_path / "a/1.png", layouts.clean_image(1))
    assert run_here("tools/contact_sheet.py", f"a={tmp_path / 'a'}", "--out", str(tmp_path / "a/1.png")) == 2
    assert "is one of the images that are read" in capsys.readouterr().err


def test_a_list_with_a_byte_order_mark_names_the_right_files(tmp_path):
    layouts.spa(tmp_path / "spa")
    path = next((tmp_path / "spa").rglob("real_world.txt"))
    before = [pair.rainy.path for pair in ListedPairs(path)]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [pair.rainy.path for pair in ListedPairs(path)] == before
    assert all(each.is_file() for each in before)
