"""Reads and writes videos frame by frame, in constant memory; keeps the sound and the time of every frame.

Uses PyAV, an extra whose wheels contain ffmpeg.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils import BAR, UserError, escape_unprintable, file_errors

try:
    import av
    from av.video.reformatter import Interpolation as By

    EXACT = By.BILINEAR | By.ACCURATE_RND | By.FULL_CHR_H_INT  # without these, frames are a level too dark
except (ImportError, AttributeError):  # not installed, or too old to have these flags
    av = None

# container of the result; formats that are not listed or cannot hold H.264 become Matroska
CONTAINERS = {".mp4": ".mp4", ".m4v": ".mp4", ".mov": ".mov", ".mkv": ".mkv"}
CONTAINERS |= dict.fromkeys((".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp"), ".mkv")
CONTAINERS[".webm"] = ".mkv"
QUALITY = {"crf": "16", "bf": "0"}  # of x264: visually lossless; B-frames shorten an MP4 of variable rate
MAX_PIXELS = 1 << 26  # of a frame: twice those of 8K
MISSING = 1.0  # seconds; a video that ends earlier than its header says counts as truncated


def rewrite(path: Path, unfinished: Path, paint: Callable[[np.ndarray], np.ndarray]) -> list[str]:
    """Writes the video `path` to `unfinished`, with `paint` applied to every frame, uint8 RGB (H, W, 3).

    Returns the names of what was lost. Raises UserError if it cannot be read or written.
    """
    if not av:
        raise UserError(f"{path} is a video: python -m pip install -r photographs/requirements.txt")
    # our own handle and no protocols: neither a name with a colon nor a playlist opens anything else
    how = {"metadata_errors": "replace", "options": {"protocol_whitelist": "none"}}
    with path.open("rb") as data:
        try:
            source = av.open(data, **how)
        except (av.FFmpegError, OSError):  # an empty file is an OSError of our own handle
            raise UserError(f"{path} is not a video, or is cut short: fetch it again") from None
        with source:
            video = source.streams.best("video")  # not a cover picture
            if video is None:
                raise UserError(f"{path} has no video track")
            codec = video.codec_context
            if codec is None:
                raise UserError(f"{path} has an unsupported video codec: convert it to H.264")
            if codec.width * codec.height > MAX_PIXELS:
                raise UserError(f"{path} says that its frames are {codec.width}x{codec.height}: too large")
            form = {".mkv": "matroska"}.get(unfinished.suffix, unfinished.suffix[1:])
            with (
                file_errors(f"the result of {path}", done="written", kinds=(av.FFmpegError,)),
                unfinished.open("wb") as file,  # Python reports a full disk, ffmpeg may not
                av.open(file, "w", format=form) as result,
            ):
                return _copy(path, source, video, result, paint)


def _copy(path: Path, source: Any, video: Any, result: Any, paint: Callable) -> list[str]:
    """Copies packets of sound and subtitles, and paints every frame; returns the names of what was lost."""
    video.thread_type = "SLICE"  # threads by frame lose some frames before a broken one
    result.metadata.update(source.metadata)
    lost = _losses(video.codec_context)
    others = {}
    for stream in source.streams:
        if stream is video:
            continue
        try:
            if stream.type not in ("audio", "subtitle") or stream.codec_context is None:
                raise ValueError
            others[stream.index] = result.add_stream_from_template(stream)
        except (av.FFmpegError, ValueError):
            lost.append(f"{stream.type} track {stream.index}")
    rate = video.average_rate or Fraction(25)
    step = max(1, round(1 / rate / video.time_base))  # ticks per frame
    painted: Any = None
    broken, durations = 0, dict[int, int]()
    start = max(0, source.start_time or 0) / av.time_base  # seconds: camcorders do not start at 0
    clocks = {stream.index: Clock(stream.time_base, start) for stream in source.streams}
    clock = clocks[video.index]
    wanted = [video, *(source.streams[index] for index in others)]
    waiting: list[Any] = []  # packets of sound before the first frame, which decides the header
    with tqdm(desc=escape_unprintable(path.name), total=video.frames or None, unit="frame", **BAR) as bar:
        for packet in _until_broken(source.demux(wanted), lost):
            frames: list[Any] = []
            if packet.stream is not video:
                waiting += [packet] if packet.dts is not None and packet.pts is not None else []
            else:
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    broken += 1
            for frame in frames:
                broken += frame.is_corrupt
                rgb = frame.to_ndarray(format="rgb24", interpolation=EXACT)
                made = paint(np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90))))
                if not painted:
                    painted = _video_track(result, video, frame, made.shape, rate)
                    lost += ["interlacing"] * frame.interlaced_frame
                new = _frame(made, frame, painted)
                new.pts = clock.at(frame.pts, step)
                durations[new.pts] = frame.duration or step
                _mux(result, painted.encode(new), durations)
                bar.update()
            while painted and waiting:
                packet = waiting.pop(0)
                delay = packet.pts - packet.dts
                packet.dts = clocks[packet.stream.index].at(packet.dts, packet.duration or 1)
                packet.pts = packet.dts + delay
                packet.stream = others[packet.stream.index]
                result.mux(packet)
    if not painted:
        raise UserError(f"{path} has no frame that can be read: fetch it again")
    _mux(result, painted.encode(None), durations)
    # the header of a truncated AVI gives its length by the number of frames alone
    length = max((source.duration or 0) / av.time_base, video.frames / rate)
    missing = float(length) - float((clock.last + step) * video.time_base)
    if missing > MISSING and "its broken end" not in lost:
        lost.append(f"its end: it is cut short by {missing:.0f} s, or the sound is longer")
    return lost + [f"{broken} broken frames"] * bool(broken)


class Clock:
    """The times of a track in the result, from 0 on. If they start again in the source, they go on here."""

    def __init__(self, time_base: Fraction, start: float) -> None:
        self.shift, self.second = -round(start / time_base), round(1 / time_base)
        self.last: int | None = None

    def at(self, ticks: int | None, step: int) -> int:
        """The time of the next frame or packet, later than the last one, in ticks."""
        if self.last is None:
            self.last = (ticks or 0) + self.shift
            return self.last
        when = self.last + step if ticks is None else ticks + self.shift
        if when < self.last - self.second:
            self.shift += self.last + step - when
            when = self.last + step
        self.last = max(self.last + 1, when)
        return self.last


def _losses(codec: Any) -> list[str]:
    """What 8-bit 4:2:0 does not hold of a track's pixel format."""
    parts = codec.format.components
    lost = ["the bits beyond 8 of its colours"] * any(part.bits > 8 for part in parts)
    lost += ["transparency"] * any(part.is_alpha for part in parts)
    subsampled = (codec.format.chroma_width(64), codec.format.chroma_height(64)) == (32, 32)
    if len(parts) > 2 and not subsampled and codec.width % 2 == codec.height % 2 == 0:
        lost.append("full colour resolution (now 4:2:0)")
    return lost


