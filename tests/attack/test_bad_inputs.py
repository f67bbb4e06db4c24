"""The table of bad inputs: what is wrong, what is run, and the one line that comes of it.

Each row begins with the same small place: data/ (four training pairs, two test pairs), real/, teacher/ and
student/, each after two steps. `{here}` is that place, `...` any text. Whatever is refused, the exit code
is 2, standard error has that line and nothing else, and nothing that was there is changed.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import stat
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from backbones import BACKBONES
from machinery.checkpoints import load_checkpoint
from metrix_code.scores import read_scores
from tests import layouts
from tests.attack.scripts import OneConvolution, called, with_one_convolution
from tests.small import SMALL, arguments, student, teacher, trained
from utils import write_image

TINY: dict[str, Any] = {
    **SMALL,
    "backbone": "OneConvolution",
    "channels": (2, 3, 4),
    "steps": 2,
    "save_every": 1,
}
TRAIN = "train_Rain200H.py --data_path {here}/data --save_path {here}/new " + " ".join(arguments(TINY))
STUDENT = TRAIN.replace("train_Rain200H.py", "train_Rain200H_real.py --teacher {here}/teacher")
STUDENT += " --real_path {here}/real"
RESUME = TRAIN.replace("{here}/new", "{here}/teacher") + " --resume --steps 3"
EVAL = "eval_Rain200H.py --data_path {here}/data --logdir {here}/teacher --save_path {here}/out"
EVAL += " --use_GPU False --workers 0 --page False"
DERAIN = "derain.py {here}/data/rain_data_test_Heavy/rain/X2 --logdir {here}/teacher --save_path {here}/out"
DERAIN += " --use_GPU False"
PSNR = "metrix_code/psnr.py --res_path {here}/data/rain_data_test_Heavy/rain/X2"
PSNR += " --gt_path {here}/data/rain_data_test_Heavy/norain"
EXPORT = "tools/export.py --logdir {here}/teacher --save_path {here}/out"

TESTED = "data/rain_data_test_Heavy/rain/X2/norain-1x2.png"
TRAINED = "data/rain_data_train_Heavy/rain/X2/norain-1x2.png"
LATEST = "teacher/net_latest"

# ------------------------------------------------------------------------------- what is done to the place

Made = Callable[[Path], object]


def put(name: str, content: bytes) -> Made:
    return lambda here: (here / name).write_bytes(content)


def cut(name: str, length: int) -> Made:
    return lambda here: (here / name).write_bytes((here / name).read_bytes()[:length])


def instead(name: str, make: Callable[[Path], object]) -> Made:
    """Something else in a file's place."""

    def made(here: Path) -> None:
        (here / name).unlink(missing_ok=True)
        make(here / name)

    return made


def content(**changes: Any) -> Made:
    """The teacher's checkpoint with keys changed, or, by None, taken away. `training__best` is inner."""

    def made(here: Path) -> None:
        whole = load_checkpoint(here / LATEST)
        for key, value in changes.items():
            *outer, last = key.split("__")
            inner = whole
            for each in outer:
                inner = inner[each]
            inner[last] = value(inner[last]) if callable(value) else value
            if value is None:
                del inner[last]
        torch.save(whole, here / LATEST)

    return made


def saved(thing: Any) -> Made:
    return lambda here: torch.save(thing, here / LATEST)


def first(change: Callable[[torch.Tensor], Any]) -> Callable[[dict], dict]:
    """Weights with one of them changed."""
    return lambda net: {**net, "first.weight": change(net["first.weight"])}


LOOP: list[Any] = []
LOOP.append(LOOP)


