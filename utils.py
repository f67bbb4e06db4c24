"""Files in and out, and what a person meets first: images, whole files or none, errors in one line.

Images are uint8 RGB arrays (H, W, 3) on this side of `to_tensor`, and float RGB tensors (3, H, W) in [0, 1]
on the other. OpenCV's BGR never leaves this file.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import stat
import struct
import sys
import sysconfig
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import cv2
import numpy as np
import torch
from PIL import Image

try:
    import fcntl
except ImportError:  # Windows: leftovers of killed runs stay until someone deletes them
    fcntl = None  # type: ignore[assignment]

cv2.setNumThreads(0)  # the loader's workers and torch already share the cores out
cv2.utils.logging.setLogLevel(
    cv2.utils.logging.LOG_LEVEL_SILENT
)  # what is wrong with a file is said here, in one line
warnings.filterwarnings("ignore", module=r"PIL\.")
# a progress bar is redrawn often where someone watches, and once a minute in a log file
BAR: dict[str, Any] = {"mininterval": 0.1 if sys.stderr.isatty() else 60}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


class UserError(Exception):
    """Something the user can mend. Its text is one line that names the file or option, and the remedy."""

    def __init__(self, message: str) -> None:
        # raised in a loader's worker, it comes as the end of a traceback
        super().__init__(printable(message.rpartition("\nutils.UserError: ")[2].rstrip("\n")))


class KilledWorker(Exception):
    """A process that reads images ahead has ended before its work was done."""

    def __str__(self) -> str:
        return (
            "a process that reads images ahead was killed, as a machine does whose memory is used up: "
            "lower --workers"
        )


# --------------------------------------------------------------------------------------- errors in one line


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a script's main and exits: 0 done, 1 a bug (with its traceback), 2 a UserError, 130 Ctrl-C.

    What else is no bug gets its one line too, and 2: no memory, a full disk behind standard output, an
    OSError that names its file. A reader of the output that has gone, as `head` does, ends it with 1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever the terminal can print, and any name
    code: Any = 0
    try:
        code = _exit_code(main)
        print(end="", flush=True)  # at the interpreter's end it would be too late to tell
    except OSError:
        if (broken := _broken_output()) is None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(broken, BrokenPipeError):
            code = _complain(f"standard output cannot be written: {_reason(broken)}", 2)
        code = code or 1
    sys.exit(code)


def _exit_code(main: Callable[[], None]) -> Any:
    try:
        main()
    except SystemExit as left:
        return left.code
    except UserError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return _complain("stopped by Ctrl-C", 130)
    except OSError as error:
        if error.filename is None:
            raise
        return _complain(f"{os.fsdecode(error.filename)}: {_reason(error)}", 2)
    except KilledWorker as error:
        return _complain(f"{error}, then run it again", 2)
    except (MemoryError, RuntimeError, cv2.error) as error:
        if not is_out_of_memory(error):
            raise
        remedy = "lower --batchSize, --patch_size, --tile or --workers, whichever this script has"
        return _complain(f"the memory is used up ({_short(error)}): {remedy}", 2)
    return 0


def _complain(message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # nobody is left to tell
        print(f"{printable(Path(sys.argv[0]).name)}: {message}", file=sys.stderr)
    return code


def _broken_output() -> OSError | None:
    """Why what is printed does not arrive; None where it does. Tried by an empty line."""
    try:
        print(flush=True)
    except OSError as error:
        return error
    return None


@contextlib.contextmanager
def about(
    path: Path | str,
    remedy: str = "",
    *,
    done: str = "read",
    kinds: tuple[type[Exception], ...] = (),
    library: bool = True,
) -> Iterator[None]:
    """What goes wrong inside is the fault of the file `path`: a UserError that names it, and the `remedy`.

        with about(path, "fetch it again"):
            content = torch.load(path)

    Told so are OSError, MemoryError, whatever a library raises of its own, and the `kinds` given. An error
    raised by a line of this project is a defect, and passes as it is, and so does a UserError.
    `done` is what was to happen to the file ("x.png cannot be written: ..."). With `library=False` only
    OSError is told: for a block in which more goes on than this file.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be {done}: {_reason(error, remedy)}") from None
    except Exception as error:
        if isinstance(error, UserError) or not library:
            raise
        if is_out_of_memory(error):
            raise UserError(f"{path} cannot be {done}: no memory holds it ({_short(error)})") from None
        if not isinstance(error, kinds) and not _from_a_library(error):
            raise
        hint = f": {remedy}" if remedy else ""
        raise UserError(f"{path} cannot be {done} ({_short(error)}){hint}") from None


