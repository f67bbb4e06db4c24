"""The table of bad inputs: what is wrong, what is run, and the one line that comes of it.

Each row begins with the same small place, `here` of conftest.py; `...` is any text. Whatever is refused, the
exit code is 2, standard error has that line and nothing else, and nothing that was there is changed. What an
ordinary test refuses by the same line has no row here.
"""

import ctypes
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from machinery.checkpoints import load_checkpoint
from metrix_code.scores import read_scores
from tests.attack.scripts import DERAIN, EVAL, PAGE, PSNR, RESUME, STUDENT, TRAIN, called

TESTED = "data/rain_data_test_Heavy/rain/X2/norain-1x2.png"
TRAINED = "data/rain_data_train_Heavy/rain/X2/norain-1x2.png"
LATEST = "teacher/net_latest"

# ------------------------------------------------------------------------------- what is done to the place

Damage = Callable[[Path], object]


def put(name: str, content: bytes) -> Damage:
    """Bytes in a file's place."""

    def damage(here: Path) -> None:
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes(content)

    return damage


def cut(name: str, length: int) -> Damage:
    return lambda here: (here / name).write_bytes((here / name).read_bytes()[:length])


def checkpoint(change: Callable[[dict[str, Any]], object]) -> Damage:
    """The teacher's checkpoint, changed."""

    def damage(here: Path) -> None:
        content = load_checkpoint(here / LATEST)
        change(content)
        torch.save(content, here / LATEST)

    return damage


