"""Files in and out: what a strange one gets for an answer, whole files or none, and errors in one line."""

import argparse
import contextlib
import errno
import json
import os
import re
import struct
import sys
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
from machinery.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from tests import layouts
from tests.small import ROOT, refusal
from utils import UserError, file_errors, image_size, list_images, read_image, write_atomically, write_image


def png(width: int, height: int) -> bytes:
    """A PNG whose header says so, without pixels."""
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return content


def run_apart(main: Callable[[], None], output: int, encoding: str = "utf-8") -> tuple[int, str]:
    """Runs `main` as a script that prints to `output`: its exit code, and what it wrote to standard error."""
    said, says = os.pipe()
    if child := os.fork():
        os.close(says)
        with open(said) as errors:  # noqa: PTH123
            text = errors.read()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text
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


# ------------------------------------------------------------------------------------------- strange pictures


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (png(65000, 65000), "says it is 65000x65000, more than 268,435,456 pixels: cut it up"),
        (png(16385, 16384), "more than 268,435,456 pixels"),
        (png(1 << 28, 1), "cannot be read: out of memory"),  # wider than Pillow takes
        (png(0, 5), "is not an image"),
        (png(16000, 16000), "is not an image, or is cut short (65 bytes)"),  # within the bound, and a lie
        (b"", "is not an image, or is cut short (0 bytes): fetch it again"),
        (b"\x89PNG\r\n\x1a\n", "is not an image"),
        (b"GIF89a" + bytes(40), "is of the unsupported format GIF"),
        (b'<?xml version="1.0"?><svg width="9"/>', "is of the unsupported format SVG"),
        (b"a,b\n1,2\n", "is not an image"),
    ],
)
def test_a_picture_that_is_none_or_lies_about_its_size(tmp_path, content, says):
    path = tmp_path / "1.png"
    path.write_bytes(content)
    said = refusal(read_image, path)
    assert said.startswith(str(path)) and says in said


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_cut_short_in_any_format(tmp_path, suffix):
    path = tmp_path / f"1{suffix}"
    write_image(path, layouts.clean_image(1))
    whole = path.read_bytes()
    assert image_size(path) == read_image(path).shape[:2] == layouts.SIZE
    for length in (len(whole) // 3, len(whole) * 9 // 10):
        path.write_bytes(whole[:length])
        assert "is cut short" in refusal(read_image, path)


@pytest.mark.parametrize(
    ("suffix", "depth"),
    [(".png", np.uint8), (".png", np.uint16), (".jpg", np.uint8), (".tif", np.uint8), (".tif", np.uint16)],
)
def test_no_library_prints_lines_of_its_own(tmp_path, capfd, suffix, depth):
    path = tmp_path / f"1{suffix}"
    content = bytearray(cv2.imencode(suffix, layouts.clean_image(1).astype(depth))[1].tobytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)
    with contextlib.suppress(UserError):  # a JPEG has no checksum
        read_image(path)
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for name, to in (("gone", "nowhere"), ("round", "round.png")):
        (tmp_path / f"{name}.png").symlink_to(to)
    for name, says in (
        ("folder", "cannot be read: Is a directory"),
        ("gone", "cannot be read: No such file or directory"),
        ("round", "cannot be read: Too many levels of symbolic links"),
        ("nothing", "cannot be read: No such file or directory"),
        ("n" * 300, "cannot be read: File name too long"),
    ):
        path = tmp_path / f"{name}.png"
        assert f"{path} {says}" in refusal(read_image, path)
        assert str(path) in refusal(image_size, path)
    assert [path.stem for path in list_images(tmp_path)] == ["gone", "round"]


# ------------------------------------------------------------------------------------------------------ names


def test_images_are_listed_in_the_order_of_their_numbers(tmp_path):
    for name in ("10.png", "2.png", "٣.jpg", "x².bmp", ".hidden.png", "list.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["2.png", "٣.jpg", "10.png", "x².bmp"]


def test_a_name_that_is_not_utf8_is_read_written_and_printed(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    write_image(path, layouts.clean_image(1))
    assert list_images(tmp_path) == [path]
    assert read_image(path).shape == (*layouts.SIZE, 3)

    def main() -> None:
        print(path, flush=True)
        raise UserError(f"{path}: a\nb")

    for encoding in ("utf-8", "ascii"):
        reader, writer = os.pipe()
        assert run_apart(main, writer, encoding) == (2, f"1: {tmp_path}/caf\\udce9.png: a\\nb\n")
        os.close(writer)
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
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far/file")
    for text in ("new", "again"):
        write_atomically(tmp_path / "link", writes(text))
        assert (tmp_path / "link").is_symlink() and (tmp_path / "far/file").read_text() == text


def test_a_pipe_is_written_to_and_a_folder_is_not(tmp_path):
    """Not tried on /dev/null: by a fault here, root would put a file in its place."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, writes("through"))
    assert os.read(reader, 100) == b"through" and pipe.is_fifo()
    os.close(reader)
    for path, says in ((tmp_path, "Is a directory"), (pipe / "file", "File exists")):
        assert f"{path} cannot be written: {says}" in refusal(write_atomically, path, writes("x"))


def test_what_a_killed_run_left_is_reused_by_the_next_write(tmp_path):
    target, left = tmp_path / "net_latest", []

    def write(path: Path) -> None:
        assert not target.exists()  # a half-written file never has this name
        left.append(path)
        path.write_text("whole")

    write_atomically(target, write)
    target.rename(left[0])  # as a killed run leaves it
    write_atomically(target, write)
    assert [*tmp_path.iterdir()] == [target] and target.read_text() == "whole"


# ----------------------------------------------------------------------------------------- errors in one line


def throw(error: Exception) -> None:
    raise error


def about_it(action: Callable[[], object], **options: Any) -> str:
    return refusal(file_errors(Path("x.json"), "download it again", **options)(action))


def test_what_goes_wrong_with_a_named_file_is_one_line_that_names_it():
    no_file = about_it(lambda: Path("nowhere").read_text())
    assert no_file == "x.json cannot be read: No such file or directory: download it again"
    no_room = partial(throw, OSError(errno.ENOSPC, "No space left on device"))
    assert "written: No space left on device: free some space" in about_it(no_room, done="written")
    assert "cannot be read: out of memory" in about_it(partial(throw, MemoryError()))
    for library in (np, torch):
        assert "out of memory" in about_it(partial(library.empty, 1 << 50))
    broken = about_it(lambda: json.loads("{"), kinds=(ValueError,))
    assert broken.endswith("column 2 (char 1)): download it again")
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
    assert refusal(wrapped.reraise) == str(error)  # as the loader raises it again
    assert str(UserError("")) == ""


def exit_of(main: Callable[[], Any]) -> int | str | None:
    with pytest.raises(SystemExit) as left:
        utils.run(main)
    return left.value.code


def test_a_script_ends_in_one_line_for_what_is_no_bug(capsys):
    memory = "out of memory (MemoryError: Unable to allocate"
    lower = "lower --batchSize, --patch_size, --tile or --workers"
    killed = "a loader worker was killed, probably out of memory: "
    fewer = "lower --workers, then run it again, a training with --resume"
    shared = "shared memory (/dev/shm) is full: start the container with --shm-size 2g, or "
    died = "DataLoader worker (pid 7) is killed by signal: {}. It is possible that ..."
    no_room = "unable to write to file </torch_7_1_0>: No space left on device (28)"
    cases: list[tuple[Callable[[], Any], str, str]] = [
        (lambda: np.empty(1 << 50), memory, lower),
        (lambda: Path("/nowhere/at all").read_text(), "", ": /nowhere/at all: No such file or directory"),
        (partial(throw, ConnectionResetError()), killed, fewer),
        (partial(throw, EOFError()), killed, fewer),
        (partial(throw, RuntimeError(died.format("Killed"))), killed, fewer),
        (partial(throw, RuntimeError(died.format("Bus error"))), shared, fewer),
        (partial(throw, RuntimeError(no_room)), shared, fewer),
    ]
    for main, begins, ends in cases:
        assert exit_of(main) == 2
        said = capsys.readouterr().err
        assert begins in said and said.endswith(f"{ends}\n") and said.count("\n") == 1
    assert exit_of(lambda: sys.exit(1)) == 1


@pytest.mark.parametrize("defect", [RuntimeError, KeyError, ValueError])
def test_a_defect_of_ours_keeps_its_traceback(defect):
    with pytest.raises(defect, match="of ours"):
        utils.run(partial(throw, defect("of ours")))
    with pytest.raises(defect, match="of ours"), file_errors("x.json"):
        throw(defect("of ours"))
    with pytest.raises(OSError, match="of ours"):  # without a file's name
        utils.run(partial(throw, OSError("of ours")))


def test_a_reader_that_has_gone_and_a_full_disk_behind_standard_output():
    def many() -> None:
        for n in range(100_000):
            print(n)

    def few() -> None:
        print("a line that stays in the buffer")

    for main in (many, few):
        reader, writer = os.pipe()
        os.close(reader)
        assert run_apart(main, writer) == (1, "")
        os.close(writer)
        full = os.open("/dev/full", os.O_WRONLY)
        line = "1: standard output: No space left on device: free some space, then run it again\n"
        assert run_apart(main, full) == (2, line)
        os.close(full)


# ---------------------------------------------------------------------------------------- which checkpoint


def test_a_model_that_comes_with_the_project_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = Path("trained_model/Rain800-light+Real")
    assert find_checkpoint(shipped, "").samefile(ROOT / shipped / "pretrained/net_latest")
    assert find_checkpoint(Path(shipped.name), "").samefile(ROOT / shipped / "pretrained/net_latest")
    (tmp_path / shipped).mkdir(parents=True)  # an empty folder is not a model
    assert find_checkpoint(shipped, "").samefile(ROOT / shipped / "pretrained/net_latest")
    (tmp_path / shipped / "net_latest").touch()
    assert find_checkpoint(shipped, "") == shipped / "net_latest"
    (tmp_path / "empty").mkdir()
    said = refusal(find_checkpoint, Path("empty"), "train one")
    assert said == "empty/net_latest does not exist: train one"


@pytest.mark.parametrize(
    ("step", "steps", "trained"),
    [(100, 100, True), (12, 12, True), (100, 200, False), (2, 2, False), (100, 0, True)],
)
def test_a_trained_model_replaces_the_shipped_one_once_its_run_is_finished(
    tmp_path, capsys, step, steps, trained
):
    """And is not a trial; checkpoints without `steps` are older."""
    ours, theirs = tmp_path / "net_latest", tmp_path / "pretrained/net_latest"
    content = {"net": {"a": torch.zeros(1)}, "network": {}}
    save_checkpoint(theirs, {**content, "step": 100})
    save_checkpoint(ours, {**content, "step": step, **({"steps": steps} if steps else {})})
    assert find_checkpoint(tmp_path, "") == (ours if trained else theirs)
    out = capsys.readouterr().out
    assert out.startswith(f"using {ours if trained else theirs}, not {theirs if trained else ours}: ")
    assert f"{step} of {steps or step} steps" in out and out.count("\n") == 1
    assert find_checkpoint(ours, "") == ours and not capsys.readouterr().out  # the file itself


WEIGHTS = {"a": torch.ones(1)}
LISTS: list[Any] = ["x"]
for _ in range(60):
    LISTS = [LISTS] * 2  # a few bytes, and without end where it is printed or walked through


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"net": {"a": torch.zeros(3).to(torch.float8_e4m3fn)}}, "no weights under 'net'"),
        (
            {"net": {"a": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])}},
            "no weights under 'net'",
        ),
        ({"net": WEIGHTS, "data": LISTS}, "'data' is not a list of texts"),
        (
            {"net": WEIGHTS, "best": np.float64(1)},
            r"contains numpy\..*multiarray.*scalar, and loading it could",
        ),
        ({"net": WEIGHTS, "options": argparse.Namespace(lr=1)}, r"contains argparse\.Namespace, and loading"),
        ({"net": WEIGHTS, "path": Path("x")}, r"contains pathlib.*Path, and loading"),
        (torch.nn.Conv2d(3, 3, 1), r"contains torch\.nn\..*Conv2d, and .* such as net\.state_dict\(\)"),
        ({}, "no weights under 'net'"),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_one_line(tmp_path, content, says):
    torch.save(content, tmp_path / "net_latest")
    said = refusal(load_checkpoint, tmp_path / "net_latest")
    assert said.startswith(f"{tmp_path}/net_latest") and re.search(says, said)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_weights_of_dataparallel_and_of_torch_compile_are_read(tmp_path, prefix):
    torch.save({"net": {f"{prefix}a.weight": torch.ones(1)}, "network": {}}, tmp_path / "net_latest")
    assert [*load_checkpoint(tmp_path / "net_latest")["net"]] == ["a.weight"]
