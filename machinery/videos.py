"""Videos in and out, frame by frame: picture, sound, pace and place of every frame kept, in constant memory.

PyAV does it, an extra whose wheels carry ffmpeg. Without it OpenCV does, which knows neither sound nor pace.
The frames made so far lie in parts beside the result, a minute of work in each: whoever is stopped goes on
from there.
"""

from __future__ import annotations

import heapq
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

import utils
from utils import UserError, about

try:
    import av
except ImportError:
    av = None

# the container that a video is written in; what is not here, or cannot hold H.264, becomes Matroska
CONTAINERS = {".mp4": ".mp4", ".m4v": ".mp4", ".mov": ".mov", ".mkv": ".mkv", ".webm": ".webm"}
CONTAINERS |= dict.fromkeys((".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp"), ".mkv")
ENCODERS = {".webm": ("libvpx-vp9", {"crf": "20", "b": "0", "row-mt": "1"})}
H264 = ("libx264", {"crf": "16", "x264-params": "force-cfr=1"})
SECONDS_A_PART = 60  # of work, which is what a kill may cost
MISSING = 1.0  # seconds at the end of a video, without which it counts as cut short

Paint = Callable[[np.ndarray], np.ndarray]  # uint8 RGB (H, W, 3) to the same


def suffix_of(path: Path) -> str:
    """Of the result: the input's container where it is one of ours."""
    return CONTAINERS[path.suffix.lower()] if av else ".mp4"


def rewrite(path: Path, *, target: Path, unfinished: Path, parts: Path, paint: Paint) -> tuple[str, ...]:
    """Writes the video `path` with every frame painted to `unfinished`, and says what was lost, in words.

    `target` is the name under which it will stand; `parts` a folder for what is to survive a kill.
    Raises UserError where it cannot be read or written; nothing that is not whole is left as `unfinished`.
    """
    if not av:
        return _by_opencv(path, target, unfinished, paint)
    lost = _make_parts(path, target.suffix, parts, paint)
    with about(target, done="written"):
        lost += _join(path, target.suffix, unfinished, sorted(parts.glob("*.nut")))
    shutil.rmtree(parts, ignore_errors=True)
    return tuple(lost)


# ---------------------------------------------------------------------------------------------- by PyAV


class _Frames:
    """The upright frames of a video, and what was wrong with it."""

    def __init__(self, path: Path) -> None:
        self.path, self.lost = path, list[str]()
        with about(path, "fetch it again"):
            try:
                self.container = av.open(str(path), metadata_errors="replace")
            except av.InvalidDataError:
                raise UserError(f"{path} is not a video, or is cut short: fetch it again") from None
        if not self.container.streams.video:
            raise UserError(f"{path} holds no moving picture")
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "SLICE"  # decoders that take a thread a frame lose some before a broken one

    def count(self) -> int | None:
        """As the container tells it, which may lie: for the progress bar alone."""
        if self.stream.frames:
            return self.stream.frames
        length, pace = self.container.duration, self.stream.average_rate
        return round(length / av.time_base * pace) if length and pace else None

    def __iter__(self) -> Iterator[Any]:
        broken, end = 0, None
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:  # what follows cannot be found any more
                self.lost.append("its end, which is broken")
                break
            if packet is None:
                break
            try:
                frames = packet.decode()
            except av.FFmpegError:
                broken += 1
                continue
            for frame in frames:
                broken += frame.is_corrupt
                end = frame.time if frame.time is not None else end
                yield frame
        if end is None:
            raise UserError(f"{self.path} holds no frame that can be read: fetch it again")
        missing = self._seconds() - (end - _start(self.container))
        if not self.lost and missing > MISSING:
            self.lost.append(f"its end: it is cut short by {missing:.0f} s, or the sound is longer")
        if broken:
            self.lost.append("a frame that is broken" if broken == 1 else f"{broken} frames that are broken")

    def _seconds(self) -> float:
        """Its length as the container tells it. The header of a cut AVI tells it by the frames alone."""
        pace = self.stream.average_rate
        by_frames = self.stream.frames / pace if pace else 0
        return float(max((self.container.duration or 0) / av.time_base, by_frames))


