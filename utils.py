"""Files in and out, and what a person meets first: images, whole files or none, errors in one line.

Images are uint8 RGB arrays (H, W, 3) on this side of `to_tensor`, and float RGB tensors (3, H, W) in [0, 1]
on the other. OpenCV's BGR never leaves this file.
"""

import contextlib
import errno
import io
import os
import platform
import re
import secrets
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import cv2
import numpy as np
import psutil
import tifffile
import torch
from PIL import Image

for _name in ("stdout", "stderr"):  # closed by `2>&-`, as a daemon's are: what is printed goes nowhere
    if getattr(sys, _name) is None:
        setattr(sys, _name, open(os.devnull, "w"))  # noqa: SIM115, PTH123
cv2.setNumThreads(0)  # the loader's workers and torch already share the cores out
# what is wrong with a file is said here, in one line
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
warnings.filterwarnings("ignore", module=r"PIL\.")
# a progress bar is redrawn often where someone watches, and once a minute in a log file
BAR: dict[str, Any] = {"mininterval": 0.1 if sys.stderr.isatty() else 60}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp"}


KILLED_WORKER = (
    "a process that reads images ahead was killed, as a machine does whose memory is used up: lower --workers"
)


class UserError(Exception):
    """Something the user can mend. Its text is one line that names the file or option, and the remedy."""

    def __init__(self, message: str) -> None:
        # raised in a loader's worker, it comes as the end of a traceback
        super().__init__(escape_unprintable(message.rpartition("\nutils.UserError: ")[2].rstrip("\n")))


# --------------------------------------------------------------------------------------- errors in one line


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a script's main and exits: 0 done, 1 a bug (with its traceback), 2 a UserError, 130 Ctrl-C.

    What else is no bug gets its one line too, and 2: no memory, a killed worker, an OSError that names its
    file. A reader of the output that has gone, as `head` does, ends it with 1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever the terminal can print, and any name
    code: Any = 0
    try:
        code = _exit_code(main)
        print(end="", flush=True)  # at the interpreter's end it would be too late to tell
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            code = _complain(f"standard output cannot be written: {_reason(error)}", 2)
        code = code or 1
    sys.exit(code)


def _exit_code(main: Callable[[], None]) -> Any:
    try:
        main()
    except SystemExit as left:
        return left.code
    except KeyboardInterrupt:
        return _complain("stopped by Ctrl-C", 130)
    except Exception as error:
        if not (message := in_one_line(error)):
            raise
        return _complain(message, 2)
    return 0


def _complain(message: str, code: int) -> int:
    print(f"{escape_unprintable(Path(sys.argv[0]).name)}: {message}", file=sys.stderr)
    return code


def in_one_line(error: Exception) -> str:
    """What to tell of an error that is no bug of ours; "" of any other."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {_reason(error)}"
    if is_killed_worker(error):
        return f"{KILLED_WORKER}, then run it again"
    if is_out_of_memory(error):
        remedy = "lower --batchSize, --patch_size, --tile or --workers, whichever this script has"
        return f"the memory is used up ({_short(error)}): {remedy}"
    return ""


@contextlib.contextmanager
def file_errors(
    path: Path | str, remedy: str = "", *, done: str = "read", kinds: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """What goes wrong inside is the fault of the file `path`: a UserError that names it, and the `remedy`.

        with file_errors(path, "fetch it again", kinds=(ValueError,)):
            content = json.loads(path.read_text())

    Told so are OSError, want of memory, and the `kinds` that a library raises of such a file. `done` is what
    was to happen to it ("x.png cannot be written: ...").
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be {done}: {_reason(error, remedy)}") from None
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(f"{path} cannot be {done}: no memory holds it ({_short(error)})") from None
        if not isinstance(error, kinds):
            raise
        hint = f": {remedy}" if remedy else ""
        raise UserError(f"{path} cannot be {done} ({_short(error)}){hint}") from None


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


