"""No number of the paper may change without a red test: the records against a table of the spec."""

import csv
import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from config import EVALUATIONS, PHOTOGRAPHS, PRESETS, STUDENTS, TEACHERS, Schedule
from machinery.options import GROUPS, parse, resume_keys
from tests.small import ROOT
from utils import UserError

RECORDS: dict[tuple[str, str], Any] = {("SID", name): each for name, each in TEACHERS.items()}
RECORDS |= {("SSID-KD", name): each for name, each in STUDENTS.items()}
DATASETS = ("Rain200H", "Rain200L", "Rain800", "Rain1200", "Rain1400")
# options of places, logs and machines, which do not change the result
OTHERS = {"data_path", "save_path", "resume", "workers", "cache", "weights", "teacher", "real_path"}
OTHERS |= {"log_every", "save_every", "keep_every", "val_images"}
# options that a resumed run may change: device, length, folders
MAY_CHANGE = {"use_GPU", "gpu_id", "precision", "deterministic", "compile", "recompute", "accumulate"}
MAY_CHANGE |= {"epochs", "steps", "minutes", "val_every", "preset", "streaks", "backgrounds"}

STAGES = ("SID", "SSID-KD")


def table() -> dict[tuple[str, str, str], str]:
    """(stage, dataset, option) to its value, a row with * for each that it stands for."""
    numbers = {}
    with (Path(__file__).parent / "recipes.csv").open() as file:
        for row in csv.DictReader(file):
            assert row["source"]
            stage, _, preset = row["stage"].partition(" ")
            for one in STAGES if stage == "*" else (stage,):
                for dataset in (*DATASETS, "photographs") if row["dataset"] == "*" else (row["dataset"],):
                    key = (f"{one} {preset}".strip(), dataset, row["option"])
                    assert key not in numbers, key
                    numbers[key] = row["value"]
    return numbers


def expected_of(stage: str, dataset: str, preset: str = "") -> dict[str, str]:
    """The paper's recipe; of a preset, with what that changes."""
    rows = {option: value for (of, on, option), value in table().items() if (of, on) == (stage, dataset)}
    if preset:
        rows |= expected_of(f"{stage} {preset}", dataset)
    return rows


