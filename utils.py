"""Reading and writing images, atomic writes, and errors as one line.

Images are uint8 RGB arrays (H, W, 3) before `to_tensor`, and float RGB tensors (3, H, W) in [0, 1] after it.
OpenCV's BGR never leaves this file.
"""

import contextlib
import ctypes
import errno
import hashlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import cv2
import numpy as np
import tifffile
import torch
from PIL import Image, ImageOps

cv2.setNumThreads(0)  # the loader's workers and torch already share the cores
# what is wrong with a file is reported here, in one line
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
logging.getLogger("tifffile").disabled = True
warnings.filterwarnings("ignore", module=r"PIL\.")
with contextlib.suppress(AttributeError, OSError):  # where libtiff is a library of its own
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)
# progress bars are redrawn often on a terminal and once a minute in a log file
BAR: dict[str, Any] = {"mininterval": 0.1 if sys.stderr.isatty() else 60}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp"}


class UserError(Exception):
    """A mistake that the user can correct: one line that names the file or option, and the remedy."""

    def __init__(self, message: str) -> None:
        # a loader worker's error arrives as the end of a traceback
        super().__init__(escape_unprintable(message.rpartition("\nutils.UserError: ")[2].rstrip("\n")))


# --------------------------------------------------------------------------------------- errors as one line


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a script's main and exits: 0 done, 1 a bug (with its traceback), 2 a UserError, 130 stopped.

    Out of memory, a killed loader worker and an OSError that names a file also print one line and exit with
    2. Exit status 1 if stdout was closed (`| head`).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # any file name prints on any terminal
    try:
        main()
        sys.stdout.flush()
        sys.exit(0)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        message, code = "stopped", 130
    except Exception as error:
        message, code = one_line(error), 2
        if not message:
            raise
    print(f"{escape_unprintable(Path(sys.argv[0]).name)}: {message}", file=sys.stderr)
    sys.exit(code)


def one_line(error: Exception) -> str:
    """An error that is not a bug of ours, with its remedy; "" for any other."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
        return f"{os.fsdecode(error.filename or 'standard output')}: {_reason(error)}"
    if is_out_of_memory(error):
        return f"out of memory ({_short(error)}): lower --batchSize, --patch_size, --tile or --workers"
    text, lost = str(error) if isinstance(error, RuntimeError) else "", ""
    if "DataLoader worker (pid" in text or isinstance(error, (ConnectionResetError, EOFError)):
        lost = "a loader worker was killed, probably out of memory: lower --workers"
    if "Bus error" in text or "torch_shm_manager" in text or "</torch_" in text:
        lost = "shared memory (/dev/shm) is full: start the container with --shm-size 2g, or lower --workers"
    if isinstance(error, torch.distributed.DistError) or "gloo" in text.lower():
        lost = "another process of this run ended: see its own message"
    return f"{lost}, then run it again, a training with --resume" if lost else ""


@contextlib.contextmanager
def file_errors(
    path: Path | str, remedy: str = "", *, done: str = "read", kinds: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turns errors in its body into a UserError that names the file `path` and the `remedy`.

        with file_errors(path, "download it again", kinds=(ValueError,)):
            content = json.loads(path.read_text())

    Catches OSError, out-of-memory and `kinds`. The message reads "`path` cannot be `done`: ...".
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be {done}: {_reason(error, remedy)}") from None
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(f"{path} cannot be {done}: out of memory ({_short(error)})") from None
        if not isinstance(error, kinds):
            raise
        hint = f": {remedy}" if remedy else ""
        raise UserError(f"{path} cannot be {done} ({_short(error)}){hint}") from None


_RIGHTS = (errno.EACCES, errno.EPERM, errno.EROFS)
_REMEDIES = dict.fromkeys(_RIGHTS, "change its permissions or choose another place")
_REMEDIES |= dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, then run it again")


def is_out_of_memory(error: BaseException) -> bool:
    """Python's, NumPy's, OpenCV's and torch's, which on the CPU is a plain RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, cv2.error):
        return error.code == cv2.Error.StsNoMem
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _reason(error: OSError, remedy: str = "") -> str:
    remedy = _REMEDIES.get(error.errno or 0, "") or remedy
    return (error.strerror or str(error)) + (f": {remedy}" if remedy else "")


def _short(error: BaseException, max_length: int = 160) -> str:
    """'KeyError: 7', in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= max_length else f"{text[:max_length]}..."


def escape_unprintable(text: object) -> str:
    """A name as one line that any terminal can show, with line breaks and control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def join_names(names: Iterable[object], max_names: int = 5) -> str:
    """'a, b, c and 4 more'"""
    listed = [str(name) for name in names]
    tail = f" and {len(listed) - max_names} more" if len(listed) > max_names else ""
    return ", ".join(listed[:max_names]) + tail


# ---------------------------------------------------------------------------------------------- images


