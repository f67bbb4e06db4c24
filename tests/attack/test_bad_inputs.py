"""The table of bad inputs: what is wrong, what is run, and the one line that comes of it.

Each row begins with the same small place, `whole` of conftest.py: `{here}`; `...` is any text. Whatever is
refused, the exit code is 2, standard error has that line and nothing else, and nothing that was there is
changed. What an ordinary test refuses by the same line has no row here.
"""

import ctypes
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from machinery.checkpoints import load_checkpoint
from metrix_code.scores import read_scores
from tests.attack.scripts import TINY, called
from tests.small import arguments

TRAIN = "train_Rain200H.py --data_path {here}/data --save_path {here}/new " + " ".join(arguments(TINY))
STUDENT = TRAIN.replace("train_Rain200H.py", "train_Rain200H_real.py --teacher {here}/teacher")
STUDENT += " --real_path {here}/real"
RESUME = TRAIN.replace("{here}/new", "{here}/teacher") + " --resume --steps 3"
EVAL = "eval_Rain200H.py --data_path {here}/data --logdir {here}/teacher --save_path {here}/out"
EVAL += " --use_GPU False --page False"
PAGE = EVAL.replace(" --page False", "")
DERAIN = "derain.py {here}/data/rain_data_test_Heavy/rain/X2 --logdir {here}/teacher --save_path {here}/out"
DERAIN += " --use_GPU False"
PSNR = "metrix_code/psnr.py --res_path {here}/data/rain_data_test_Heavy/rain/X2"
PSNR += " --gt_path {here}/data/rain_data_test_Heavy/norain"
EXPORT = "export.py --logdir {here}/teacher --save_path {here}/out"

TESTED = "data/rain_data_test_Heavy/rain/X2/norain-1x2.png"
TRAINED = "data/rain_data_train_Heavy/rain/X2/norain-1x2.png"
LATEST = "teacher/net_latest"

# ------------------------------------------------------------------------------- what is done to the place

Made = Callable[[Path], object]


def put(name: str, what: bytes | Callable[[Path], object]) -> Made:
    """Bytes, or anything else, in a file's place."""

    def made(here: Path) -> None:
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).unlink(missing_ok=True)
        (here / name).write_bytes(what) if isinstance(what, bytes) else what(here / name)

    return made


def cut(name: str, length: int) -> Made:
    return lambda here: (here / name).write_bytes((here / name).read_bytes()[:length])


def content(**changes: Any) -> Made:
    """The teacher's checkpoint with keys changed, or, by None, taken away. `network__backbone` is inner."""

    def made(here: Path) -> None:
        whole = load_checkpoint(here / LATEST)
        for key, value in changes.items():
            *outer, last = key.split("__")
            inner = reduce(getitem, outer, whole)
            inner[last] = value
            if value is None:
                del inner[last]
        torch.save(whole, here / LATEST)

    return made


