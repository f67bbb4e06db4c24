"""Videos in and out. Those that need PyAV, an extra, are passed over without it."""

import resource
from fractions import Fraction

import numpy as np
import pytest

from photographs import videos
from utils import UserError, write_atomically

UNEVEN = [0, 40, 80, 200, 210, 500, 900, 901]
SIZE = (48, 64)
PACE = Fraction(30000, 1001)


def frame(number, size=SIZE):
    """A colour that changes, with a dark upper left corner, which tells how it is turned."""
    rgb = np.full((*size, 3), (30 + 8 * number % 200, 90, 160), np.uint8)
    rgb[: size[0] // 2, : size[1] // 2] //= 4
    return rgb


CODECS = {".webm": ("libvpx-vp9", "libopus"), ".avi": ("mpeg4", "mp3"), ".mkv": ("libx264", "flac")}


def clip(path, frames=12, codec="", times=None, pace=PACE, size=SIZE, rotation=0, kind="yuv420p", **settings):
    """A video with sound. `times` places its frames, in milliseconds; `settings` are of its codec."""
    pytest.importorskip("av", reason="needs PyAV: pip install -r photographs/requirements.txt")
    usual, sound = CODECS.get(path.suffix, ("libx264", "aac"))
    av, kind = videos.av, "bgr0" if codec in ("ffv1", "libx264rgb") else kind
    with av.open(str(path), "w") as container:
        picture = container.add_stream(codec or usual, rate=pace)
        (picture.height, picture.width), picture.pix_fmt = size, kind
        picture.codec_context.time_base = 1 / pace if times is None else Fraction(1, 1000)
        if kind == "yuv420p":
            settings |= {"colorspace": 1, "color_primaries": 1}  # BT.709
        for name, value in settings.items():
            setattr(picture.codec_context, name, value)
        if rotation:
            picture.set_display_rotation(rotation)
        track = container.add_stream(sound, rate=48000)
        for number in range(frames):
            image = av.VideoFrame.from_ndarray(frame(number, size), "rgb24")
            image = image.reformat(format=kind, dst_colorspace="itu709" if kind == "yuv420p" else None)
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


def sound_of(path):
    with videos.av.open(str(path)) as container:
        return np.concatenate([each.to_ndarray() for each in container.decode(audio=0)], axis=1)


def rewrite(path, tmp_path, paint=lambda rgb: rgb):
    target = tmp_path / f"out{videos.CONTAINERS[path.suffix]}"
    return target, videos.rewrite(path, target, paint)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("x.mp4", {}),
        ("x.mov", {}),
        ("x.mkv", {}),
        ("x.webm", {}),
        ("x.avi", {}),
        ("x.ts", {}),
        ("x.mkv", {"codec": "ffv1", "size": (35, 41)}),  # odd sides
        ("x.mkv", {"frames": len(UNEVEN), "times": UNEVEN, "pace": Fraction(25)}),
    ],
)
def test_frames_their_times_and_the_sound_stay(tmp_path, name, how):
    path = clip(tmp_path / name, **how)
    target, lost = rewrite(path, tmp_path)
    before, after = frames_of(path), frames_of(target)
    assert not lost
    with videos.av.open(str(path)) as container:  # a .ts begins anywhere, and then at 0
        start = max(0, container.start_time) / videos.av.time_base
    for (time, image), (new_time, new_image) in zip(before, after, strict=True):
        assert abs(time - start - new_time) < 0.001
        assert np.abs(image.astype(int) - new_image).mean() < 3
    assert np.array_equal(sound_of(path), sound_of(target))
    with videos.av.open(str(target)) as container:
        assert container.start_time == 0 and container.duration < 1e6  # microseconds; of 12 frames
        assert "times" in how or container.streams.video[0].guessed_rate == PACE
    assert "times" not in how or [round(1000 * time) for time, _ in after] == UNEVEN
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted({name, target.name})


