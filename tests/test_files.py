"""Files in and out: what a strange one gets for an answer, whole files or none, and errors in one line."""

import errno
import json
import os
import signal
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import utils
from machinery.checkpoints import find_checkpoint
from tests import layouts
from tests.small import ROOT, wait_for
from utils import UserError, file_errors, image_size, list_images, read_image, write_atomically, write_image


def png(width: int, height: int, data: bytes = b"", bits: int = 8, colour: int = 2) -> bytes:
    """A PNG whose header says so; `data` is what follows it."""
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return content


def refusal(path: Path) -> str:
    """The one line that reading `path` gives."""
    with pytest.raises(UserError) as refused:
        read_image(path)
    text = str(refused.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


def forked(main: Callable[[], None], output: int, encoding: str = "utf-8") -> tuple[int, int]:
    """Begins `main` as a script of its own that prints to `output`: (its process, where its errors go)."""
    said, says = os.pipe()
    if child := os.fork():
        os.close(says)
        return child, said
    code = 70
    try:
        os.dup2(output, 1)
        os.dup2(says, 2)
        sys.stdout, sys.stderr, sys.argv = open(1, "w", encoding=encoding), open(2, "w", buffering=1), ["1"]  # noqa: SIM115
        utils.run(main)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 71
    finally:
        os._exit(code)


def ended(child: tuple[int, int]) -> tuple[int, str]:
    """Its exit code, and what it wrote to standard error."""
    with open(child[1]) as said:  # noqa: PTH123
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child[0], 0)[1]), text


# ------------------------------------------------------------------------------------------- strange pictures


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (png(65000, 65000), "says it is 65000x65000, more than 268,435,456 pixels: cut it up"),
        (png(16385, 16384), "more than 268,435,456 pixels"),
        (png(1 << 28, 1), "is not an image"),  # few pixels, but wider than OpenCV takes
        (png(0, 5), "is not an image"),
        (png(16000, 16000), "is not an image, or is cut short (65 bytes)"),  # within the bound, and a lie
        (b"", "is not an image, or is cut short (0 bytes): fetch it again"),
        (b"\x89PNG\r\n\x1a\n", "is not an image"),
        (b"GIF89a" + bytes(40), "is of the unsupported format GIF"),
        (b"a,b\n1,2\n", "is not an image"),
    ],
)
def test_a_picture_that_is_none_or_lies_about_its_size(tmp_path, content, says):
    path = tmp_path / "1.png"
    path.write_bytes(content)
    assert says in refusal(path)


def test_a_true_bomb_is_refused_unread(tmp_path):
    """Of 33 KB, and as RGB more than 0.8 GB: its header alone is read."""
    path = tmp_path / "bomb.png"
    path.write_bytes(png(17_000, 16_000, bytes(16_000 * 2126), bits=1, colour=0))
    assert "says it is 17000x16000" in refusal(path)