def bomb(here: Path) -> None:
    """The checkpoint with one thing more in its archive, which is all of zeros and compressed."""
    with zipfile.ZipFile(here / LATEST, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net_latest/data/more", bytes(10_000_000))


def nothing(here: Path) -> None:
    pass


def closed(name: str, rights: int) -> Damage:
    return lambda here: (here / name).chmod(rights)


def named(*names: str) -> Damage:
    """The test pairs called so, on both sides."""

    def damage(here: Path) -> None:
        for number, name in enumerate(names, 1):
            for side, old in (("rain/X2", f"norain-{number}x2.png"), ("norain", f"norain-{number}.png")):
                folder = here / "data/rain_data_test_Heavy" / side
                (folder / old).rename(folder / f"{name}.png")

    return damage


def not_utf8(*names: str) -> Damage:
    return lambda here: [(here / name).rename(here / f"{name}\udce9") for name in names]


# --------------------------------------------------------------------------------------------- the table


class Row(NamedTuple):
    what: str
    damage: Damage
    command: str
    line: str = ""  # none: it is strange, and nothing is wrong


LOST = "1 of 2 images were not scored, the first: {here}/" + TESTED
ONCE = "{here}/" + LATEST
NO_CHECKPOINT = ONCE + " is not a checkpoint or is truncated; retrain or download it again"
RIGHTS = ": Permission denied: change its permissions or choose another place"
STUDENT_OF_ODD_NAMES = STUDENT.replace("{here}/data", "{here}/data\udce9").replace("/real", "/real\udce9")
# fmt: off
TABLE = [
    # ---- pictures
    Row("a broken training image", cut(TRAINED, 100), TRAIN,
        "{here}/" + TRAINED + " is not an image, or is cut short (100 bytes): ..."),
    # ---- checkpoints
    Row("a CSV as a checkpoint", put(LATEST, b"a,b\n1,2\n"), EVAL, NO_CHECKPOINT),
    Row("an empty checkpoint", put(LATEST, b""), EVAL, NO_CHECKPOINT),
    Row("a checkpoint cut short", cut(LATEST, 5000), EVAL, NO_CHECKPOINT),
    Row("a net that is a list", checkpoint(lambda content: content.update(net=[1, 2])), EVAL,
        ONCE + " is not a checkpoint of SID or SSID-KD: no weights under 'net'"),
    Row("a network larger than its weights",
        checkpoint(lambda content: content["network"]["arguments"].update(channels=[4000] * 3)), EVAL,
        ONCE + " cannot be used here (RuntimeError: Error(s) in loading state_dict for ...: size ..."),
    Row("an archive that unpacks to a hundred times its size", bomb, EVAL,
        ONCE + " is a zip bomb: its entries are larger than the file"),
    Row("a network of no such backbone",
        checkpoint(lambda content: content["network"].update(backbone="x")), EVAL,
        ONCE + " needs a backbone 'x': backbones.BACKBONES has ..."),
    # ---- checkpoints to resume from
    Row("nothing to resume", nothing, TRAIN + " --resume",
        "{here}/out/net_latest does not exist: start without --resume"),
    Row("the network alone", checkpoint(lambda content: content.pop("training")), RESUME,
        ONCE + " holds only the network: start from it with --weights instead"),
    # ---- places, rights
    Row("a training in a folder whose name is not UTF-8", nothing, TRAIN.replace("/out", "/caf\udce9"),
        "{here}/caf\\udce9 cannot be written to (UnicodeEncodeError: ...: give another --save_path"),
    Row("a file where a folder is to be", put("out", b""), TRAIN,
        "{here}/out cannot be written to: File exists: give another --save_path"),
    Row("a folder that may not be read", closed("data/rain_data_test_Heavy/rain/X2", 0o000), EVAL,
        "{here}/data/rain_data_test_Heavy/rain/X2..." + RIGHTS),
    Row("a folder that may not be listed", closed("real", 0o311), STUDENT,
        "{here}/real cannot be listed" + RIGHTS),
    Row("a picture that may not be read", closed(TESTED, 0o000), EVAL, LOST + " cannot be read" + RIGHTS),
    Row("a checkpoint that may not be read", closed(LATEST, 0o000), EVAL, ONCE + " cannot be read" + RIGHTS),
    Row("a folder that may not be written to", closed(".", 0o555), TRAIN,
        "{here}/out cannot be written to" + RIGHTS),
    Row("results where nothing may be written", closed(".", 0o555), EVAL,
        "{here}/out cannot be made" + RIGHTS),
    Row("photographs, and nowhere to write", closed(".", 0o555), DERAIN,
        "2 of 2 could not be derained: ..."),
    # ---- strange, and nothing is wrong
    Row("names that are not UTF-8", named("caf\udce9", "\udcff"), PAGE),
    Row("photographs of such names", named("caf\udce9", "\udcff"), DERAIN + " --compare"),
    Row("scores of such names", named("caf\udce9", "\udcff"), PSNR),
    Row("training data in such folders", not_utf8("data", "real"), STUDENT_OF_ODD_NAMES + " --val_every 1"),
    Row("digits that are no decimals", named("²", "x②"), EVAL),
    Row("names of 243 characters", named("n" * 239, "m" * 239), PAGE),
    Row("scores of foreign bytes, which are set aside", put("out/scores.json", b"\xff\xfe[" * 9), EVAL),
]
# fmt: on


def without_rights() -> None:
    """To root no right is missing until it gives them up."""
    if os.geteuid() == 0:
        version_3, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(version_3, none) == 0


def tree(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {
        path: (path.stat().st_mode, path.read_bytes() if path.is_file() and os.access(path, os.R_OK) else b"")
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.what)
def test_a_bad_input_gets_its_line_and_nothing_is_lost(row: Row, here: Path) -> None:
    row.damage(here)
    before = tree(here)
    ended = called(here.parent / "said", row.command.format(here=here), without_rights)
    after = tree(here)
    assert not [path for path in after if ".unfinished" in path.name]
    if row.line:
        expected = re.escape(row.line.replace("{here}", str(here))).replace(r"\.\.\.", ".*")
        assert re.fullmatch(expected, ended.line()), ended.line()
        assert {path for path in before if after.get(path) != before[path]} == set()
    else:
        assert ended.code == 0 and not ended.err.strip(), ended
        if "eval_" in row.command:
            scores = read_scores(here / "out/scores.json")
            files = [here / "out" / each["file"] for each in scores["images"]]
            assert len(files) == 2 and all(map(Path.is_file, files))