def test_the_brightness_of_frames_stays(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    target, _ = rewrite(clip(tmp_path / "x.avi"), tmp_path, lambda rgb: noise)
    seen = []

    def look(rgb):
        seen.append(rgb.mean())
        return rgb

    videos.rewrite(target, tmp_path / "again.mkv", look)
    assert seen == pytest.approx([noise.mean()] * 12, abs=0.3)  # there and back


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


@pytest.mark.parametrize("name", ["x.mkv", "x.ts", "x.avi"])
def test_a_broken_end_is_told_and_what_is_before_it_kept(tmp_path, name):
    path = clip(tmp_path / name, frames=120)
    data = path.read_bytes()
    (tmp_path / f"cut{path.suffix}").write_bytes(data[: len(data) // 3])
    whole, lost = rewrite(path, tmp_path)
    assert not lost and len(frames_of(whole)) == 120
    if name != "x.ts":  # which tells its length nowhere: whoever cuts it makes a shorter one
        target, lost = rewrite(tmp_path / f"cut{path.suffix}", tmp_path)
        assert any("end" in each for each in lost)
        assert 0 < len(frames_of(target)) < 100


@pytest.mark.parametrize("content", [b"text", b"", None])
def test_what_is_no_video_is_named(tmp_path, content):
    path = clip(tmp_path / "x.mp4")
    # the table of an MP4 stands at its end
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(UserError, match=r"x\.mp4 is not a video, or is cut short"):
        rewrite(path, tmp_path)
    assert not (tmp_path / "out.mp4").exists()


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
    with pytest.raises(UserError, match=r"x\.mp4 is a video: .*photographs/requirements\.txt"):
        videos.rewrite(tmp_path / "x.mp4", tmp_path / "out.mp4", lambda rgb: rgb)


def test_a_clock_that_starts_again_runs_on(tmp_path):
    """As in a camera's parts, put together byte by byte: with sound too."""
    data = clip(tmp_path / "x.ts", frames=60).read_bytes()
    (tmp_path / "twice.ts").write_bytes(data + data)
    target, _ = rewrite(tmp_path / "twice.ts", tmp_path)
    times = [time for time, _ in frames_of(target)]
    assert len(times) == 120 and np.diff(times) == pytest.approx([float(1 / PACE)] * 119, abs=0.002)
    assert sound_of(target).shape[1] == pytest.approx(2 * sound_of(tmp_path / "x.ts").shape[1], rel=0.02)


def test_the_last_frame_of_a_variable_rate_lasts_as_long_as_it_did(tmp_path):
    times = [0, 40, 80, 5000, 5040]
    path = clip(tmp_path / "x.mp4", len(times), times=times, codec="mpeg4", pace=Fraction(25))
    for target in (tmp_path / "out.mp4", tmp_path / "out.mkv"):
        videos.rewrite(path, target, lambda rgb: rgb)
        with videos.av.open(str(target)) as result:
            assert result.duration / videos.av.time_base == pytest.approx(5.08, abs=0.03)


def test_the_film_is_derained_and_a_cover_picture_is_not(tmp_path):
    pytest.importorskip("av", reason="needs PyAV")
    with videos.av.open(str(tmp_path / "x.mkv"), "w") as container:
        cover, film = (container.add_stream(codec, rate=10) for codec in ("mjpeg", "libx264"))
        cover.pix_fmt, film.pix_fmt = "yuvj420p", "yuv420p"
        for stream in (cover, film):
            stream.height, stream.width = SIZE
        for stream, count in ((cover, 1), (film, 8)):
            for number in range(count):
                image = videos.av.VideoFrame.from_ndarray(frame(number), "rgb24")
                container.mux(stream.encode(image.reformat(format=stream.pix_fmt)))
            container.mux(stream.encode(None))
    target, lost = rewrite(tmp_path / "x.mkv", tmp_path)
    assert lost == ["video track 0"] and len(frames_of(target)) == 8


def test_only_the_named_file_is_opened_whatever_its_name(tmp_path):
    path = clip(tmp_path / "12:30.mp4")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile 12:30.mp4\n")
    assert len(frames_of(rewrite(path.rename(tmp_path / "12:31.mp4"), tmp_path)[0])) == 12
    with pytest.raises(UserError, match=r"list\.mp4 is not a video"):
        rewrite(tmp_path / "list.mp4", tmp_path)


def test_a_codec_that_is_unknown_and_frames_that_are_too_large_are_refused(tmp_path, monkeypatch):
    path = clip(tmp_path / "x.mp4")
    monkeypatch.setattr(videos, "MAX_PIXELS", SIZE[0] * SIZE[1] - 1)
    with pytest.raises(UserError, match=r"x\.mp4 says that its frames are 64x48: too large"):
        rewrite(path, tmp_path)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"none"))
    with pytest.raises(UserError, match=r"x\.mp4 has an unsupported video codec: convert it to H\.264"):
        rewrite(path, tmp_path)


def test_what_the_result_does_not_hold_of_the_frames_is_named(tmp_path):
    path = clip(tmp_path / "x.mkv", codec="libx264rgb")
    with videos.av.open(str(path)) as source:
        assert int(next(source.decode(video=0)).colorspace) == 0  # RGB
    target, lost = rewrite(path, tmp_path)
    assert lost == ["full colour resolution (now 4:2:0)"]
    with videos.av.open(str(target)) as result:
        assert int(next(result.decode(video=0)).colorspace) == 1  # which H.264 forbids for 4:2:0
    path = clip(tmp_path / "x.mp4", options={"x264-params": "tff=1"})
    assert rewrite(path, tmp_path)[1] == ["interlacing"]


@pytest.mark.parametrize("rotation", [0, 90])
def test_the_pixel_aspect_and_the_colour_range_stay(tmp_path, rotation):
    how = {"kind": "yuvj420p", "sample_aspect_ratio": Fraction(4, 3), "color_range": 2}  # full
    path = clip(tmp_path / "x.mp4", rotation=rotation, **how)
    target, _ = rewrite(path, tmp_path)
    with videos.av.open(str(target)) as result:
        first = next(result.decode(video=0))
        assert result.streams.video[0].sample_aspect_ratio == (Fraction(3, 4) if rotation else Fraction(4, 3))
        assert int(first.color_range) == 2