def test_a_header_broken_anywhere_never_passes_for_a_picture(tmp_path):
    path = tmp_path / "1.png"
    write_image(path, layouts.clean_image(1, (8, 8)))
    whole = path.read_bytes()
    for place in range(33):  # the signature and IHDR, whose checksum ends there
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        assert "1.png" in refusal(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_cut_short_in_any_format(tmp_path, suffix):
    path = tmp_path / f"1{suffix}"
    write_image(path, layouts.clean_image(1))
    whole = path.read_bytes()
    assert image_size(path) == read_image(path).shape[:2] == layouts.SIZE
    for length in (len(whole) // 3, len(whole) * 9 // 10):
        path.write_bytes(whole[:length])
        assert "is cut short" in refusal(path)


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.png"))
    for name, to in (("null", "/dev/null"), ("gone", "nowhere"), ("round", "round.png")):
        (tmp_path / f"{name}.png").symlink_to(to)
    for name, says in (
        ("pipe", "is a pipe or a device, not an image: take it away"),
        ("folder", "is a folder, not an image"),
        ("socket", "is a pipe or a device, not an image"),
        ("null", "is a pipe or a device, not an image"),
        ("gone", "cannot be read: No such file or directory"),
        ("round", "cannot be read: Too many levels of symbolic links"),
        ("nothing", "cannot be read: No such file or directory"),
        ("n" * 300, "cannot be read: File name too long: choose a shorter name"),
    ):
        assert says in refusal(tmp_path / f"{name}.png")
        with pytest.raises(UserError, match=name):
            image_size(tmp_path / f"{name}.png")
    assert [path.stem for path in list_images(tmp_path)] == ["gone", "null", "pipe", "round", "socket"]


# ------------------------------------------------------------------------------------------------------ names


def test_digits_that_are_no_numbers_sort_as_letters(tmp_path):
    for name in ("10", "2", "x²", "②", "٣", "2²"):
        (tmp_path / f"{name}.png").touch()
    assert [path.stem for path in list_images(tmp_path)][:3] == ["2", "2²", "٣"]  # an Arabic 3 is a number
    assert len(list_images(tmp_path)) == 6


def test_a_name_that_is_not_utf8_is_read_written_and_printed(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    write_image(path, layouts.clean_image(1))
    assert list_images(tmp_path) == [path]
    assert read_image(path).shape == (*layouts.SIZE, 3)

    def main() -> None:
        print(path)
        raise UserError(f"{path}: a\nb")

    for encoding in ("utf-8", "ascii"):
        reader, writer = os.pipe()
        child = forked(main, writer, encoding)
        os.close(writer)
        assert ended(child) == (2, f"1: {tmp_path}/caf\\udce9.png: a\\nb\n")
        assert os.read(reader, 1000).decode() == f"{tmp_path}/caf\\udce9.png\n"
        os.close(reader)


# ---------------------------------------------------------------------------------------------- whole, or not


def writes(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def test_the_longest_name_is_written(tmp_path):
    for name in ("n" * 251 + ".png", "n" * 5 + "." + "s" * 249):
        write_atomically(tmp_path / name, writes("whole"))
        assert (tmp_path / name).read_text() == "whole"


def test_a_link_stays_and_its_file_is_written(tmp_path):
    far = tmp_path / "far"
    far.mkdir()
    (far / "file").write_text("old")
    for name in ("file", "not yet"):
        link = tmp_path / f"link to {name}"
        link.symlink_to(far / name)
        write_atomically(link, writes("new"))
        assert link.is_symlink()
        assert (far / name).read_text() == "new"
    assert {path.name for path in far.iterdir()} == {"file", "not yet"}


def test_a_device_or_a_pipe_is_written_to_and_a_folder_is_not(tmp_path):
    write_atomically(Path("/dev/null"), writes("away"))
    assert Path("/dev/null").is_char_device()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, writes("through"))
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert pipe.is_fifo()
    with pytest.raises(UserError, match=f"{tmp_path} is a folder, and cannot be written to: choose another"):
        write_atomically(tmp_path, writes("x"))
    with pytest.raises(UserError, match="pipe/file cannot be written: File exists"):
        write_atomically(pipe / "file", writes("x"))


def test_leftovers_of_killed_runs_are_swept_and_others_work_is_not(tmp_path):
    def write(path: Path) -> None:
        path.write_text("half")
        (tmp_path / "begun").touch()
        time.sleep(60)

    (tmp_path / ".unfinished-notes").write_text("the user's own")
    child, _ = forked(lambda: write_atomically(tmp_path / "net_latest", write), 1)
    wait_for(tmp_path / "begun")
    (unfinished,) = tmp_path.glob(".unfinished-*-????????")
    assert unfinished.read_text() == "half"
    utils.sweep(tmp_path)
    assert unfinished.exists()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    utils.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".unfinished-notes", "begun"}
    utils.sweep(tmp_path / "nowhere")


# ----------------------------------------------------------------------------------------- errors in one line


def throw(error: Exception) -> None:
    raise error


def about_it(action: Callable[[], object], **options: Any) -> str:
    with pytest.raises(UserError) as told, file_errors(Path("x.json"), "fetch it again", **options):
        action()
    assert "\n" not in str(told.value)
    return str(told.value)


def test_what_goes_wrong_with_a_named_file_is_one_line_that_names_it():
    no_file = about_it(lambda: Path("nowhere").read_text())
    assert no_file == "x.json cannot be read: No such file or directory: fetch it again"
    no_room = partial(throw, OSError(errno.ENOSPC, "No space left on device"))
    assert "written: No space left on device: make room" in about_it(no_room, done="written")
    assert "cannot be read: no memory holds it" in about_it(partial(throw, MemoryError()))
    for library in (np, torch):
        assert "no memory holds it" in about_it(partial(library.empty, 1 << 50))
    broken = about_it(lambda: json.loads("{"), kinds=(ValueError,))
    assert broken.endswith("column 2 (char 1)): fetch it again")
    none = about_it(lambda: cv2.imencode(".none", np.zeros((2, 2))), kinds=(cv2.error,))
    assert "cannot be read (error: OpenCV" in none
    assert about_it(partial(throw, UserError("as it is"))) == "as it is"


def test_an_error_is_one_line_whatever_the_name_and_wherever_it_was_raised():
    error = UserError("a\nb\u2028\udce9.png is cut short")
    assert str(error) == "a\\nb\\u2028\\udce9.png is cut short"
    assert str(UserError(str(error))) == str(error)
    try:
        raise error
    except UserError:
        wrapped = torch._utils.ExceptionWrapper(sys.exc_info(), where="in a worker")
    with pytest.raises(UserError) as raised:  # as the loader raises it again
        wrapped.reraise()
    assert str(raised.value) == str(error)
    assert str(UserError("")) == ""


def exit_of(main: Callable[[], Any]) -> int | str | None:
    with pytest.raises(SystemExit) as left:
        utils.run(main)
    return left.value.code


def test_a_script_ends_in_one_line_for_what_is_no_bug(capsys):
    memory = "the memory is used up (MemoryError: Unable to allocate"
    lower = "lower --batchSize, --patch_size, --tile or --workers, whichever this script has"
    killed, fewer = "reads images ahead was killed, ", "lower --workers, then run it again"
    cases: list[tuple[Callable[[], Any], str, str]] = [
        (lambda: np.empty(1 << 50), memory, lower),
        (lambda: Path("/nowhere/at all").read_text(), "", ": /nowhere/at all: No such file or directory"),
        (partial(throw, ConnectionResetError()), killed, fewer),
        (partial(throw, EOFError()), killed, fewer),
        (partial(throw, RuntimeError("DataLoader worker (pid 7) is killed")), killed, fewer),
    ]
    for main, begins, ends in cases:
        assert exit_of(main) == 2
        said = capsys.readouterr().err
        assert begins in said and said.endswith(f"{ends}\n") and said.count("\n") == 1
    assert exit_of(lambda: sys.exit(1)) == 1


def test_a_defect_of_ours_keeps_its_traceback():
    one: list[type[Exception]] = [RuntimeError, OSError, KeyError]
    other: list[type[Exception]] = [RuntimeError, ValueError, KeyError]
    for defect in one:
        with pytest.raises(defect, match="of ours"):
            utils.run(partial(throw, defect("of ours")))
    for defect in other:
        with pytest.raises(defect, match="of ours"), file_errors("x.json"):
            throw(defect("of ours"))


def test_a_reader_that_has_gone_and_a_full_disk_behind_standard_output():
    def many() -> None:
        for n in range(100_000):
            print(n)

    def few() -> None:
        print("a line that stays in the buffer")

    def error() -> None:
        few()
        raise UserError("x")

    for main, said in ((many, ""), (few, ""), (error, "1: x\n")):
        reader, writer = os.pipe()
        os.close(reader)
        assert ended(forked(main, writer)) == (2 if said else 1, said)
        os.close(writer)
        full = os.open("/dev/full", os.O_WRONLY)
        line = "1: standard output cannot be written: No space left on device: make room, then run it again\n"
        assert ended(forked(main, full)) == (2, said + line)
        os.close(full)


def test_a_model_that_comes_with_the_project_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = Path("trained_model/Rain800-light+Real")
    assert find_checkpoint(shipped, "").samefile(ROOT / shipped / "pretrained/net_latest")
    (tmp_path / shipped).mkdir(parents=True)  # one's own comes first, even where it is empty
    with pytest.raises(UserError, match=r"net_latest does not exist: train one"):
        find_checkpoint(shipped, "train one")
