"""Pictures in and out with all that they are."""

import io
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from photographs.pictures import EXIF_IFD, FORMATS, GPS_IFD, ORIENTATION, Picture, encoded, read_picture
from utils import UserError, read_image

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
    assert again.exif.get(ORIENTATION, 1) == 1 and WIDTH not in again.exif.get_ifd(EXIF_IFD)
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


def picture_of(kind, grey=False, alpha=False, size=(33, 47)):
    pixels = np.dstack([noise(size, kind)] * 3) if grey else noise((*size, 3), kind)
    return Picture(pixels, noise(size, kind, 1) if alpha else None, grey)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("suffix", FORMATS.values())
def test_bits_grey_and_transparency_stay_or_are_told(tmp_path, kind, grey, alpha, suffix):
    """Read back what was written, of every kind."""
    picture = picture_of(kind, grey, alpha)
    _, lost = encoded(picture, suffix)
    again = read_picture(written(tmp_path / "x", picture, suffix))
    assert again.pixels.shape == picture.pixels.shape
    assert (again.pixels.dtype == kind) is ("16 bits" not in lost)
    assert (again.alpha is not None) is (alpha and "transparency" not in lost)
    if suffix in EXACT:
        assert not lost and np.array_equal(again.pixels, picture.pixels)
        if again.alpha is not None and picture.alpha is not None:
            assert np.array_equal(again.alpha, picture.alpha)
        elif not alpha:
            assert again.grey == grey


def test_of_several_pictures_the_first_is_read_and_its_tiles_are_not_the_results(tmp_path):
    pages = [noise((48, 64, 3), seed=seed) for seed in (0, 1)]
    tifffile.imwrite(tmp_path / "x.tif", np.stack(pages), tile=(16, 16), photometric="rgb")
    picture = read_picture(tmp_path / "x.tif")
    assert picture.lost == ("all but its first picture",) and np.array_equal(picture.pixels, pages[0])
    for suffix in FORMATS.values():
        again = read_picture(written(tmp_path / "out", picture, suffix))
        assert again.pixels.shape == (48, 64, 3)
        assert suffix not in EXACT or np.array_equal(again.pixels, pages[0])


def test_grey_with_one_transparent_level_keeps_it(tmp_path):
    Image.fromarray(noise((20, 30))).save(tmp_path / "x.png", transparency=7)
    picture = read_picture(tmp_path / "x.png")
    assert picture.alpha is not None and np.array_equal(picture.alpha == 0, noise((20, 30)) == 7)


def test_what_a_network_makes_comes_back_in_the_pictures_own_bits():
    for kind in (np.uint8, np.uint16):
        for grey in (False, True):
            picture = picture_of(kind, grey)
            tensor = picture.tensor()
            assert tensor.shape == (3, 33, 47) and tensor.dtype == torch.float32
            assert np.array_equal(picture.with_pixels(tensor).pixels, picture.pixels)
        top, colour = np.iinfo(kind).max, picture_of(kind)
        assert (colour.with_pixels(torch.full((3, 33, 47), 1.5)).pixels == top).all()
        assert (colour.with_pixels(torch.full((3, 33, 47), -0.5)).pixels == 0).all()


def test_a_browser_is_shown_srgb_on_white():
    red = np.full((4, 5, 3), (65535, 0, 0), np.uint16)
    half = Picture(red, np.full((4, 5), 32768, np.uint16))
    assert (half.to_display() == (255, 127, 127)).all() and half.to_display().dtype == np.uint8
    swapped = SRGB.replace(b"rXYZ", b"wait").replace(b"gXYZ", b"rXYZ").replace(b"wait", b"gXYZ")
    assert (Picture(red, icc=SRGB).to_display() == (255, 0, 0)).all()
    assert (Picture(red, icc=swapped).to_display() == (0, 255, 0)).all()
    assert (Picture(red, icc=b"no profile").to_display() == (255, 0, 0)).all()