def is_out_of_memory(error: BaseException) -> bool:
    """Python's, NumPy's, OpenCV's, and torch's on the CPU or on a GPU, which are RuntimeErrors."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, cv2.error):
        return error.code == cv2.Error.StsNoMem
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def is_killed_worker(error: BaseException) -> bool:
    """A loader's worker has ended: torch has noticed it, or a handover broke off."""
    if isinstance(error, RuntimeError):
        return "DataLoader worker (pid" in str(error)
    return isinstance(error, (ConnectionResetError, EOFError))


def _reason(error: OSError, remedy: str = "") -> str:
    remedy = _REMEDIES.get(error.errno or 0, "") or remedy
    return (error.strerror or str(error)) + (f": {remedy}" if remedy else "")


def _short(error: BaseException, most: int = 160) -> str:
    """'KeyError: 7', in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= most else f"{text[:most]}..."


def escape_unprintable(text: object) -> str:
    """A name as one line of any terminal can show it: what is not escape_unprintable is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def join_names(names: Iterable[object], most: int = 5) -> str:
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

    Folders are left out, whatever they are called; a broken file is in, for its reader to name.
    """
    with file_errors(folder, done="listed"):
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
    """Reads an image as uint8 RGB (H, W, 3): grey is repeated, alpha dropped, 16 bits scaled to 8.

    Raises UserError if the file is missing, truncated, unsupported or larger than MOST_PIXELS.
    """
    data = content_of(path, "fetch it again")
    kind, bits, *_ = _header(path, io.BytesIO(data))
    try:
        if kind == "TIFF" and bits == 8:  # OpenCV multiplies the colours by alpha
            with Image.open(io.BytesIO(data)) as file:
                return np.array(file.convert("RGB"))
        with file_errors(path, "fetch it again", kinds=(cv2.error,)):
            how = cv2.IMREAD_UNCHANGED if kind == "TIFF" else cv2.IMREAD_COLOR
            image = cv2.imdecode(np.frombuffer(data, np.uint8), how)
    except (OSError, SyntaxError, ValueError):  # Pillow's, for a broken TIFF
        image = None
    if image is None:
        raise _no_image(path, io.BytesIO(data))
    if kind == "TIFF":  # uint16 (H, W), (H, W, 2), BGR or BGRA
        bands = image.reshape(*image.shape[:2], -1)
        bands = bands[..., :3] if bands.shape[2] > 2 else bands[..., [0, 0, 0]]
        image = ((bands.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels from the file's header, without decoding it. Raises as `read_image`."""
    with file_errors(path, "fetch it again"):
        refuse_unless_file(path, "an image")
        with path.open("rb") as file:
            return _header(path, file)[2:]


def _header(path: Path, file: BinaryIO) -> tuple[str, int, int, int]:
    """(format, bits per sample, height, width)"""
    try:
        with Image.open(file, formats=_FORMATS) as image:
            kind, (width, height), tags = image.format, image.size, getattr(image, "tag_v2", {})
            bits = max(tags.get(258) or (8,))
    except Exception as error:  # Pillow raises errors of any kind for a broken header
        if isinstance(error, OSError) and error.errno:
            raise
        raise _no_image(path, file) from None
    if width * height > MOST_PIXELS:
        limit = f"more than {MOST_PIXELS:,} pixels"
        raise UserError(f"{path} says it is {width}x{height}, {limit}: cut it up, or fetch it again")
    if kind == "TIFF" and bits > 8:  # read by OpenCV, which ignores these tags
        plain = tags.get(284, 1) == 1 and tags.get(262) in (1, 2) and 1 not in tags.get(338, ())
        if not plain or bits != 16 or tags.get(339, (1,))[0] != 1:
            raise UserError(
                f"{path} is an unsupported TIFF (separate planes, inverted grey, premultiplied alpha or "
                "samples other than 16-bit integers): save it as PNG or 8-bit TIFF"
            )
    return str(kind), bits, height, width