def _video_track(result: Any, video: Any, first: Any, shape: tuple[int, ...], rate: Fraction) -> Any:
    """The track of painted frames, with the time base, pixel aspect ratio and colours of the source."""
    stream = result.add_stream("libx264", rate=rate, options=QUALITY)
    to = stream.codec_context
    to.height, to.width = shape[:2]
    # 4:2:0 shares colours between two rows and columns: odd sides need 4:4:4
    to.pix_fmt = "yuv420p" if shape[0] % 2 == shape[1] % 2 == 0 else "yuv444p"
    to.time_base = video.time_base
    to.colorspace = _colorspace(first)
    for name in ("color_range", "color_primaries", "color_trc"):
        setattr(to, name, int(getattr(first, name)))
    if aspect := video.sample_aspect_ratio:
        to.sample_aspect_ratio = 1 / aspect if round(first.rotation / 90) % 2 else aspect
    return stream


def _colorspace(frame: Any) -> int:
    return int(frame.colorspace) or 1  # 0 is RGB, which these tracks are not: BT.709


def _frame(rgb: np.ndarray, like: Any, stream: Any) -> Any:
    to = stream.codec_context
    colours = {"dst_colorspace": _colorspace(like), "dst_color_range": int(like.color_range)}
    frame = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(to.width, to.height, to.pix_fmt, **colours)
    frame.time_base = to.time_base
    return frame


def _mux(result: Any, packets: list[Any], durations: dict[int, int]) -> None:
    for packet in packets:
        packet.duration = durations.pop(packet.pts)  # else the last frame lasts as long as the average
        result.mux(packet)


def _until_broken(packets: Iterator[Any], lost: list[str]) -> Iterator[Any]:
    try:
        yield from packets
    except av.FFmpegError:  # nothing after it can be read
        lost.append("its broken end")