def as_text(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def same(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other


@pytest.mark.parametrize("preset", ["", "light"])
@pytest.mark.parametrize("key", RECORDS)
def test_every_number_of_a_recipe_is_that_of_the_table(key, preset):
    # as its script has it without another word
    assert_as_in_the_table(parse(RECORDS[key], "", ["--preset", preset] if preset else []), key, preset)


def assert_as_in_the_table(recipe, key, preset):
    assert (recipe.stage, recipe.dataset) == key
    expected = expected_of(recipe.stage, recipe.dataset, preset)
    options = {each.name for each in dataclasses.fields(recipe) if "help" in each.metadata}
    assert options == expected.keys() | OTHERS & options
    assert not [name for name, value in expected.items() if not same(as_text(getattr(recipe, name)), value)]
    assert set(resume_keys(recipe)) == set(expected) - MAY_CHANGE


@pytest.mark.parametrize(("name", "value"), [(n, v) for (s, _, n), v in table().items() if s == "constant"])
def test_constants_are_those_of_the_table(name, value):
    """Numbers of the recipes that are not options."""
    module, _, constant = name.rpartition(".")
    number = getattr(importlib.import_module(module), constant)
    assert re.findall(r"[\d.]+", str(number)) == value.split()


def test_there_are_no_others():
    assert tuple(TEACHERS) == tuple(STUDENTS) == DATASETS
    others = {("SPA", "SSID-KD"), ("Real275", "SSID-KD")}
    assert set(EVALUATIONS) == {(name, stage) for name in DATASETS for stage in STAGES} | others


@pytest.mark.parametrize("stage", STAGES)
def test_the_recipe_for_photographs_is_that_of_the_table_and_there_is_one(stage):
    for words in ([], ["--preset", "light"]):
        recipe: Any = parse(PHOTOGRAPHS[stage], "", words)
        assert recipe == PHOTOGRAPHS[stage]
        assert_as_in_the_table(recipe, (stage, "photographs"), "light")
    assert [path.name for path in recipe.data_path] == ["Rain800", "Rain200H", "Rain200L"]
    begins = recipe.weights if stage == "SID" else recipe.teacher
    assert begins.name == {"SID": "Rain800-light", "SSID-KD": "photographs"}[stage]
    with pytest.raises(UserError, match=r"--preset paper: config.PRESETS has no such .* for photographs"):
        parse(PHOTOGRAPHS[stage], "", ["--preset", "paper"])


@pytest.mark.parametrize(("preset", "end"), [("paper", ""), ("light", "-light")])
@pytest.mark.parametrize("name", DATASETS)
def test_places_are_the_datasets_own_and_its_presets(name, preset, end):
    def of(record) -> Any:
        return parse(record, "", ["--preset", preset])

    teacher, student = of(TEACHERS[name]), of(STUDENTS[name])
    assert teacher.data_path == student.data_path == (Path("datasets") / name,)
    assert student.teacher == teacher.save_path == Path(f"trained_model/{name}{end}")
    assert student.save_path == Path(f"trained_model/{name}{end}+Real")
    for stage, made in (("SID", teacher), ("SSID-KD", student)):
        assert of(EVALUATIONS[name, stage]).logdir == made.save_path
    for other in ("SPA", "Real275"):
        assert of(EVALUATIONS[other, "SSID-KD"]).logdir == Path(f"trained_model/Rain200L{end}+Real")


# the length in steps, and where the rate drops, of the official sets
@pytest.mark.parametrize(
    ("recipe", "pairs", "steps", "drops"),
    [
        (TEACHERS["Rain200H"], 1800, 78_000, (46_800, 62_400)),
        (TEACHERS["Rain800"], 700, 30_333, (18_199, 24_266)),
        (TEACHERS["Rain1200"], 12_000, 800_000, (480_000, 640_000)),
        (STUDENTS["Rain1200"], 12_000, 60_000, ()),
        (STUDENTS["Rain1400"], 12_600, 126_000, ()),
        # a shorter run keeps the shape
        (dataclasses.replace(TEACHERS["Rain200H"], steps=1000), 1800, 1000, (600, 800)),
        # fewer epochs alone are no mistake: as in PyTorch, a milestone beyond the end is not met
        (parse(TEACHERS["Rain200H"], "", ["--epochs", "100"]), 1800, 15_000, (46_800, 62_400)),
    ],
)
def test_length_and_milestones_are_the_papers(recipe, pairs, steps, drops):
    schedule = Schedule(recipe, pairs)
    assert (schedule.steps, schedule.drops) == (steps, drops)
    rates = [schedule.factor(step) for step in (0, *drops)]
    assert rates == pytest.approx([recipe.lr_factor**n for n in range(len(drops) + 1)])
    assert all(schedule.factor(drop - 1) > schedule.factor(drop) for drop in drops)


def test_the_authors_own_words_for_the_options_are_taken():
    words = ["--milestone", "[312, 416]", "--gpu_id", "0,1", "--use_GPU", "False"]
    recipe = parse(TEACHERS["Rain200H"], "", words)
    assert recipe.milestone == (312, 416) and recipe.gpu_id == (0, 1) and recipe.use_GPU is False
    assert parse(TEACHERS["Rain200H"], "", ["--milestone", "312", "416"]).milestone == (312, 416)
    # and our own older ones
    assert parse(TEACHERS["Rain200H"], "", ["--recombine", "--slant", "5"]).max_streak_rotation == 5.0


# ----------------------------------------------------------------------------------------- LightNet's recipes


@pytest.mark.parametrize("key", RECORDS)
def test_one_word_picks_lightnets_recipe_and_what_is_given_wins(key):
    paper = RECORDS[key]
    light = parse(paper, "", ["--preset", "light"])
    assert parse(paper, "", ["--preset", "paper"]) == paper != light
    given = parse(paper, "", ["--lr", "0.01", "--preset", "light", "--steps", "7", "--save_path", "there"])
    assert given == dataclasses.replace(light, lr=0.01, steps=7, save_path=Path("there"))
    assert set(PRESETS["light"]) == {(dataset, stage) for stage, dataset in RECORDS}


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("--batch_size=4", "--batch_size=4; did you mean --batchSize?\n"),
        ("--patchsize", "--patchsize; did you mean --patch_size?\n"),
        ("--xyzzy", "--xyzzy\n"),
        ("--pres=light", "--pres=light; did you mean --preset?\n"),  # half a name is none
    ],
)
def test_an_unknown_option_names_the_closest_known_one(capsys, typed, says):
    with pytest.raises(SystemExit):
        parse(TEACHERS["Rain800"], "", [typed])
    assert capsys.readouterr().err.endswith(f"unrecognized arguments: {says}")


