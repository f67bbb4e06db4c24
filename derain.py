"""Derains your own photographs, folders of them, and videos.

    python derain.py photo.jpg holiday/ clip.mp4

Results lie under their input's name in --save_path: photographs as PNG, videos as MP4 without sound.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
from tqdm import tqdm

import utils
from inference import Derainer
from machinery import distributed
from machinery.options import Machine, option, parse
from utils import IMAGE_SUFFIXES, UserError, list_images, read_image

VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm"}


@dataclass(frozen=True)
class Derain(Machine):
    """The options of this script."""

    inputs: tuple[Path, ...] = option((), "photographs, folders of photographs, videos", positional=True)
    logdir: Path = option(Path("trained_model/Rain200L+Real"), "the model: a checkpoint, or its folder")
    save_path: Path = option(Path("results/derained"), "where the results go")
    tile: int = option(640, "side of the tiles that larger images are cut into, in pixels: bounds the memory")


def main() -> None:
    options = parse(Derain(), __doc__)
    inputs = list(found(options.inputs))
    device = distributed.devices(options)[0]
    remedy = "train one with train_Rain200L_real.py, or give --logdir"
    derain = Derainer.open(
        options.logdir, device, remedy=remedy, precision=options.precision, tile=options.tile
    )
    print(f"model: {derain.path}, step {derain.content['step']}")
    for path, target in zip(inputs, targets(inputs, options.save_path), strict=True):
        (derain_video if is_video(path) else derain_photograph)(path, target, derain)
        tqdm.write(f"{path} -> {target}")


def found(inputs: tuple[Path, ...]) -> Iterator[Path]:
    """The files that the inputs name. Raises UserError for one that is none, or an empty folder."""
    for path in inputs:
        if path.is_dir():
            files = list_images(path)
            if not files:
                raise UserError(f"{path} holds no photographs ({', '.join(sorted(IMAGE_SUFFIXES))})")
            yield from files
        elif not path.exists():
            raise UserError(f"{path} does not exist")
        elif path.suffix.lower() not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            raise UserError(f"{path} is neither a photograph nor a video, by its name")
        else:
            yield path


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def targets(inputs: Sequence[Path], folder: Path) -> Iterator[Path]:
    """Where each result goes: under its input's name, or a longer one, and over no input or other result."""
    taken = {path.resolve() for path in inputs}
    for path in inputs:
        numbered = (f"{path.stem}_derained-{n}" for n in itertools.count(2))
        names = itertools.chain([path.stem, f"{path.parent.name}_{path.stem}_derained"], numbered)
        files = (folder / f"{name}{'.mp4' if is_video(path) else '.png'}" for name in names)
        target = next(file for file in files if file.resolve() not in taken)
        taken.add(target.resolve())
        yield target


def derain_photograph(path: Path, target: Path, derain: Derainer) -> None:
    utils.write_image(target, derain(read_image(path)))


def derain_video(path: Path, target: Path, derain: Derainer) -> None:
    """Frame by frame. Raises UserError where OpenCV cannot read or write it."""
    reader = cv2.VideoCapture(str(path))
    if not reader.isOpened():
        raise UserError(f"{path} is not a video that OpenCV reads")
    size = tuple(int(reader.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    # containers may lie about their length, or leave it out: it serves the progress bar alone
    count, pace = int(reader.get(cv2.CAP_PROP_FRAME_COUNT)), reader.get(cv2.CAP_PROP_FPS) or 25

    def write(temporary: Path) -> None:
        writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), pace, size)
        if not writer.isOpened():
            raise UserError(f"{target} cannot be written: this OpenCV has no MP4 encoder")
        try:
            frames = iter(reader.read, (False, None))
            bar = tqdm(frames, path.name, count if count > 0 else None, unit="frame", **utils.BAR)
            for _, frame in bar:
                rgb = derain(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
                writer.write(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
            if not bar.n:
                raise UserError(f"{path} holds no frame that OpenCV reads: is it cut short?")
        finally:
            writer.release()

    try:
        utils.write_atomically(target, write)
    finally:
        reader.release()


if __name__ == "__main__":
    utils.run(main)
