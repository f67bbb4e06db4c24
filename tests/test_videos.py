"""Videos in and out. Those that need PyAV, an extra, are passed over without it."""

import resource
from fractions import Fraction

import numpy as np
import pytest

from machinery import videos
from utils import UserError, write_atomically

by_pyav = pytest.mark.skipif(not videos.av, reason="needs PyAV: pip install -r requirements-extras.txt")
SIZE = (48, 64)
PACE = Fraction(30000, 1001)


def shade(number):
    return 30 + 8 * number % 200


def frame(number, size=SIZE):
    """A colour that changes, with a dark upper left corner, which tells how it is turned."""
    rgb = np.full((*size, 3), (shade(number), 90, 160), np.uint8)
    rgb[: size[0] // 2, : size[1] // 2] //= 4
    return rgb


def clip(path, frames=12, rotation=0, codec="libx264", sound="aac", pace=PACE, times=None):
    """A video with sound; `times` places its frames, in ticks of its clock."""
    av = videos.av
    with av.open(str(path), "w") as container:
        picture = container.add_stream(codec, rate=pace)
        picture.height, picture.width, picture.pix_fmt = *SIZE, "yuv420p"
        picture.codec_context.time_base = 1 / pace if times is None else Fraction(1, 1000)
        picture.codec_context.colorspace = picture.codec_context.color_primaries = 1  # BT.709
        if rotation:
            picture.set_display_rotation(rotation)
        track = container.add_stream(sound, rate=48000)
        for number in range(frames):
            image = av.VideoFrame.from_ndarray(frame(number), "rgb24").reformat(
                format="yuv420p", dst_colorspace="itu709"
            )
            image.pts = number if times is None else times[number]
            container.mux(picture.encode(image))
        container.mux(picture.encode(None))
        tone = (2000 * np.sin(np.arange(int(48000 * frames / pace)) / 17)).astype(np.int16)
        for start in range(0, len(tone), 960):
            part = av.AudioFrame.from_ndarray(tone[None, start : start + 960], "s16", "mono")
            part.sample_rate, part.pts = 48000, start
            container.mux(track.encode(part))
        container.mux(track.encode(None))
    return path


def frames_of(path):
    with videos.av.open(str(path)) as container:
        return [(each.time, each.to_ndarray(format="rgb24")) for each in container.decode(video=0)]


def start_of(path):
    with videos.av.open(str(path)) as container:
        return max(0, container.start_time) / videos.av.time_base


def sound_of(path):
    with videos.av.open(str(path)) as container:
        return np.concatenate([each.to_ndarray() for each in container.decode(audio=0)], axis=1)


def rewrite(path, tmp_path, paint=lambda rgb: rgb):
    target = tmp_path / f"out{videos.CONTAINERS[path.suffix]}"
    return target, videos.rewrite(path, target, paint)


@by_pyav
@pytest.mark.parametrize(
    ("name", "codec", "sound"),
    [
        ("x.mp4", "libx264", "aac"),
        ("x.mov", "libx264", "aac"),
        ("x.mkv", "libx264", "flac"),
        ("x.webm", "libvpx-vp9", "libopus"),
        ("x.avi", "mpeg4", "mp3"),
        ("x.ts", "libx264", "aac"),
    ],
)
def test_frames_their_times_and_the_sound_stay(tmp_path, name, codec, sound):
    path = clip(tmp_path / name, codec=codec, sound=sound)
    target, lost = rewrite(path, tmp_path)
    before, after = frames_of(path), frames_of(target)
    assert not lost and len(before) == len(after)
    start = start_of(path)  # of a .ts, which becomes 0
    for (time, image), (new_time, new_image) in zip(before, after, strict=True):
        assert abs(time - start - new_time) < 0.001
        assert np.abs(image.astype(int) - new_image).mean() < 3
    assert np.array_equal(sound_of(path), sound_of(target))
    with videos.av.open(str(target)) as container:
        assert container.streams.video[0].guessed_rate == PACE
        assert container.start_time == 0 and container.duration < 1e6  # microseconds; of 12 frames
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted({name, target.name})


@by_pyav
def test_the_network_sees_and_makes_every_frame_upright(tmp_path):
    path = clip(tmp_path / "x.mp4", rotation=90)
    seen = []

    def paint(rgb):
        seen.append(rgb)
        return 255 - rgb

    target, _ = rewrite(path, tmp_path, paint)
    (_, made), *_ = frames_of(target)
    expected = np.rot90(frame(0))
    assert np.abs(seen[0].astype(int) - expected).mean() < 3
    assert np.abs(made.astype(int) - (255 - expected)).mean() < 3


@by_pyav
def test_frames_at_uneven_times_stay_where_they_are(tmp_path):
    times = [0, 40, 80, 200, 210, 500, 900, 901]
    path = clip(tmp_path / "x.mkv", frames=8, times=times, sound="flac", pace=Fraction(25))
    target, _ = rewrite(path, tmp_path)
    assert [round(1000 * time) for time, _ in frames_of(target)] == times


@by_pyav
def test_odd_sides_stay(tmp_path):
    path = tmp_path / "x.mkv"
    with videos.av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 35, 41, "bgr0"
        for number in range(3):
            image = videos.av.VideoFrame.from_ndarray(frame(number, (35, 41)), "rgb24")
            container.mux(stream.encode(image.reformat(format="bgr0")))
        container.mux(stream.encode(None))
    target, _ = rewrite(path, tmp_path)
    assert [image.shape for _, image in frames_of(target)] == [(35, 41, 3)] * 3


@by_pyav
@pytest.mark.parametrize(
    ("name", "codec", "sound"),
    [("x.mkv", "libx264", "aac"), ("x.ts", "libx264", "aac"), ("x.avi", "mpeg4", "mp3")],
)
def test_a_broken_end_is_told_and_what_is_before_it_kept(tmp_path, name, codec, sound):
    path = clip(tmp_path / name, frames=120, codec=codec, sound=sound)
    data = path.read_bytes()
    (tmp_path / f"cut{path.suffix}").write_bytes(data[: len(data) // 3])
    whole, lost = rewrite(path, tmp_path)
    assert not lost and len(frames_of(whole)) == 120
    if name != "x.ts":  # which tells its length nowhere: whoever cuts it makes a shorter one
        target, lost = rewrite(tmp_path / f"cut{path.suffix}", tmp_path)
        assert any("end" in each for each in lost)
        assert 0 < len(frames_of(target)) < 100


@by_pyav
@pytest.mark.parametrize("content", [b"text", b"", None])
def test_what_is_no_video_is_named(tmp_path, content):
    path = tmp_path / "x.mp4"
    if content is None:
        path = clip(path)
        path.write_bytes(path.read_bytes()[:2000])  # the table of an MP4 stands at its end
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.mp4 is not a video, or is cut short"):
        rewrite(path, tmp_path)
    assert not (tmp_path / "out.mp4").exists()


@by_pyav
def test_a_full_disk_is_told_and_the_earlier_video_stays(tmp_path):
    path = clip(tmp_path / "x.mp4", frames=60)
    target = tmp_path / "out.mp4"
    target.write_bytes(b"earlier")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as good as a full disk
    try:
        with pytest.raises(UserError, match=r"cannot be written"):
            write_atomically(target, lambda to: videos.rewrite(path, to, lambda rgb: rgb))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == b"earlier"
    assert {each.name for each in tmp_path.iterdir()} == {"x.mp4", "out.mp4"}


def test_without_pyav_a_video_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "av", None)
    with pytest.raises(UserError, match=r"x\.mp4 is a video: .*requirements-extras\.txt"):
        videos.rewrite(tmp_path / "x.mp4", tmp_path / "out.mp4", lambda rgb: rgb)