def test_epochs_alone_decide_the_length_of_a_preset_and_milestones_need_its_cosine_off():
    def recipe(*words) -> Any:
        return parse(TEACHERS["Rain800"], "", ["--preset", "light", *words])

    assert Schedule(recipe("--epochs", "1"), 700).steps < 700
    assert recipe("--epochs", "1", "--steps", "7").steps == 7
    assert recipe("--milestone", "5", "--cosine", "False").milestone == (5,)
    with pytest.raises(UserError, match="--milestone does not apply with --cosine: give --cosine False"):
        recipe("--milestone", "5")


@pytest.mark.parametrize(
    ("words", "backbone", "lr"), [([], "DerainNet", "0.0005"), (["--preset", "light"], "LightNet", "0.0006")]
)
def test_help_shows_the_defaults_that_hold_in_groups(capsys, words, backbone, lr):
    with pytest.raises(SystemExit):
        parse(TEACHERS["Rain800"], "", [*words, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"(default: {backbone})" in shown and f"learning rate of Adam (default: {lr})" in shown
    places = [shown.index(f" {title}: --") for title in GROUPS[1:]]
    assert places == sorted(places)


def test_a_preset_is_no_recipe_of_a_dataset_that_it_does_not_know():
    """A user's own: it would be trained by the paper's recipe, and called by the preset's name."""
    own = dataclasses.replace(TEACHERS["Rain200H"], dataset="RainNew")
    assert parse(own, "", []).preset == "paper"
    with pytest.raises(UserError, match=r"--preset light: config.PRESETS has no such recipe for RainNew"):
        parse(own, "", ["--preset", "light"])


@pytest.mark.skipif(not (ROOT.parent / "shared/spec/training.md").exists(), reason="needs the spec")
def test_the_table_has_the_numbers_of_the_spec():
    """Of each dataset the row of the spec's own table."""
    text = (ROOT.parent / "shared/spec/training.md").read_text()
    numbers, found = table(), set()
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if not line.startswith("| Rain") or len(cells) < 7:
            continue
        names, stage, lr, epochs, batch, patch, drops = cells[:7]
        for dataset in names.split(", "):
            told = {"lr": lr, "epochs": epochs, "batchSize": batch, "patch_size": patch}
            told |= {"lr_factor": cells[7]} if stage == "SID" else {}
            assert not [name for name in told if not same(numbers[stage, dataset, name], told[name])]
            assert numbers[stage, dataset, "milestone"].split() == re.findall(r"\d+", drops)[:2]
            found.add((stage, dataset))
    # of Rain800 nothing is released
    assert found == {(stage, dataset) for stage in STAGES for dataset in DATASETS if dataset != "Rain800"}
