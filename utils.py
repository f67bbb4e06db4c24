"""Files in and out, and what a person meets first: images, checkpoints, errors in one line.

Images are uint8 RGB arrays (H, W, 3) on this side of `to_tensor`, and float RGB tensors (N, 3, H, W) in
[0, 1] on the other. OpenCV's BGR never leaves this file.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
import torch

cv2.setNumThreads(0)  # the loader's workers and torch already share the cores out
# a progress bar is redrawn often where someone watches, and once a minute in a log file
BAR: dict[str, Any] = {"mininterval": 0.1 if sys.stderr.isatty() else 60}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


class UserError(Exception):
    """Something the user can mend. Its text is one line that names the file or option, and the remedy."""

    def __init__(self, message: str) -> None:
        # raised in a loader's worker, it comes as the last line of a traceback
        super().__init__(message.strip().splitlines()[-1].removeprefix("utils.UserError: "))


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a script's main and exits: 0 done, 1 a bug (with its traceback), 2 a UserError, 130 Ctrl-C."""
    try:
        main()
    except UserError as error:
        sys.exit(_complain(str(error), 2))
    except KeyboardInterrupt:
        sys.exit(_complain("stopped by Ctrl-C", 130))
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0)


def _complain(message: str, code: int) -> int:
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    return code


# ---------------------------------------------------------------------------------------------- images


def natural_key(path: Path | str) -> list[tuple[int, int, str]]:
    """Sorts 2.png before 10.png: digits compare as numbers."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", str(path))]


def list_images(folder: Path) -> list[Path]:
    """The image files directly in `folder`, in natural order. Hidden files are passed over."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    names = [e.name for e in os.scandir(folder) if Path(e.name).suffix.lower() in IMAGE_SUFFIXES]
    return [folder / name for name in sorted(names, key=natural_key) if not name.startswith(".")]


def read_image(path: Path) -> np.ndarray:
    """Reads any image as uint8 RGB (H, W, 3): grey is repeated, alpha dropped, 16 bits scaled to 8.

    Raises UserError where the file is missing, unreadable or cut short.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise UserError(f"{path} is not an image, or is cut short ({data.size} bytes): fetch it again")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes uint8 RGB (H, W, 3) to `path` in the format its suffix names; never leaves half a file."""
    ok, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not ok:
        raise UserError(f"{path}: OpenCV cannot write {path.suffix} files; use .png")
    write_atomically(path, lambda temporary: temporary.write_bytes(data.tobytes()))


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3) in [0, 255] to float32 (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float().div_(255)


def to_uint8(tensor: torch.Tensor) -> np.ndarray:
    """Float (3, H, W) to uint8 (H, W, 3): clamped to [0, 1] and rounded, where the release truncated."""
    return (tensor.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


# ----------------------------------------------------------------------------------------------- files


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Has `write` fill a temporary file beside `path`, then moves it into place: all of it, or nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            write(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def one_line(names: Iterable[object], most: int = 5) -> str:
    """'a, b, c and 4 more'"""
    listed = [str(name) for name in names]
    tail = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + tail