def bomb(here: Path) -> None:
    """The checkpoint with one thing more in its archive, which is all of zeros and compressed."""
    with zipfile.ZipFile(here / LATEST, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net_latest/data/more", bytes(10_000_000))


def held(here: Path) -> None:
    """As another training holds its folder."""
    import fcntl

    (here / "new").mkdir()
    (here / "new").chmod(0o777)
    file = (here / "new/.lock").open("w")
    (here / "new/.lock").chmod(0o666)
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    HELD.append(file)


HELD: list[Any] = []


def nothing(here: Path) -> None:
    pass


def closed(name: str, rights: int) -> Made:
    return lambda here: (here / name).chmod(rights)


def long_names(here: Path) -> None:
    (here / TESTED).rename((here / TESTED).with_name("n" * 251 + ".png"))


def without_rights() -> None:
    """To root no right is missing until it gives them up. It stays root: the project may lie in its home."""
    with_one_convolution()
    if os.geteuid() == 0:
        version_3, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(version_3, none) == 0


class Row(NamedTuple):
    what: str
    made: Made
    command: str
    line: str
    before: Callable[[], None] = with_one_convolution


LOST = "1 of 2 images were not scored, the first: {here}/" + TESTED
ONCE = "{here}/" + LATEST
FETCH = ": fetch it again"
TRAIN_ANEW = ": train anew, or fetch it again"
NO_CHECKPOINT = ONCE + " is no checkpoint, or is cut short" + TRAIN_ANEW
START_ANEW = ": start anew without --resume"
RIGHTS = ": Permission denied: change its rights, or choose another place"
# fmt: off
TABLE = [
    # ---- pictures
    Row("a picture that is cut short", cut(TESTED, 100), EVAL,
        LOST + " is not an image, or is cut short (100 bytes): fetch it again"),
    Row("a pipe called x.png", instead(TESTED, os.mkfifo), EVAL,
        LOST + " is a pipe or a device, not an image: take it away, or rename it"),
    Row("a pair of two sizes",
        lambda here: write_image(here / TESTED, layouts.clean_image(1, (48, 50))), EVAL,
        LOST + " and ... have two sizes, 50x48 and 56x48: fetch them again"),
    Row("the same, read ahead by two", cut(TESTED, 100), EVAL + " --workers 2",
        LOST + " is not an image, ..."),
    Row("a broken training image", cut(TRAINED, 100), TRAIN,
        "{here}/" + TRAINED + " is not an image, or is cut short (100 bytes): ..."),
    Row("a pipe among the training images", instead(TRAINED, os.mkfifo), TRAIN,
        "{here}/" + TRAINED + " is a pipe or a device, not an image: ..."),
    Row("a broken real image", cut("real/2.jpg", 200), STUDENT,
        "{here}/real/2.jpg is not an image, or is cut short (200 bytes): ..."),
    Row("one broken photograph among others", cut(TESTED, 100), DERAIN,
        "1 of 2 could not be derained: {here}/" + TESTED),
    Row("a pipe among the photographs", instead(TESTED, os.mkfifo), DERAIN,
        "1 of 2 could not be derained: {here}/" + TESTED),
    Row("names too long to be added to", long_names, DERAIN + " --compare --streaks",
        "1 of 2 could not be derained: {here}/data/...nnn.png"),
    Row("a rainy image without its clean one",
        lambda here: (here / "data/rain_data_test_Heavy/norain/norain-1.png").unlink(), EVAL,
        "{here}/" + TESTED + " has no clean image of that name or number: fetch the set again"),
    Row("no dataset at all", nothing, TRAIN + " --data_path {here}/none",
        "{here}/none is not a folder: --data_path takes that of a dataset; ..."),
    Row("an empty folder", lambda here: (here / "empty").mkdir(), EVAL + " --data_path {here}/empty",
        "no test pairs in {here}/empty: {here}/empty is empty; ..."),
    # ---- checkpoints
    Row("no checkpoint", nothing, EVAL + " --logdir {here}/none",
        "{here}/none does not exist: train one with train_Rain200H.py, or give --logdir"),
    Row("a CSV as a checkpoint", put(LATEST, b"a,b\n1,2\n"), EVAL, NO_CHECKPOINT),
    Row("an empty checkpoint", put(LATEST, b""), EVAL, NO_CHECKPOINT),
    Row("a checkpoint cut short", cut(LATEST, 5000), EVAL, NO_CHECKPOINT),
    Row("a pipe as a checkpoint", instead(LATEST, os.mkfifo), EVAL,
        ONCE + " is a pipe or a device, not a checkpoint: take it away, or rename it"),
    Row("a device as a checkpoint", nothing, EVAL + " --logdir /dev/zero",
        "/dev/zero is a pipe or a device, not a checkpoint: ..."),
    Row("code in a checkpoint", saved({"net": Path("x")}), EVAL, NO_CHECKPOINT),
    Row("a tensor as a checkpoint", saved(torch.zeros(3)), EVAL, ONCE + " holds no network under 'net': ..."),
    Row("a net of strings", content(net={"a": "b"}), EVAL,
        ONCE + ": 'a' of its network is no weight" + TRAIN_ANEW),
    Row("a net that is a list", content(net=[1, 2]), EVAL, ONCE + " holds no network under 'net': ..."),
    Row("no net", content(net=None), EVAL, ONCE + " holds no network under 'net': ..."),
    Row("an integer weight", content(net=first(torch.Tensor.int)), EVAL,
        ONCE + ": 'first.weight' of its network is no weight: ..."),
    Row("a sparse weight", content(net=first(torch.Tensor.to_sparse)), EVAL,
        ONCE + ": 'first.weight' of its network is no weight: ..."),
    Row("a weight of no dimension", content(net=first(torch.Tensor.sum)), EVAL,
        ONCE + " does not fit: first.weight is (), expected (2, 3, 3, 3); ..."),
    Row("one number shown as a million million",
        content(net=first(lambda w: w[0, 0, 0, :1].expand(10**6, 10**6))), EVAL,
        ONCE + ": 'first.weight' of its network is no weight" + TRAIN_ANEW),
    Row("a weight that is no number", content(net=first(lambda w: w * torch.nan)), EVAL,
        ONCE + " cannot be used: 1 of its ... weights are no finite numbers (first.weight); ..."),
    Row("a network of a million channels", content(network__arguments__channels=[10**6] * 3), EVAL,
        ONCE + " does not say how to build its network: ..."),
    Row("a network larger than its weights", content(network__arguments__channels=[4000] * 3), EVAL,
        ONCE + " does not fit: ..."),
    Row("a network of a list that holds itself", content(network__arguments__channels=LOOP), EVAL,
        ONCE + " does not say how to build its network: ..."),
    Row("an archive that unpacks to a hundred times its size", bomb, EVAL, NO_CHECKPOINT),
    Row("a network of no such backbone", content(network__backbone="x"), EVAL,
        ONCE + " needs a backbone 'x': backbones.BACKBONES has ..."),
    Row("a step that is text", content(step="7"), EVAL, ONCE + " has no sound 'step'" + FETCH),
    Row("a step beyond all counting", content(step=10**30), EVAL, ONCE + " has no sound 'step'" + FETCH),
    Row("a recipe that is a list", content(recipe=[1]), EVAL, ONCE + " has no sound 'recipe'" + FETCH),
    Row("data that is a number", content(data=3), DERAIN, ONCE + " has no sound 'data'" + FETCH),
    Row("a teacher that is a CSV", put(LATEST, b"a,b\n"), STUDENT, NO_CHECKPOINT),
    Row("a teacher of another size", nothing, STUDENT + " --channels 3,3,4",
        ONCE + " does not fit: first.weight is (2, 3, 3, 3), expected (3, 3, 3, 3)...; see --channels ..."),
    Row("an exported CSV", put(LATEST, b"a,b\n"), EXPORT, NO_CHECKPOINT),
    # ---- checkpoints to resume from
    Row("nothing to resume", nothing, TRAIN + " --resume",
        "{here}/new/net_latest does not exist: start without --resume"),
    Row("the network alone", content(training=None), RESUME,
        ONCE + " holds the network alone: start from it by --weights or --teacher instead"),
    Row("no recipe", content(recipe=None), RESUME, ONCE + " has no sound 'recipe'" + FETCH),
    Row("no counts", content(counts=None), RESUME, ONCE + " has no sound 'counts'" + START_ANEW),
    Row("a step that is a fraction", content(step=1.5), RESUME, ONCE + " has no sound 'step'" + FETCH),
    Row("a step before the first", content(step=-5), RESUME, ONCE + " says it has step -5" + FETCH),
    Row("no step", content(step=None), RESUME, ONCE + " has no sound 'step'" + FETCH),
    Row("training that is a list", content(training=[]), RESUME,
        ONCE + " has no sound 'training'" + START_ANEW),
    Row("no optimizer", content(training__optimizer=None), RESUME,
        ONCE + " has no sound 'optimizer'" + START_ANEW),
    Row("an optimizer of other weights", content(training__optimizer__state={}), RESUME,
        ONCE + ": its optimizer does not belong to its network" + START_ANEW),
    Row("an optimizer of texts", content(training__optimizer={"state": "xxxx"}), RESUME,
        ONCE + " cannot be resumed from (KeyError: 'param_groups')" + START_ANEW),
    Row("no best", content(training__best=None), RESUME, ONCE + " has no sound 'best'" + START_ANEW),
    Row("a best that is no number", content(training__best=float("nan")), RESUME,
        ONCE + " has no sound 'best'" + START_ANEW),
    Row("an average to go on with", content(training__beside={}), RESUME + " --ema 0.9",
        ONCE + " was begun with --ema 0.0, not 0.9: ..."),
    Row("another rate", nothing, RESUME + " --lr 0.1",
        ONCE + " was begun with --lr 0.0005, not 0.1: give the same to resume it, ..."),
    # ---- places, rights, other runs
    Row("a folder that another training holds", held, TRAIN,
        "another training is at work in {here}/new: wait for it, or give another --save_path"),
    Row("a file where a folder is to be", put("new", b""), TRAIN,
        "{here}/new cannot be written to: File exists: give another --save_path"),
    Row("a log that is a folder", instead("teacher/log.jsonl", os.mkdir), RESUME,
        "{here}/teacher/log.jsonl is a folder, not a file: ..."),
    Row("a log that is a pipe", instead("teacher/log.jsonl", os.mkfifo), RESUME,
        "{here}/teacher/log.jsonl is a pipe or a device, not a file: ..."),
    Row("results among the inputs", nothing, EVAL + " --save_path {here}/data",
        "--save_path {here}/data is, or holds, {here}/data/..., which is read: give another folder"),
    Row("an export over another run", nothing, EXPORT + "/../student",
        "{here}/student has a net_latest already: take it away, or give another --save_path"),
    Row("scores into a folder", nothing, PSNR + " --csv {here}/real",
        "{here}/real is a folder, and cannot be written to: choose another name"),
    Row("scores onto a full device", nothing, PSNR + " --csv /dev/full",
        "/dev/full cannot be written: No space left on device: make room, then run it again"),
    Row("a folder that may not be read", closed("data/rain_data_test_Heavy/rain/X2", 0o000), EVAL,
        "{here}/data/rain_data_test_Heavy/rain/X2..." + RIGHTS, without_rights),
    Row("a folder that may not be listed", closed("real", 0o311), STUDENT,
        "{here}/real cannot be listed" + RIGHTS, without_rights),
    Row("a picture that may not be read", closed(TESTED, 0o000), EVAL,
        LOST + " cannot be read" + RIGHTS, without_rights),
    Row("a checkpoint that may not be read", closed(LATEST, 0o000), EVAL,
        ONCE + " cannot be read" + RIGHTS, without_rights),
    Row("a folder that may not be written to", closed(".", 0o555), TRAIN,
        "{here}/new cannot be written to" + RIGHTS, without_rights),
    Row("results where nothing may be written", closed(".", 0o555), EVAL,
        "{here}/out cannot be made" + RIGHTS, without_rights),
    Row("photographs, and nowhere to write", closed(".", 0o555), DERAIN,
        "2 of 2 could not be derained: ...", without_rights),
]
# fmt: on


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(BACKBONES, "OneConvolution", OneConvolution)
        trained(teacher(folder, **TINY))
        trained(student(folder, **TINY))
    return folder


@pytest.fixture
def here(whole: Path) -> Iterator[Path]:
    """A place of its own for each row, which a user without rights reaches too."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "here"
        shutil.copytree(whole, place)
        for path in (place.parent, place, *place.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)
        yield place
        HELD.clear()
        place.chmod(0o777)


def tree(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """What lies below `folder`, but for new things that a script may leave."""
    found = {}
    for path in folder.rglob("*"):
        if path.name == ".lock":  # which to read and close would give up
            continue
        about = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(about.st_mode) else b""
        found[str(path)] = (about.st_mode, about.st_size * bool(content), content)
    return found


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.what)
def test_a_bad_input_gets_its_line_and_nothing_is_lost(row: Row, here: Path) -> None:
    row.made(here)
    before = tree(here)
    ended = called(here.parent / "said", row.command.format(here=here), row.before)
    expected = re.escape(row.line.replace("{here}", str(here))).replace(r"\.\.\.", ".*")
    assert re.fullmatch(expected, ended.line()), ended.line()
    after = tree(here)
    assert {path for path in before if after.get(path) != before[path]} == set()
    left = (path for path in after if path not in before)
    assert not [path for path in left if ".unfinished" in path]


# ---------------------------------------------------------------------------- strange, and nothing is wrong


def named(*names: str) -> Made:
    """The test pairs called so, on both sides."""

    def made(here: Path) -> None:
        for number, name in enumerate(names, 1):
            for side, old in (("rain/X2", f"norain-{number}x2.png"), ("norain", f"norain-{number}.png")):
                folder = here / "data/rain_data_test_Heavy" / side
                (folder / old).rename(folder / f"{name}.png")

    return made


FOREIGN = b"\xff\xfe\x00{}\n[]\n" + b"[" * 100_000 + b'\n{"step": true}\n{"step": 1, "total": "x"}\n'
STRANGE: list[tuple[str, Made, str]] = [
    ("names that are not UTF-8", named("caf\udce9", "\udcff"), EVAL.replace(" --page False", "")),
    ("photographs of such names", named("caf\udce9", "\udcff"), DERAIN + " --compare"),
    ("scores of such names", named("caf\udce9", "\udcff"), PSNR + " --csv {here}/out/scores.csv"),
    ("digits that are no decimals", named("²", "x②"), EVAL),
    ("names of 243 characters", named("n" * 239, "m" * 239), EVAL.replace(" --page False", "")),
    ("a log of foreign bytes", put("teacher/log.jsonl", FOREIGN), RESUME),
    ("an exported log of foreign bytes", put("teacher/log.jsonl", FOREIGN), EXPORT),
]


@pytest.mark.parametrize(("what", "made", "command"), STRANGE, ids=[row[0] for row in STRANGE])
def test_a_strange_input_is_an_input(what: str, made: Made, command: str, here: Path) -> None:
    made(here)
    ended = called(here.parent / "said", command.format(here=here), with_one_convolution)
    assert ended.code == 0 and not ended.err.strip(), ended
    scores = here / "out/scores.json"
    if scores.exists():
        files = [here / "out" / row["file"] for row in read_scores(scores)["images"]]
        assert len(files) == 2 and all(map(Path.is_file, files))


def test_scores_of_any_content_are_passed_over_and_set_aside(here: Path) -> None:
    (here / "out").mkdir()
    (here / "out/scores.json").write_bytes(FOREIGN)
    ended = called(here.parent / "said", f"metrix_code/tables.py --results {here}/out --kinds measured")
    (line,) = ended.err.splitlines()
    assert ended.code == 0 and line.startswith(
        f"passed over: {here}/out/scores.json cannot be read as scores"
    )
    assert called(here.parent / "said", EVAL.format(here=here), with_one_convolution).code == 0
    assert (here / "out/earlier-1-scores.json").read_bytes() == FOREIGN
    assert len(read_scores(here / "out/scores.json")["images"]) == 2


def test_a_link_to_scores_stays_one(here: Path) -> None:
    (here / "link.csv").symlink_to(here / "far.csv")
    assert called(here.parent / "said", PSNR.format(here=here) + f" --csv {here}/link.csv").code == 0
    assert (here / "link.csv").is_symlink() and (here / "far.csv").read_text().startswith("derained,clean")


def test_an_eval_whose_reader_is_killed_keeps_its_scores(here: Path) -> None:
    ended = called(here.parent / "said", EVAL.format(here=here) + " --workers 1", second_image_kills)
    assert ended.line() == (
        "a process that reads images ahead was killed, as a machine does whose memory is used up: "
        "lower --workers, then run it again"
    )
    assert [row["name"] for row in read_scores(here / "out/scores.json")["images"]] == ["norain-1x2"]


def second_image_kills() -> None:
    """The process that reads the second image dies, as by the kernel where memory is short."""
    import scoring

    with_one_convolution()
    true_image = scoring.Images.__getitem__

    def image(self: Any, index: int) -> Any:
        if index == 1:
            time.sleep(1)  # the first has arrived
            os.kill(os.getpid(), signal.SIGKILL)
        return true_image(self, index)

    scoring.Images.__getitem__ = image  # type: ignore[method-assign]
