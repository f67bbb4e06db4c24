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


def clip(path, frames=12, rotation=0, codec="libx264", sound="aac", pace=PACE, times=None, size=SIZE):
    """A video with sound; `times` places its frames, in ticks of its clock."""
    pytest.importorskip("av", reason="needs PyAV: pip install -r requirements-extras.txt")
    av, kind = videos.av, "bgr0" if codec == "ffv1" else "yuv420p"
    with av.open(str(path), "w") as container:
        picture = container.add_stream(codec, rate=pace)
        (picture.height, picture.width), picture.pix_fmt = size, kind
        picture.codec_context.time_base = 1 / pace if times is None else Fraction(1, 1000)
        if kind == "yuv420p":
            picture.codec_context.colorspace = picture.codec_context.color_primaries = 1  # BT.709
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
        ("x.mkv", {"sound": "flac"}),
        ("x.webm", {"codec": "libvpx-vp9", "sound": "libopus"}),
        ("x.avi", {"codec": "mpeg4", "sound": "mp3"}),
        ("x.ts", {}),
        ("x.mkv", {"codec": "ffv1", "sound": "flac", "size": (35, 41)}),  # odd sides
        ("x.mkv", {"frames": len(UNEVEN), "times": UNEVEN, "sound": "flac", "pace": Fraction(25)}),
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
    target, _ = rewrite(clip(tmp_path / "x.avi", codec="mpeg4", sound="mp3"), tmp_path, lambda rgb: noise)
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
    path = clip(
        tmp_path / name, frames=120, **({"codec": "mpeg4", "sound": "mp3"} if name == "x.avi" else {})
    )
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
    with pytest.raises(UserError, match=r"x\.mp4 is a video: .*requirements-extras\.txt"):
        videos.rewrite(tmp_path / "x.mp4", tmp_path / "out.mp4", lambda rgb: rgb)