# What C code raises, which leaves no frame of its own in a traceback
_C_ERRORS = (cv2.error, struct.error, zlib.error, EOFError, UnicodeError)
_REMEDIES = {
    errno.ENOSPC: "make room, then run it again",
    errno.EDQUOT: "make room, then run it again",
    errno.EACCES: "change its rights, or choose another place",
    errno.EPERM: "change its rights, or choose another place",
    errno.EROFS: "choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise `ulimit -n`, or lower --workers",
    errno.EIO: "the disk itself fails: look after it",
}


def _from_a_library(error: Exception) -> bool:
    if isinstance(error, _C_ERRORS):
        return True
    last = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    file = Path(last.f_code.co_filename)
    installed = (sysconfig.get_path(place) for place in ("purelib", "platlib"))  # may lie in this folder
    ours = file.is_relative_to(Path(__file__).resolve().parent)
    return not ours or any(file.is_relative_to(folder) for folder in installed)


def is_out_of_memory(error: BaseException) -> bool:
    """Python's, NumPy's, OpenCV's, and torch's on the CPU or on a GPU, which are RuntimeErrors."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, cv2.error):
        return error.code == cv2.Error.StsNoMem
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _reason(error: OSError, remedy: str = "") -> str:
    remedy = _REMEDIES.get(error.errno or 0, "") or remedy
    return (error.strerror or str(error)) + (f": {remedy}" if remedy else "")


def _short(error: BaseException, most: int = 160) -> str:
    """'KeyError: 7', in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= most else f"{text[:most]}..."


def printable(text: object) -> str:
    """A name as one line of any terminal can show it: what is not printable is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def one_line(names: Iterable[object], most: int = 5) -> str:
    """'a, b, c and 4 more'"""
    listed = [str(name) for name in names]
    tail = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + tail


# ---------------------------------------------------------------------------------------------- images


def natural_key(path: Path | str) -> list[tuple[int, int, str]]:
    """Sorts 2.png before 10.png: digits compare as numbers."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", str(path))
    ]


