"""Videos in and out, frame by frame, in constant memory: picture, sound, pace and place of every frame kept.

PyAV does it, an extra whose wheels carry ffmpeg.
"""

import contextlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils import BAR, UserError, file_errors

try:
    import av
    from av.video.reformatter import Interpolation as By

    EXACT = By.BILINEAR | By.ACCURATE_RND | By.FULL_CHR_H_INT  # else frames are read a level too dark
except (ImportError, AttributeError):  # none, or one from before these flags
    av = None

# the container that a video is written in; what is not here, or cannot hold H.264, becomes Matroska
CONTAINERS = {".mp4": ".mp4", ".m4v": ".mp4", ".mov": ".mov", ".mkv": ".mkv"}
CONTAINERS |= dict.fromkeys((".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp"), ".mkv")
CONTAINERS[".webm"] = ".mkv"
QUALITY = {"crf": "16"}  # of x264: hardly to be told from the frames themselves
MISSING = 1.0  # seconds at the end of a video, without which it counts as cut short


def rewrite(path: Path, unfinished: Path, paint: Callable[[np.ndarray], np.ndarray]) -> list[str]:
    """Writes the video `path` to `unfinished` with every frame, uint8 RGB (H, W, 3), painted.

    Returns what was lost, in words. Raises UserError where it cannot be read or written.
    """
    if not av:
        raise UserError(f"{path} is a video: python -m pip install -r requirements-extras.txt reads it")
    with file_errors(path, "fetch it again"):
        try:
            source = av.open(str(path), metadata_errors="replace")
        except av.InvalidDataError:
            raise UserError(f"{path} is not a video, or is cut short: fetch it again") from None
    with source:
        if not source.streams.video:
            raise UserError(f"{path} holds no moving picture")
        lost = ["the bits beyond 8 of its colours"] * _is_deep(source.streams.video[0])
        with (
            file_errors(unfinished, done="written", kinds=(av.FFmpegError,)),
            unfinished.open("wb") as file,  # Python tells a full disk; ffmpeg may not
            av.open(file, "w", format=_format(unfinished)) as result,
        ):
            return lost + _copied(path, source, result, paint)


def _format(path: Path) -> str:
    return {".mkv": "matroska"}.get(path.suffix, path.suffix[1:])


def _is_deep(stream: Any) -> bool:
    return any(component.bits > 8 for component in stream.codec_context.format.components)


def _copied(path: Path, source: Any, result: Any, paint: Callable[[np.ndarray], np.ndarray]) -> list[str]:
    """Every packet of sound and subtitles as it is, every frame painted; what could not be read or kept."""
    lost: list[str] = []
    video = source.streams.video[0]
    video.thread_type = "SLICE"  # decoders that take a thread a frame lose some before a broken one
    result.metadata.update(source.metadata)
    others = {}
    for stream in source.streams:
        if stream.type in ("audio", "subtitle"):
            try:
                others[stream.index] = result.add_stream_from_template(stream)
            except (av.FFmpegError, ValueError):
                lost.append(f"its {stream.type} track {stream.index}, which this container cannot hold")
        elif stream is not video:
            lost.append(f"its {stream.type} track {stream.index}")
    pace = video.average_rate or Fraction(25)
    step = max(1, round(1 / pace / video.time_base))  # in ticks
    painted: Any = None
    broken, last = 0, -step
    start = max(0, source.start_time or 0) / av.time_base  # seconds: camcorders begin anywhere
    wanted = [video, *(source.streams[index] for index in others)]
    waiting: list[Any] = []  # packets of sound before the first frame: a header comes first
    with tqdm(desc=path.name, total=video.frames or None, unit="frame", **BAR) as bar:
        for packet in _until_broken(source.demux(wanted), lost):
            if packet.stream is not video:
                if packet.dts is not None and packet.pts is not None:
                    waiting.append(packet)
            else:
                frames: list[Any] = []
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    broken += 1
                for frame in frames:
                    broken += frame.is_corrupt
                    rgb = frame.to_ndarray(format="rgb24", interpolation=EXACT)
                    made = paint(np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90))))
                    painted = painted or _picture(result, video, frame, made.shape, pace)
                    begun = round(start / video.time_base)  # the result begins at 0
                    last = max(last + 1, last + step if frame.pts is None else frame.pts - begun)
                    result.mux(painted.encode(_frame(made, frame, painted, last)))
                    bar.update()
            while painted and waiting:
                packet = waiting.pop(0)
                begun = round(start / packet.time_base)
                packet.pts, packet.dts = packet.pts - begun, packet.dts - begun
                packet.stream = others[packet.stream.index]
                result.mux(packet)
    if not painted:
        raise UserError(f"{path} holds no frame that can be read: fetch it again")
    result.mux(painted.encode(None))
    # the header of a cut AVI tells its length by the frames alone
    length = max((source.duration or 0) / av.time_base, video.frames / pace)
    missing = float(length) - float((last + step) * video.time_base)
    if not lost and missing > MISSING:
        lost.append(f"its end: it is cut short by {missing:.0f} s, or the sound is longer")
    return lost + [f"{broken} frames that are broken"] * bool(broken)


def _picture(result: Any, video: Any, first: Any, shape: tuple[int, ...], pace: Fraction) -> Any:
    """The track of painted frames: with the clock, the pixels' shape and the colours of the first of them."""
    stream = result.add_stream("libx264", rate=pace, options=QUALITY)
    to = stream.codec_context
    to.height, to.width = shape[:2]
    # every pair of rows and columns shares its colour: an odd side needs the other kind
    to.pix_fmt = "yuv420p" if shape[0] % 2 == shape[1] % 2 == 0 else "yuv444p"
    to.time_base = video.time_base
    for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
        setattr(to, name, int(getattr(first, name)))
    if aspect := video.sample_aspect_ratio:
        to.sample_aspect_ratio = 1 / aspect if round(first.rotation / 90) % 2 else aspect
    return stream


def _frame(rgb: np.ndarray, like: Any, stream: Any, when: int) -> Any:
    to = stream.codec_context
    colours = {"dst_colorspace": int(like.colorspace), "dst_color_range": int(like.color_range)}
    frame = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(to.width, to.height, to.pix_fmt, **colours)
    frame.pts, frame.time_base = when, to.time_base
    return frame


def _until_broken(packets: Iterator[Any], lost: list[str]) -> Iterator[Any]:
    with contextlib.suppress(StopIteration):
        while True:
            try:
                yield next(packets)
            except av.FFmpegError:  # what follows cannot be found any more
                lost.append("its end, which is broken")
                return
