"""Derains your own photographs, folders of them, and videos.

    python derain.py photo.jpg holiday/ clip.mp4

Results lie under their input's name in --save_path: photographs as PNG, videos as MP4 without sound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

import distributed
import utils
from checkpoints import open_network
from config import Machine, option, parse
from inference import derain_in_tiles, place
from networks import DerainNet
from utils import IMAGE_SUFFIXES, UserError, list_images, read_image, to_tensor, to_uint8

VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm"}


@dataclass(frozen=True)
class Derain(Machine):
    """The options of this script."""

    inputs: tuple[Path, ...] = option((), "photographs, folders of photographs, videos", positional=True)
    logdir: Path = option(Path("trained_model/Rain200H+Real"), "the model: a checkpoint, or its folder")
    save_path: Path = option(Path("results/derained"), "where the results go")
    tile: int = option(640, "side of the tiles that larger images are cut into, in pixels: bounds the memory")


def main() -> None:
    options = parse(Derain(), __doc__)
    inputs = list(found(options.inputs))
    device = distributed.devices(options)[0]
    net, content = open_network(options.logdir, "train one with train_Rain200H_real.py, or give --logdir")
    place(net, device)
    print(f"model: {content['path']}, step {content.get('step', 0)}")
    taken: set[Path] = set()
    for path in inputs:
        video = path.suffix.lower() in VIDEO_SUFFIXES
        target = options.save_path / f"{path.stem}{'.mp4' if video else '.png'}"
        if target in taken or target.resolve() == path.resolve():
            target = target.with_stem(f"{path.parent.name}_{path.stem}_derained")
        taken.add(target)
        (derain_video if video else derain_photograph)(path, target, net, options, device)
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


def derained(image: np.ndarray, net: DerainNet, options: Derain, device: torch.device) -> np.ndarray:
    """uint8 RGB (H, W, 3) to the same without its rain."""
    return to_uint8(derain_in_tiles(net, to_tensor(image), options, device, options.tile))


def derain_photograph(
    path: Path, target: Path, net: DerainNet, options: Derain, device: torch.device
) -> None:
    utils.write_image(target, derained(read_image(path), net, options, device))


def derain_video(path: Path, target: Path, net: DerainNet, options: Derain, device: torch.device) -> None:
    """Frame by frame. Raises UserError where OpenCV cannot read or write it."""
    reader = cv2.VideoCapture(str(path))
    if not reader.isOpened():
        raise UserError(f"{path} is not a video that OpenCV reads")
    size = tuple(int(reader.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    frames, pace = int(reader.get(cv2.CAP_PROP_FRAME_COUNT)), reader.get(cv2.CAP_PROP_FPS) or 25

    def write(temporary: Path) -> None:
        # OpenCV chooses the container by the name, which the temporary file's does not tell
        unfinished = temporary.with_suffix(".mp4")
        writer = cv2.VideoWriter(str(unfinished), cv2.VideoWriter.fourcc(*"mp4v"), pace, size)
        if not writer.isOpened():
            raise UserError(f"{target} cannot be written: this OpenCV has no MP4 encoder")
        try:
            for _ in tqdm(range(frames), path.name, unit="frame", **utils.BAR):
                there, frame = reader.read()
                if not there:
                    break
                rgb = derained(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), net, options, device)
                writer.write(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
            writer.release()
            unfinished.replace(temporary)
        finally:
            writer.release()
            unfinished.unlink(missing_ok=True)

    try:
        utils.write_atomically(target, write)
    finally:
        reader.release()


if __name__ == "__main__":
    utils.run(main)