def test_printing_colours_become_srgb_and_are_told(tmp_path):
    for suffix in (".jpg", ".tif"):
        Image.new("CMYK", (30, 20), (0, 255, 255, 0)).save(tmp_path / f"x{suffix}")
        picture = read_picture(tmp_path / f"x{suffix}")
        red, green, blue = picture.pixels[10, 10].astype(int)
        assert red > 200 and green < 90 and blue < 90 and picture.alpha is None
        assert any("CMYK" in each for each in picture.lost)


@pytest.mark.parametrize(("shape", "kind"), [((20, 30), b"RGB "), ((20, 30, 3), b"GRAY")])
def test_a_profile_of_another_kind_than_the_pixels_is_left_out(tmp_path, shape, kind):
    profile = SRGB[:16] + kind + SRGB[20:]
    Image.fromarray(noise(shape)).save(tmp_path / "x.png", icc_profile=profile)
    picture = read_picture(tmp_path / "x.png")
    assert not picture.icc and any("profile" in each for each in picture.lost)


@pytest.mark.parametrize("profile", [b"no profile", SRGB[:200]])
@pytest.mark.parametrize("suffix", EXACT)
def test_a_broken_profile_refuses_no_photograph(tmp_path, profile, suffix):
    picture = picture_of(np.uint8)
    again = read_picture(written(tmp_path / "x", replace(picture, icc=profile), suffix))
    assert np.array_equal(again.pixels, picture.pixels) and encoded(again, suffix)[0]


def test_whatever_byte_of_its_exif_is_wrong_a_photograph_is_read(tmp_path):
    whole = photograph(tmp_path / "x.jpg").read_bytes()
    start = whole.index(b"Exif\0\0") + 6
    lost = set()
    for place in range(start, start + len(Image.open(tmp_path / "x.jpg").getexif().tobytes()) - 6):
        for change in (1, 7):  # 7 turns text, type 2, into fractions, type 5
            data = bytearray(whole)
            data[place] ^= change
            (tmp_path / "x.jpg").write_bytes(data)
            picture = read_picture(tmp_path / "x.jpg")
            assert picture.pixels.shape[2] == 3 and encoded(picture, ".jpg")
            assert not picture.lost or (picture.pixels.shape == (40, 64, 3) and not len(picture.exif))
            lost |= set(picture.lost)
    assert "EXIF, which is broken" in lost


PNG, _ = encoded(Picture(noise((200, 300, 3))), ".png")
CUT_SHORT, NO_FORMAT = r"x\.jpg .*cut short", r"x\.jpg is of the unsupported format "
MISREAD = r"x\.jpg is an unsupported TIFF .*save it as PNG"  # by OpenCV


def tiff(shape, kind=np.uint16, **how):
    return lambda path: tifffile.imwrite(path, noise(shape).astype(kind), **how)


@pytest.mark.parametrize("read", [read_picture, read_image])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"text", CUT_SHORT),
        (b"", CUT_SHORT),
        (PNG[:-40], r"x\.jpg"),
        (PNG[:9000] + bytes([PNG[9000] ^ 1]) + PNG[9001:], r"x\.jpg"),  # its checksum is another
        (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1", NO_FORMAT + "AVIF: save"),
        (lambda path: Image.new("RGB", (9, 8)).save(path, "GIF"), NO_FORMAT + "GIF: save"),
        (tiff((8, 9, 3), np.float32, photometric="rgb"), NO_FORMAT + "TIFF with float32 samples: save"),
        (tiff((3, 20, 30), photometric="rgb", planarconfig="separate"), MISREAD),
        (tiff((20, 30), photometric="miniswhite"), MISREAD),
        (tiff((20, 30, 4), photometric="rgb", extrasamples=["assocalpha"]), MISREAD),
    ],
)
def test_what_is_not_read_is_named(tmp_path, read, content, says):
    path = tmp_path / "x.jpg"
    content(path) if callable(content) else path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        read(path)


def test_a_side_too_long_for_the_format_is_refused():
    with pytest.raises(UserError, match="use another --format"):
        encoded(Picture(np.zeros((1, 20000, 3), np.uint8)), ".webp")