def _make_parts(path: Path, suffix: str, parts: Path, paint: Paint) -> list[str]:
    """Paints the frames that no part holds yet. Returns what could not be read or kept."""
    parts.mkdir(parents=True, exist_ok=True)
    names = sorted(parts.glob("*.nut"))
    frames = _Frames(path)
    ready, last = 0, -(1 << 62)
    for name in names:
        for packet in _packets(name):  # by another clock, it may be
            ready, last = ready + 1, round(packet.pts * packet.time_base / frames.stream.time_base)
    kept = frames.stream.codec_context
    bar = tqdm(desc=path.name, total=frames.count(), initial=ready, unit="frame", **utils.BAR)
    numbers = itertools.count(len(names))
    part: _Part | None = None
    try:
        for number, frame in enumerate(frames):
            if number < ready:
                continue
            rgb = frame.to_ndarray(format="rgb24")
            rgb = np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90)))
            if part is None:
                name = parts / f"{next(numbers):06}.nut"
                part = _Part(name, suffix, like=frames.stream, first=frame, shape=rgb.shape)
            step = round(1 / (frames.stream.average_rate or 25) / frames.stream.time_base)
            last = max(last + 1, frame.pts if frame.pts is not None else last + step if number else 0)
            part.add(paint(rgb), last)
            bar.update()
            if part.seconds() > SECONDS_A_PART:
                part.close()
                part = None
        if part:
            part.close()
    finally:
        bar.close()
        if part:
            part.drop()
        frames.container.close()
    deep = any(component.bits > 8 for component in kept.format.components)
    return frames.lost + ["the bits beyond 8 of its colours"] * deep


class _Part:
    """A few frames in a file of their own. NUT, which keeps any clock, to the tick."""

    def __init__(self, path: Path, suffix: str, *, like: Any, first: Any, shape: tuple[int, ...]) -> None:
        self.path, self.first, self.began = path, first, time.monotonic()
        self.temporary = path.with_suffix(".tmp")
        with about(path, done="written"):
            self.file = self.temporary.open("wb")  # Python tells a full disk; ffmpeg may not
            self.container = av.open(self.file, "w", format="nut")
            encoder, how = ENCODERS.get(suffix, H264)
            self.stream = self.container.add_stream(encoder, rate=like.average_rate or 25, options=how)
            to = self.stream.codec_context
            to.height, to.width = shape[:2]
            # every pair of rows and columns shares its colour: an odd side needs the other kind
            to.pix_fmt = "yuv420p" if shape[0] % 2 == shape[1] % 2 == 0 else "yuv444p"
            to.time_base, to.max_b_frames = like.time_base, 0  # so that parts can be joined as they are
            for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
                setattr(to, name, int(getattr(first, name)))
            if like.sample_aspect_ratio:
                turned = round(first.rotation / 90) % 2
                to.sample_aspect_ratio = 1 / like.sample_aspect_ratio if turned else like.sample_aspect_ratio

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def add(self, rgb: np.ndarray, when: int) -> None:
        to = self.stream.codec_context
        frame = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(
            to.width,
            to.height,
            to.pix_fmt,
            dst_colorspace=int(self.first.colorspace),
            dst_color_range=int(self.first.color_range),
        )
        frame.pts, frame.time_base = when, to.time_base
        with about(self.path, done="written"):
            self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        with about(self.path, done="written"):
            self.container.mux(self.stream.encode(None))
            self.container.close()
            self.file.close()
            self.temporary.replace(self.path)

    def drop(self) -> None:
        self.file.close()
        self.temporary.unlink(missing_ok=True)


def _start(container: Any) -> float:
    """Of the clock, in seconds: camcorders and recorders of television begin anywhere."""
    return max(0, container.start_time or 0) / av.time_base