def _no_image(path: Path, file: BinaryIO) -> UserError:
    file.seek(0)
    head, size, _ = file.read(12), file.seek(0, io.SEEK_END), file.seek(0)
    kind = head[8:].decode("latin-1").strip().upper() if head[4:8] == b"ftyp" else ""  # HEIC, AVIF
    if head[:3] == b"GIF":
        kind = "GIF"
    if head[:4] in (b"II*\0", b"MM\0*"):
        with contextlib.suppress(Exception), tifffile.TiffFile(file) as tiff:
            samples = tiff.pages.first.dtype
            kind = "" if samples in (bool, np.uint8, np.uint16) else f"TIFF with {samples} samples"
    if kind:
        return UserError(f"{path} is of the unsupported format {kind}: save it as JPEG, PNG or 8-bit TIFF")
    return UserError(f"{path} is not an image, or is cut short ({size:,} bytes): fetch it again")


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes uint8 RGB (H, W, 3) to `path` in the format its suffix names; never leaves half a file."""
    with file_errors(path, "use .png", done="written", kinds=(cv2.error,)):
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
    """All that is in a file. Raises UserError where it is not a file, or cannot be read."""
    with file_errors(path, remedy):
        refuse_unless_file(path, "an image" if is_image_name(path.name) else "a file")
        return path.read_bytes()


def refuse_unless_file(path: Path, what: str) -> None:
    """Before it is opened, for a pipe would be waited for. Says nothing of what is not there at all."""
    if path.exists() and not path.is_file():
        kind = "folder" if path.is_dir() else "pipe or a device"
        raise UserError(f"{path} is a {kind}, not {what}: take it away, or rename it")


def refuse_inputs(target: Path, inputs: Iterable[Path], option: str) -> None:
    """Raises UserError where a result would lie over an image that is read, by whatever name."""
    place = os.path.realpath(target)
    if any(place == os.path.realpath(path) for path in inputs):
        raise UserError(f"{option} {target} is one of the images that are read: give another name")


# of this machine alone: another one may work in the same folder, and its processes are not known here
HERE = re.sub(r"\W", "_", platform.node())[:40]
UNFINISHED = re.compile(rf"\.unfinished-{HERE}-(\d+)-[0-9a-f]{{8}}\b.*")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Has `write` fill a temporary file beside `path`, then moves it into place: all of it, or nothing.

    The temporary file has `path`'s suffix, which tells some libraries the format, and the names of this
    machine and process, by which `sweep` knows whose writer has died. A link stays: the file that it leads to
    is written. What is no file, as a pipe or /dev/stdout, is written to as it is. Raises UserError where it
    cannot be written.
    """
    with file_errors(path, done="written"):
        if path.exists() and not path.is_file() and not path.is_dir():
            write(path)
            return
        if path.is_dir():
            raise UserError(f"{path} is a folder, and cannot be written to: choose another name")
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
        target.parent.mkdir(parents=True, exist_ok=True)
        suffix = target.suffix if len(target.suffix) < 16 else ""  # the name must stay short
        temporary = target.with_name(f".unfinished-{HERE}-{os.getpid()}-{secrets.token_hex(4)}{suffix}")
        try:
            write(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    r"""As UTF-8, all of it or nothing.

    A name that is not UTF-8 is written as it is printed, and as JSON reads it back: caf\udce9.png.
    """
    data = text.encode("utf-8", "backslashreplace")
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def sweep(folder: Path) -> None:
    """Deletes what killed runs of this machine left unfinished directly in `folder`."""
    with file_errors(folder, done="swept"):
        for entry in os.scandir(folder) if folder.is_dir() else ():
            left = UNFINISHED.fullmatch(entry.name)
            if left and not psutil.pid_exists(int(left[1])):
                Path(entry).unlink(missing_ok=True)
