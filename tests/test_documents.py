"""README.md and its companions against the code: lengths, links, commands, options, scores, checksums."""

import hashlib
import re
import runpy
import subprocess
from pathlib import Path

import pytest

from config import EVALUATIONS, TEACHERS
from metrix_code.tables import from_others
from utils import read_image

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "datasets/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
CURRENT = [
    name for name in DOCUMENTS if name not in ("docs/CHANGELOG.md", "docs/experiments.md")
]  # tell of the past
SCORES = re.compile(r"\d+\.\d+ / 0\.\d+")


def read(name: str) -> str:
    return (ROOT / name).read_text()


@pytest.mark.parametrize(
    ("name", "lines", "words", "size"),
    [
        ("README.md", 160, 1200, 10_000),
        ("REPRODUCTION.md", 150, 2500, 15_000),
        ("docs/experiments.md", 150, 2500, 15_000),
        ("docs/CHANGELOG.md", 40, 500, 5_000),
    ],
)
def test_a_document_stays_short(name, lines, words, size):
    text = read(name)
    assert (len(text.splitlines()) <= lines, len(text.split()) <= words, len(text) <= size) == (True,) * 3


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_named_files_exist(name):
    text, folder = read(name), (ROOT / name).parent
    for link in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text):
        assert (folder / link).exists(), link
    if name in CURRENT:  # `machinery/options.py`, `tests/cuda`
        for path in re.findall(
            r"`((?:tests|docs|machinery|metrix_code|benchmarks|photographs)/[\w./]*|\w+\.py)`", text
        ):
            assert "NAME" in path or (ROOT / path).exists() or (folder / path).exists(), path


@pytest.mark.parametrize("name", CURRENT)
def test_commands_name_scripts_and_options_that_exist(name, run_here, capsys):
    text = re.sub(r"\\?\n\s+(?=--)", " ", read(name))  # a command over several lines
    for script, words in re.findall(r"(?:python |torchrun [^`\n]*?|`)((?:\w+/)?\w+\.py)( [^`\n#|]*)?", text):
        options = set(re.findall(r"(?<!\S)--\w+", words))
        if "NAME" in script:  # a pattern
            continue
        path = next(each for each in (ROOT / script, (ROOT / name).parent / script) if each.exists())
        if options:
            assert run_here(str(path.relative_to(ROOT)), "--help") == 0
            assert options <= set(re.findall(r"--\w+", capsys.readouterr().out)), script


def scores_of_others(kind: str) -> dict[tuple[str, str], str]:
    """'28.01 / 0.891' by method and dataset."""
    return {(cell.method, cell.dataset): str(cell) for cell in from_others(kind) if "psnr" in cell.scores}


def test_scores_stand_in_one_table():
    """What README.md and docs/models.md print was measured (REPRODUCTION.md), published or reproduced."""
    _, measured = read("REPRODUCTION.md").split("## Measured results")
    earlier = {"25.71 / 0.8244"}  # of a model that no longer ships
    known = {*SCORES.findall(measured), *earlier}
    known |= {score for kind in ("published", "reproduced") for score in scores_of_others(kind).values()}
    shown = {name: set(SCORES.findall(read(name))) for name in ("README.md", "docs/models.md")}
    for scores in shown.values():
        assert scores and scores - known == set()
    whole_sets = [line for line in measured.splitlines() if " 100 |" in line or " 200 |" in line]
    assert set(SCORES.findall("\n".join(whole_sets))) - shown["README.md"] == set()


def test_each_published_score_stands_under_its_dataset():
    """A row of README's table: method and source, then a cell per dataset."""
    table = re.search(r"\| \| Rain200H.*?\n\n", read("README.md"), re.DOTALL)
    assert table
    header, _, *rows = [[c.strip() for c in line.split("|")[1:-1]] for line in table[0].strip().splitlines()]
    found = 0
    for kind, source in (("published", "authors"), ("reproduced", "toolbox")):
        scores = scores_of_others(kind)
        for label, *cells in (row for row in rows if row[0].endswith(f"({source})")):
            method = label.removesuffix(f" ({source})")
            assert cells == [scores.get((method, dataset), "") for dataset in header[1:]]
            found += 1
    assert found == 5


def test_the_option_tables_show_the_defaults():
    teacher, test = TEACHERS["Rain200H"], EVALUATIONS["Rain200H", "SID"]
    table = read("README.md").split("## Options")[1].split("## ")[0].split("|---|---|---|\n")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()]
    shown = {name: tuple(cells) for name, *cells in rows}
    cards = f"{test.use_GPU}, {','.join(map(str, test.gpu_id))}"
    assert shown == {
        "batchSize, epochs": (f"{teacher.batchSize}, {teacher.epochs}", ""),
        "lr": ("5e-4, halved at the milestones", ""),
        "milestone": (str(list(teacher.milestone)), ""),
        "use_GPU, gpu_id": (cards, cards),
        "logdir": ("", str(test.logdir)),
        "data_path": (str(teacher.data_path[0]), str(test.data_path)),
        "save_path": (str(teacher.save_path), str(test.save_path)),
    }
    assert (teacher.lr, teacher.lr_factor) == (5e-4, 0.5)


def test_the_figures_are_drawn_and_captioned(tmp_path, run_here, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trained_model").symlink_to(ROOT / "trained_model")
    assert run_here("datasets/simulate.py") == 0
    capsys.readouterr()
    runpy.run_path(str(ROOT / "docs/figure.py"))["draw"](tmp_path)
    drawn = re.findall(r"([\d.]+) to ([\d.]+) dB", capsys.readouterr().out)
    captions = re.findall(r"([\d.]+) to ([\d.]+) dB", read("README.md"))
    for one, other in zip(drawn, captions, strict=True):
        assert [float(x) for x in one] == pytest.approx([float(x) for x in other], abs=0.15)
    for name in ("figure.jpg", "failure.jpg"):
        assert read_image(tmp_path / name).shape == read_image(ROOT / "docs" / name).shape


def test_each_model_has_a_row_a_card_and_a_checksum():
    models = sorted(path.parts[-3] for path in ROOT.glob("trained_model/*/pretrained/net_latest"))
    table = read("README.md").split("## Models")[1].split("## Data")[0]
    assert sorted(re.findall(r"(?m)^\| `([^`]+)`", table)) == models
    assert sorted(re.findall(r"(?m)^## (\S+)", read("docs/models.md"))) == models
    sums = dict(line.split("  ")[::-1] for line in read("trained_model/SHA256SUMS").splitlines())
    assert sums == {
        f"{name}/pretrained/net_latest": hashlib.sha256(
            (ROOT / "trained_model" / name / "pretrained/net_latest").read_bytes()
        ).hexdigest()
        for name in models
    }


def test_git_ignores_datasets_and_links_to_them_but_not_the_code(tmp_path):
    def ignored(path: str) -> bool:
        words = ["git", "check-ignore", "--quiet", "--no-index", path]
        return not subprocess.run(words, cwd=ROOT).returncode

    if subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("not a git checkout")
    assert ignored("datasets/Rain800") and ignored("datasets/simulated/a.png") and ignored("results")
    assert not any(map(ignored, ("datasets/catalogue.py", "datasets/README.md", "trained_model/SHA256SUMS")))
    assert ignored("trained_model/Rain200H/net_latest") and not ignored(
        "trained_model/x/pretrained/net_latest"
    )