def _packets(path: Path, kind: str = "video") -> Iterator[Any]:
    with av.open(str(path)) as container:
        for packet in container.demux(**{kind: 0}):
            if packet.pts is not None:
                yield packet


def _join(path: Path, suffix: str, unfinished: Path, names: list[Path]) -> list[str]:
    """The painted frames and all else that the video holds, as it is."""
    lost = []
    kind = {".mkv": "matroska"}.get(suffix, suffix[1:])
    with (
        unfinished.open("wb") as file,
        av.open(str(path), metadata_errors="replace") as source,
        av.open(str(names[0])) as first,
        av.open(file, "w", format=kind) as result,
    ):
        result.metadata.update(source.metadata)
        picture = result.add_stream_from_template(first.streams.video[0])
        others = {}
        for stream in source.streams:
            if stream.type in ("audio", "subtitle"):
                try:
                    others[stream.index] = result.add_stream_from_template(stream)
                    others[stream.index].metadata.update(stream.metadata)
                except (av.FFmpegError, ValueError):
                    lost.append(f"its {stream.type} track {stream.index}, which a {suffix} cannot hold")
            elif stream is not source.streams.video[0]:
                lost.append(f"its {stream.type} track {stream.index}")
        frames = itertools.chain.from_iterable(map(_packets, names))
        tracks = [((packet, picture) for packet in frames)]
        if others:
            rest = _until_broken(source.demux([source.streams[index] for index in others]))
            tracks.append((packet, others[packet.stream.index]) for packet in rest)
        count, start = 0, _start(source)
        for packet, stream in heapq.merge(*tracks, key=lambda each: each[0].dts * each[0].time_base):
            count += stream is picture
            packet.stream = stream
            ticks = round(start / packet.time_base)  # the result begins at 0, or players tell a wrong length
            packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
            result.mux(packet)
    found = sum(1 for _ in _packets(unfinished))
    if found != count:
        raise UserError(f"{unfinished} holds {found} frames of {count} that were written: is the disk full?")
    return lost


def _until_broken(packets: Iterator[Any]) -> Iterator[Any]:
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            return
        if packet is None:
            return
        if packet.dts is not None and packet.pts is not None:
            yield packet


# -------------------------------------------------------------------------------------------- by OpenCV


def _by_opencv(path: Path, target: Path, unfinished: Path, paint: Paint) -> tuple[str, ...]:
    with about(path):
        path.open("rb").close()
    reader = cv2.VideoCapture(str(path))
    if not reader.isOpened():
        raise UserError(f"{path} is not a video that OpenCV reads")
    # containers may lie about their length, or leave it out: it serves the progress bar alone
    count, pace = int(reader.get(cv2.CAP_PROP_FRAME_COUNT)), reader.get(cv2.CAP_PROP_FPS) or 25
    writer, written = None, 0
    try:
        frames = iter(reader.read, (False, None))
        for _, frame in tqdm(frames, path.name, count if count > 0 else None, unit="frame", **utils.BAR):
            if writer is None:
                size = (frame.shape[1], frame.shape[0])
                writer = cv2.VideoWriter(str(unfinished), cv2.VideoWriter.fourcc(*"mp4v"), pace, size)
                if not writer.isOpened():
                    raise UserError(f"{target} cannot be written: this OpenCV has no MP4 encoder")
            painted = paint(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            writer.write(cv2.cvtColor(painted, cv2.COLOR_RGB2BGR))
            written += 1
    finally:
        reader.release()
        if writer:
            writer.release()
    if not written:
        raise UserError(f"{path} holds no frame that OpenCV reads: is it cut short?")
    # OpenCV's writer tells of no full disk
    check = cv2.VideoCapture(str(unfinished))
    found = sum(1 for _ in iter(check.grab, False))
    check.release()
    if found != written:
        raise UserError(f"{target} holds {found} frames of {written} that were written: is the disk full?")
    lost = ["its sound, and each frame's own time (install what requirements-extras.txt says for video)"]
    if 0 < written < count:
        lost.append(f"{count - written} frames at its end, which is broken")
    return tuple(lost)