def is_image_name(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def is_folder(entry: os.DirEntry) -> bool:
    """Links followed. Unlike its own is_dir, it does not raise for one that leads to itself."""
    return Path(entry).is_dir() if entry.is_symlink() else entry.is_dir()


def is_file(path: Path) -> bool:
    """Links followed. False too where it may not be looked at, or where no file can be called so."""
    try:
        return path.is_file()
    except OSError:
        return False


def list_images(folder: Path) -> list[Path]:
    """The images directly in `folder`, by their names, in natural order. Hidden ones are passed over.

    Folders are none, whatever they are called; anything else that is none is left for its reader to name.
    """
    with about(folder, done="listed"):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder")
        entries = os.scandir(folder)
        names = [e.name for e in entries if is_image_name(e.name) and not is_folder(e)]
    return [folder / name for name in sorted(names, key=natural_key) if not name.startswith(".")]


# A file of some bytes may claim any size. 16384 x 16384 is more than a camera gives; decoded it takes 0.8 GB,
# as floats four times that, and the network much more.
MOST_PIXELS = 1 << 28
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
Image.MAX_IMAGE_PIXELS = None  # Pillow's own bound: ours is told in our words


def read_image(path: Path) -> np.ndarray:
    """Reads any image as uint8 RGB (H, W, 3): grey is repeated, alpha dropped, 16 bits scaled to 8.

    Raises UserError where the file is missing, no image file, unreadable, cut short or beyond MOST_PIXELS.
    """
    with _opened(path) as file:
        _size(path, file)
        file.seek(0)
        data = np.frombuffer(file.read(), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if image is None:
        raise _no_image(path, data.size)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels as the file's header says, without decoding it. Raises as `read_image`."""
    with _opened(path) as file:
        return _size(path, file)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with about(path, "fetch it again"):
        refuse_unless_file(path, "an image")
        with path.open("rb") as file:
            yield file


def _size(path: Path, file: BinaryIO) -> tuple[int, int]:
    try:
        with Image.open(file, formats=_FORMATS) as image:  # reads the header only
            width, height = image.size
    except Exception as error:  # a header that is none leads Pillow into errors of any kind
        if isinstance(error, OSError) and error.errno:
            raise
        raise _no_image(path, file.seek(0, io.SEEK_END)) from None
    if width * height > MOST_PIXELS:
        limit = f"more than {MOST_PIXELS:,} pixels"
        raise UserError(f"{path} says it is {width}x{height}, {limit}: cut it up, or fetch it again")
    return height, width


def _no_image(path: Path, size: int) -> UserError:
    return UserError(f"{path} is not an image, or is cut short ({size:,} bytes): fetch it again")


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes uint8 RGB (H, W, 3) to `path` in the format its suffix names; never leaves half a file."""
    with about(path, "use .png", done="written"):
        data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    write_atomically(path, lambda temporary: temporary.write_bytes(data.tobytes()))


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3) in [0, 255] to float32 (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float().div_(255)


def to_uint8(tensor: torch.Tensor) -> np.ndarray:
    """Float (3, H, W) to uint8 (H, W, 3): clamped to [0, 1] and rounded, where the release truncated."""
    return (tensor.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


# ----------------------------------------------------------------------------------------------- files


def content_of(path: Path, remedy: str = "") -> bytes:
    """All that is in a file. Raises UserError where it is none, or cannot be read."""
    with about(path, remedy):
        refuse_unless_file(path, "a file")
        return path.read_bytes()


def refuse_unless_file(path: Path, what: str) -> None:
    """Before it is opened, for a pipe would be waited for. Says nothing of what is not there at all."""
    if (kind := _kind(path)) not in ("file", ""):
        raise UserError(f"{path} is a {kind}, not {what}: take it away, or rename it")


UNFINISHED = re.compile(r"\.unfinished-[0-9a-f]{8}\b.*")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Has `write` fill a temporary file beside `path`, then moves it into place: all of it, or nothing.

    The temporary file has `path`'s suffix, which tells some libraries the format. A link stays: the file that
    it leads to is written. What cannot be replaced by a file, as a pipe or /dev/stdout, is written to as it
    is. Raises UserError where the file cannot be written.
    """
    with about(path, done="written", library=False):
        kind = _kind(path)
        if kind in ("pipe", "device"):
            write(path)
            return
        if kind not in ("file", ""):
            raise UserError(f"{path} is a {kind}, and cannot be written to: choose another name")
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
        with about(target.parent, done="made", library=False):
            target.parent.mkdir(parents=True, exist_ok=True)
        suffix = target.suffix if len(target.suffix) < 16 else ""  # the name must stay short
        temporary = target.with_name(f".unfinished-{secrets.token_hex(4)}{suffix}")
        # held while it is written: so `sweep` knows whose writer has died
        held = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        try:
            _lock(held)
            write(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(held)


def write_text(path: Path, text: str) -> None:
    r"""As UTF-8, all of it or nothing.

    A name that is not UTF-8 is written as it is printed, and as JSON reads it back: caf\udce9.png.
    """
    data = text.encode("utf-8", "backslashreplace")
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def sweep(folder: Path) -> list[Path]:
    """Deletes what killed runs left unfinished directly in `folder`, and says which; others' work is left."""
    swept: list[Path] = []
    with about(folder, done="swept", library=False):
        if not folder.is_dir():
            return swept
        for path in [Path(each) for each in os.scandir(folder) if UNFINISHED.fullmatch(each.name)]:
            try:
                held = os.open(path, os.O_RDWR)
            except OSError:  # finished meanwhile, or not ours to delete
                continue
            try:
                if _lock(held):
                    path.unlink(missing_ok=True)
                    swept.append(path)
            finally:
                os.close(held)
    return swept


def _lock(file: int) -> bool:
    """Takes a lock that ends with this process; False where another holds it, or none can be had."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, AttributeError):  # a disk, or a system, that knows none
        return False
    return True


def _kind(path: Path) -> str:
    """What lies at `path`, links followed; "" for nothing."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return ""
    kinds = {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "folder",
        stat.S_IFIFO: "pipe",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "disk",
        stat.S_IFSOCK: "socket",
    }
    return kinds.get(stat.S_IFMT(mode), "thing of no known kind")