def natural_key(path: Path | str) -> list[tuple[int, int, str]]:
    """Sorts 2.png before 10.png: digits compare as numbers."""
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def is_image_name(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


is_file = os.path.isfile  # unlike Path.is_file, False where the path may not be looked at


def is_folder(entry: os.DirEntry) -> bool:
    """Follows links, and unlike `entry.is_dir` does not raise for one that points to itself."""
    return Path(entry).is_dir() if entry.is_symlink() else entry.is_dir()


def list_images(folder: Path) -> list[Path]:
    """The images directly in `folder`, by suffix, in natural order; hidden files and folders are skipped.

    Unreadable images are listed too: they are reported when they are read.
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
Image.MAX_IMAGE_PIXELS = None  # replaced by MOST_PIXELS, with our own message


def read_image(path: Path) -> np.ndarray:
    """Reads an image as uint8 RGB (H, W, 3), upright: grey is repeated, alpha dropped, 16 bits scaled to 8.

    Raises UserError if the file is missing, truncated, unsupported or larger than MOST_PIXELS.
    """
    with file_errors(path, "fetch it again"):
        data = path.read_bytes()
        bits, *_ = read_header(path, io.BytesIO(data))
        try:
            Image.open(io.BytesIO(data)).verify()  # Pillow decodes a PNG with a wrong checksum
            if bits > 8:  # Pillow would drop the lower byte
                image = in_rgb(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
                return in_eight_bits(image[..., :3])
            with Image.open(io.BytesIO(data)) as file:
                return np.array(ImageOps.exif_transpose(file).convert("RGB"))
        except Exception as error:  # Pillow raises errors of any kind for a broken file
            if is_out_of_memory(error):
                raise
            raise _no_image(path, io.BytesIO(data)) from None


def in_rgb(image: np.ndarray | None) -> np.ndarray:
    """OpenCV's grey, grey and alpha, BGR or BGRA as RGB or RGBA (H, W, 3 or 4). ValueError for None."""
    if image is None:
        raise ValueError("truncated or corrupt")
    image = np.atleast_3d(image)
    order = {1: [0, 0, 0], 2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}
    return np.take(image, order[image.shape[2]], axis=2)


def in_eight_bits(levels: np.ndarray) -> np.ndarray:
    """uint16 to the nearest of uint8."""
    return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels from the file's header, without decoding it. Raises as `read_image`."""
    with file_errors(path, "fetch it again"), path.open("rb") as file:
        return read_header(path, file)[1:]


def read_header(path: Path, file: BinaryIO) -> tuple[int, int, int]:
    """(bits per sample, height, width) in pixels.

    Raises UserError if it is not an image, or is unsupported or larger than MOST_PIXELS.
    """
    try:
        with Image.open(file, formats=_FORMATS) as image:
            kind, (width, height), tags = image.format, image.size, getattr(image, "tag_v2", {})
            bits = max(tags.get(258) or (8,))
            if kind == "PNG":
                file.seek(24)  # after the signature and IHDR's length, name and sides
                bits = file.read(1)[0]
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
    return bits, height, width


def _no_image(path: Path, file: BinaryIO) -> UserError:
    file.seek(0)
    head, size, _ = file.read(1000), file.seek(0, io.SEEK_END), file.seek(0)
    kind = head[8:12].decode("latin-1").strip().upper() if head[4:8] == b"ftyp" else ""  # HEIC, AVIF
    kind = "GIF" if head[:3] == b"GIF" else "SVG" if b"<svg" in head else kind
    if head[:4] in (b"II*\0", b"MM\0*"):
        with contextlib.suppress(Exception), tifffile.TiffFile(file) as tiff:
            samples = tiff.pages.first.dtype
            kind = "" if samples in (bool, np.uint8, np.uint16) else f"TIFF with {samples} samples"
    if kind:
        return UserError(f"{path} is of the unsupported format {kind}: save it as JPEG, PNG or 8-bit TIFF")
    return UserError(f"{path} is not an image, or is cut short ({size:,} bytes): fetch it again")


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes uint8 RGB (H, W, 3) to `path` in the format of its suffix, atomically."""
    with file_errors(path, "use .png", done="written", kinds=(cv2.error,)):
        _, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    write_atomically(path, lambda temporary: temporary.write_bytes(data.tobytes()))


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3) in [0, 255] to float32 (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float().div_(255)


def to_uint8(tensor: torch.Tensor) -> np.ndarray:
    """Float (3, H, W) to uint8 (H, W, 3): clamped to [0, 1] and rounded, where the release truncated."""
    return (tensor.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


# ----------------------------------------------------------------------------------------------- files


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Has `write` fill a temporary file beside `path`, then moves it into place: all of it or nothing.

    The temporary file has the suffix of `path` and a name that the next write after a kill reuses. A link is
    kept and the file it points to is written; a device or pipe, such as /dev/stdout, is written directly.
    Raises UserError where that fails.
    """
    with file_errors(path, done="written"):
        if path.exists() and not path.is_file():
            write(path)
            return
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".unfinished-{target.name[-60:]}")  # names have at most 255 bytes
        try:
            write(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    r"""As UTF-8, atomically. A name that is not UTF-8 is escaped as JSON reads it back: caf\udce9.png."""
    data = text.encode("utf-8", "backslashreplace")
    write_atomically(path, lambda temporary: temporary.write_bytes(data))