def bomb(here: Path) -> None:
    """The checkpoint with one thing more in its archive, which is all of zeros and compressed."""
    with zipfile.ZipFile(here / LATEST, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net_latest/data/more", bytes(10_000_000))


def nothing(here: Path) -> None:
    pass


def closed(name: str, rights: int) -> Made:
    return lambda here: (here / name).chmod(rights)


def without_rights() -> None:
    """To root no right is missing until it gives them up. It stays root: the project may lie in its home."""
    if os.geteuid() == 0:
        version_3, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(version_3, none) == 0


class Row(NamedTuple):
    what: str
    made: Made
    command: str
    line: str
    before: Callable[[], None] | None = None


LOST = "1 of 2 images were not scored, the first: {here}/" + TESTED
ONCE = "{here}/" + LATEST
NO_WEIGHTS = ONCE + " is not a checkpoint of SID or SSID-KD: no weights under 'net'"
NO_CHECKPOINT = ONCE + " is not a checkpoint or is truncated; retrain or download it again"
RIGHTS = ": Permission denied: change its permissions or choose another place"
# fmt: off
TABLE = [
    # ---- pictures
    Row("a broken training image", cut(TRAINED, 100), TRAIN,
        "{here}/" + TRAINED + " is not an image, or is cut short (100 bytes): ..."),
    Row("names too long to be added to",
        lambda here: (here / TESTED).rename((here / TESTED).with_name("n" * 251 + ".png")),
        DERAIN + " --compare --streaks",
        "1 of 2 could not be derained: {here}/data/...nnn.png"),
    # ---- checkpoints
    Row("a CSV as a checkpoint", put(LATEST, b"a,b\n1,2\n"), EVAL, NO_CHECKPOINT),
    Row("an empty checkpoint", put(LATEST, b""), EVAL, NO_CHECKPOINT),
    Row("a checkpoint cut short", cut(LATEST, 5000), EVAL, NO_CHECKPOINT),
    Row("a tensor as a checkpoint", put(LATEST, partial(torch.save, torch.zeros(3))), EVAL, NO_WEIGHTS),
    Row("a net that is a list", content(net=[1, 2]), EVAL, NO_WEIGHTS),
    Row("a network larger than its weights", content(network__arguments__channels=[4000] * 3), EVAL,
        ONCE + " cannot be used here (RuntimeError: Error(s) in loading state_dict for ...: size ..."),
    Row("an archive that unpacks to a hundred times its size", bomb, EVAL,
        ONCE + " is a zip bomb: its entries are larger than the file"),
    Row("a network of no such backbone", content(network__backbone="x"), EVAL,
        ONCE + " needs a backbone 'x': backbones.BACKBONES has ..."),
    # ---- checkpoints to resume from
    Row("nothing to resume", nothing, TRAIN + " --resume",
        "{here}/new/net_latest does not exist: start without --resume"),
    Row("the network alone", content(training=None), RESUME,
        ONCE + " holds only the network: start from it with --weights instead"),
    # ---- places, rights
    Row("a training in a folder whose name is not UTF-8", nothing, TRAIN.replace("/new", "/caf\udce9"),
        "{here}/caf\\udce9 cannot be written to (UnicodeEncodeError: ...: give another --save_path"),
    Row("a file where a folder is to be", put("new", b""), TRAIN,
        "{here}/new cannot be written to: File exists: give another --save_path"),
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


@pytest.fixture
def here(whole: Path) -> Iterator[Path]:
    """A place of its own for each row, which a user without rights reaches too."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "here"
        shutil.copytree(whole, place)
        for path in (place.parent, place, *place.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)
        yield place
        place.chmod(0o777)


def tree(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {
        path: (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.what)
def test_a_bad_input_gets_its_line_and_nothing_is_lost(row: Row, here: Path) -> None:
    row.made(here)
    before = tree(here)
    ended = called(here.parent / "said", row.command.format(here=here), row.before)
    expected = re.escape(row.line.replace("{here}", str(here))).replace(r"\.\.\.", ".*")
    assert re.fullmatch(expected, ended.line()), ended.line()
    after = tree(here)
    assert {path for path in before if after.get(path) != before[path]} == set()
    assert not [path for path in after if ".unfinished" in path.name]


# ---------------------------------------------------------------------------- strange, and nothing is wrong


def named(*names: str) -> Made:
    """The test pairs called so, on both sides."""

    def made(here: Path) -> None:
        for number, name in enumerate(names, 1):
            for side, old in (("rain/X2", f"norain-{number}x2.png"), ("norain", f"norain-{number}.png")):
                folder = here / "data/rain_data_test_Heavy" / side
                (folder / old).rename(folder / f"{name}.png")

    return made


def renamed(*names: str) -> Made:
    """Folders with a name that is not UTF-8, as are those of the images in them."""
    return lambda here: [(here / name).rename(here / f"{name}\udce9") for name in names]


STUDENT_OF_ODD_NAMES = STUDENT.replace("{here}/data", "{here}/data\udce9").replace("/real", "/real\udce9")
STUDENT_OF_ODD_NAMES += " --val_every 1"
STRANGE: list[tuple[str, Made, str]] = [
    ("names that are not UTF-8", named("caf\udce9", "\udcff"), PAGE),
    ("photographs of such names", named("caf\udce9", "\udcff"), DERAIN + " --compare"),
    ("scores of such names", named("caf\udce9", "\udcff"), PSNR),
    ("digits that are no decimals", named("²", "x②"), EVAL),
    ("names of 243 characters", named("n" * 239, "m" * 239), PAGE),
    ("scores of foreign bytes, which are set aside", put("out/scores.json", b"\xff\xfe[" * 9), EVAL),
    ("training data in such folders", renamed("data", "real"), STUDENT_OF_ODD_NAMES),
]


@pytest.mark.parametrize(("what", "made", "command"), STRANGE, ids=[row[0] for row in STRANGE])
def test_a_strange_input_is_an_input(what: str, made: Made, command: str, here: Path) -> None:
    made(here)
    ended = called(here.parent / "said", command.format(here=here))
    assert ended.code == 0 and not ended.err.strip(), ended
    scores = here / "out/scores.json"
    if scores.exists():
        files = [here / "out" / row["file"] for row in read_scores(scores)["images"]]
        assert len(files) == 2 and all(map(Path.is_file, files))