def test_what_a_result_does_not_keep_of_the_metadata_is_named(tmp_path):
    noisy = Image.fromarray(noise((20, 30, 3)))
    noisy.save(tmp_path / "x.jpg", xmp=b"<x:xmpmeta/>", comment=b"mine", dpi=(300, 300), icc_profile=SRGB)
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "t")
    text.add(b"gAMA", (100_000).to_bytes(4))
    noisy.save(tmp_path / "y.png", pnginfo=text, dpi=(300, 300))
    photo, graphic = read_picture(tmp_path / "x.jpg"), read_picture(tmp_path / "y.png")
    assert photo.lost == ("XMP", "comment")
    assert graphic.lost == ("text (Title)", "gamma (gAMA 1), which browsers apply")
    deep = replace(photo, pixels=photo.pixels.astype(np.uint16) * 257, grey=True)
    for suffix in FORMATS.values():
        _, lost = encoded(photo, suffix)
        kept = read_picture(written(tmp_path / "out", photo, suffix)).dpi
        assert (kept == pytest.approx((300, 300), abs=0.1)) is (suffix != ".webp")
        assert ("resolution" in lost) is (suffix == ".webp")
    assert "resolution" in encoded(deep, ".png")[1] and "resolution" not in encoded(deep, ".tif")[1]
    assert "colour profile" in encoded(replace(deep, alpha=deep.pixels[..., 0]), ".tif")[1]


def test_sixteen_bits_become_the_nearest_of_eight(tmp_path):
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1).repeat(3, 2)
    expected = np.round(levels / 257).astype(np.uint8)
    assert np.array_equal(Picture(levels).in_eight_bits().pixels, expected)
    for suffix, alpha in itertools.product(EXACT, (None, levels[..., 0])):
        assert np.array_equal(read_image(written(tmp_path / "x", Picture(levels, alpha), suffix)), expected)


def test_a_16_bit_tiff_says_that_its_colours_are_not_multiplied_by_its_alpha():
    data, _ = encoded(picture_of(np.uint16, alpha=True), ".tif")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert [int(each) for each in file.pages.first.tags["ExtraSamples"].value] == [2]  # unassociated


def test_8_bit_tiffs_are_read_whatever_their_layout(tmp_path):
    path = tmp_path / "x.tif"

    def picture(pixels, **how):
        tifffile.imwrite(path, pixels, **how)
        assert np.array_equal(read_image(path), read_picture(path).pixels)
        return read_picture(path).pixels

    planes, light = noise((3, 20, 30)), noise((20, 30, 4)) // 2 + 128
    made = picture(planes, photometric="rgb", planarconfig="separate")
    assert np.array_equal(made, planes.transpose(1, 2, 0))
    made = picture(planes[0], photometric="miniswhite")
    assert np.array_equal(made, 255 - np.dstack([planes[0]] * 3))
    made = picture(light, photometric="rgb", extrasamples=["assocalpha"])
    assert np.abs(made - (light[..., :3] * 255.0 / light[..., 3:]).clip(0, 255)).max() < 1  # divided again
    black_or_white = 255 * (planes[0] // 128)
    Image.fromarray(black_or_white).convert("1").save(path)
    assert np.array_equal(read_image(path), np.dstack([black_or_white] * 3))
    assert np.array_equal(read_picture(path).pixels, read_image(path))


def test_a_tiffs_colours_are_not_multiplied_by_its_alpha(tmp_path):
    for kind in (np.uint8, np.uint16):
        pixels = noise((20, 30, 4), kind)
        tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
        colours = read_image(tmp_path / "x.tif")
        assert np.abs(colours - pixels[..., :3] / (257 if kind == np.uint16 else 1)).max() < 1


def test_a_noisy_png_is_no_larger_than_at_pillows_default_level(tmp_path):
    pixels = noise((256, 256, 3)) // 8 + 100
    Image.fromarray(pixels).save(tmp_path / "x.png")
    data, _ = encoded(Picture(pixels), ".png")
    assert len(data) < 1.01 * (tmp_path / "x.png").stat().st_size
    (tmp_path / "y.png").write_bytes(data)
    assert np.array_equal(read_picture(tmp_path / "y.png").pixels, pixels)
