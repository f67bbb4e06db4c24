"""Pictures in and out with all that they are."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from machinery.pictures import EXIF_IFD, FORMATS, GPS_IFD, ORIENTATION, Picture, encoded, read_picture
from utils import UserError

TAKEN, LONGITUDE, MAKER, WIDTH = 0x9003, 3, 0x010F, 0xA002
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXACT = (".png", ".tif")


def noise(shape, kind=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)


def photograph(path, orientation=1, size=(40, 64)):
    """As a camera writes it: turned, with a profile, and EXIF in three folders."""
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKER] = orientation, "Maker"
    exif.get_ifd(EXIF_IFD).update({TAKEN: "2026:01:02 03:04:05", WIDTH: size[1], 0xA003: size[0]})
    exif.get_ifd(GPS_IFD)[LONGITUDE] = "E"
    kind: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(noise((*size, 3))).save(path, exif=exif.tobytes(), icc_profile=SRGB, **kind)
    return path


def written(path, picture, suffix):
    path = path.with_suffix(suffix)
    path.write_bytes(encoded(picture, suffix)[0])
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_a_picture_is_set_upright_and_says_so(tmp_path, suffix, orientation):
    path = photograph(tmp_path / f"in{suffix}", orientation)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    picture = read_picture(path)
    assert np.abs(picture.pixels.astype(int) - expected).max() <= 1  # two libraries decode a JPEG
    again = read_picture(written(tmp_path / "out", picture, ".png"))
    assert again.exif[ORIENTATION] == 1 and again.exif.get_ifd(EXIF_IFD)[WIDTH] == expected.shape[1]
    assert np.array_equal(again.pixels, picture.pixels)


@pytest.mark.parametrize("to", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_profile_and_exif_come_along(tmp_path, suffix, to):
    picture = read_picture(photograph(tmp_path / f"in{suffix}"))
    with Image.open(written(tmp_path / "out", picture, to)) as image:
        exif = image.getexif()
        assert image.info["icc_profile"] == SRGB
        assert exif[MAKER] == "Maker" and exif.get_ifd(EXIF_IFD)[TAKEN] == "2026:01:02 03:04:05"
        assert exif.get_ifd(GPS_IFD)[LONGITUDE] == "E"


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(33, 47), (33, 47, 3)])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("suffix", FORMATS.values())
def test_bits_grey_and_transparency_stay_or_are_told(tmp_path, kind, shape, alpha, suffix):
    if alpha and kind == np.uint16 and len(shape) == 2:
        return  # no reader gives that
    picture = Picture(noise(shape, kind), noise(shape[:2], kind, 1) if alpha else None)
    data, lost = encoded(picture, suffix)
    (tmp_path / "x").write_bytes(data)
    again = read_picture(tmp_path / "x")
    assert again.pixels.shape[:2] == shape[:2]
    assert (again.pixels.dtype == kind) is ("16 bits" not in lost)
    assert (again.alpha is not None) is (alpha and "transparency" not in lost)
    if suffix in EXACT:
        colours = picture.pixels
        if alpha and colours.ndim == 2 and suffix == ".png":
            colours = np.dstack([colours] * 3)  # OpenCV writes no grey with transparency
        assert not lost and np.array_equal(again.pixels, colours)
        if again.alpha is not None and picture.alpha is not None:
            assert np.array_equal(again.alpha, picture.alpha)


def test_what_a_network_makes_comes_back_in_the_pictures_own_bits():
    for kind in (np.uint8, np.uint16):
        colour, grey = Picture(noise((20, 30, 3), kind)), Picture(noise((20, 30), kind))
        for picture in (colour, grey):
            tensor = picture.tensor()
            assert tensor.shape == (3, 20, 30) and tensor.dtype == torch.float32
            assert np.array_equal(picture.painted(tensor).pixels, picture.pixels)
        top = np.iinfo(kind).max
        assert (colour.painted(torch.full((3, 20, 30), 1.5)).pixels == top).all()
        assert (colour.painted(torch.full((3, 20, 30), -0.5)).pixels == 0).all()


def test_a_browser_is_shown_srgb_on_white():
    red = np.full((4, 5, 3), (65535, 0, 0), np.uint16)
    half = Picture(red, np.full((4, 5), 32768, np.uint16))
    assert (half.shown() == (255, 127, 127)).all() and half.shown().dtype == np.uint8
    swapped = SRGB.replace(b"rXYZ", b"wait").replace(b"gXYZ", b"rXYZ").replace(b"wait", b"gXYZ")
    assert (Picture(red, icc=SRGB).shown() == (255, 0, 0)).all()
    assert (Picture(red, icc=swapped).shown() == (0, 255, 0)).all()
    assert (Picture(red, icc=b"no profile").shown() == (255, 0, 0)).all()


def test_printing_colours_become_srgb_and_are_told(tmp_path):
    for suffix in (".jpg", ".tif"):
        Image.new("CMYK", (30, 20), (0, 255, 255, 0)).save(tmp_path / f"x{suffix}")
        picture = read_picture(tmp_path / f"x{suffix}")
        red, green, blue = picture.pixels[10, 10].astype(int)
        assert red > 200 and green < 90 and blue < 90 and picture.alpha is None
        assert any("CMYK" in each for each in picture.lost)


def test_a_profile_of_another_kind_than_the_pixels_is_left_out(tmp_path):
    Image.fromarray(noise((20, 30))).save(tmp_path / "x.png", icc_profile=SRGB)
    picture = read_picture(tmp_path / "x.png")
    assert picture.icc is None and any("profile" in each for each in picture.lost)


def test_broken_exif_is_left_out_and_told(tmp_path):
    data = bytearray(photograph(tmp_path / "x.jpg").read_bytes())
    start = data.index(b"Exif\0\0") + 6
    data[start : start + 2] = b"??"
    (tmp_path / "x.jpg").write_bytes(data)
    picture = read_picture(tmp_path / "x.jpg")
    assert not len(picture.exif) and picture.pixels.shape == (40, 64, 3)


def test_other_pictures_of_a_file_are_told(tmp_path):
    first, second = (Image.fromarray(noise((20, 30, 3), seed=seed)) for seed in (0, 1))
    first.save(tmp_path / "x.tif", save_all=True, append_images=[second])
    picture = read_picture(tmp_path / "x.tif")
    assert picture.lost == ("all but its first picture",)
    assert np.array_equal(picture.pixels, noise((20, 30, 3)))


def test_what_is_no_picture_is_named(tmp_path):
    file = io.BytesIO()
    Image.fromarray(noise((40, 50, 3))).save(file, "PNG")
    broken = {"cut.png": file.getvalue()[:-40], "text.png": b"text", "empty.png": b""}
    Image.fromarray(np.zeros((4, 5), np.float32)).save(tmp_path / "float.tif")
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
    for name in (*broken, "float.tif", "none.png"):
        with pytest.raises(UserError, match=name):
            read_picture(tmp_path / name)


def test_a_side_too_long_for_the_format_is_refused():
    with pytest.raises(UserError, match="--format png"):
        encoded(Picture(np.zeros((1, 20000, 3), np.uint8)), ".webp")
