"""Pictures in and out as they are: 8 or 16 bits, grey or colour, transparency, colour profile, EXIF.

`utils.read_image` gives a benchmark's image, 8 bits of RGB; this gives a person's own, and what lies beside
its pixels. OpenCV reads and writes most pixels, since Pillow has no 16 bits of colour; Pillow knows the rest.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageCms, TiffImagePlugin
from torch import Tensor

from utils import UserError, about, image_size

# what holds every picture without loss, and is kept; others are written as PNG
LOSSLESS = {".png": ".png", ".tif": ".tif", ".tiff": ".tif", ".bmp": ".bmp"}
FORMATS = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tif", "bmp": ".bmp"}
ORIENTATION, EXIF_IFD, GPS_IFD, WIDTH, HEIGHT = 0x0112, 0x8769, 0x8825, 0xA002, 0xA003  # tags of EXIF
# of the first EXIF folder: what tells of a file's own layout, and of profiles that lie beside it
LAYOUT = {*range(254, 260), 262, 266, 273, *range(277, 282), 284, 317, *range(320, 326), 330, 338, 339, 347}
LAYOUT |= {512, 513, 514, *range(529, 533), 700, 33723, 34377, 34675}
MOST_IN_JPEG = 65_000  # bytes of EXIF, which must fit into one segment of 64 KB


@dataclass(frozen=True)
class Picture:
    """One picture, upright, and what else its file holds."""

    pixels: np.ndarray  # uint8 or uint16: grey (H, W) or RGB (H, W, 3)
    alpha: np.ndarray | None = None  # of the same kind, (H, W)
    icc: bytes | None = None  # the colour profile
    exif: Image.Exif = field(default_factory=Image.Exif)  # its orientation is always 1
    lost: tuple[str, ...] = ()  # what could not be read with it, in words

    def tensor(self) -> Tensor:
        """Float32 RGB (3, H, W) in [0, 1]; grey is repeated."""
        scaled = torch.from_numpy(self.pixels.astype(np.float32)).div_(_peak(self.pixels))
        return scaled.expand(3, -1, -1) if scaled.dim() == 2 else scaled.permute(2, 0, 1)

    def painted(self, image: Tensor) -> Picture:
        """This picture with the pixels of `image`, float (3, H, W), clamped to [0, 1] and rounded."""
        image = image.mean(0) if self.pixels.ndim == 2 else image.permute(1, 2, 0)
        levels = (image.clamp(0, 1) * _peak(self.pixels)).round_().numpy()
        return replace(self, pixels=levels.astype(self.pixels.dtype))

    def beside(self, other: Picture) -> Picture:
        """Both side by side, with this one's profile and EXIF."""
        alphas = None if self.alpha is None or other.alpha is None else np.hstack([self.alpha, other.alpha])
        return replace(self, pixels=np.hstack([self.pixels, other.pixels]), alpha=alphas)

    def shown(self) -> np.ndarray:
        """As a browser shows it: uint8 RGB (H, W, 3), its profile turned into sRGB, on white."""
        rgb = _in_eight_bits(self.pixels)
        rgb = np.dstack([rgb] * 3) if rgb.ndim == 2 else rgb
        if self.icc and self.pixels.ndim == 3:
            rgb = np.asarray(_in_srgb(Image.fromarray(rgb), self.icc))
        if self.alpha is not None:
            cover = self.alpha[..., None] / np.float32(_peak(self.alpha))
            rgb = (rgb * cover + 255 * (1 - cover)).round().astype(np.uint8)
        return rgb


def _peak(pixels: np.ndarray) -> int:
    return int(np.iinfo(pixels.dtype).max)


def _in_eight_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _in_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    """`image` turned from its profile into sRGB; by Pillow's plain rule where the profile is none."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        turned = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image.convert("RGB")
    return image.convert("RGB") if turned is None else turned


# -------------------------------------------------------------------------------------------------- reading


def read_picture(path: Path) -> Picture:
    """Reads a picture of any kind, and sets it upright as its EXIF says.

    Raises UserError where the file is no picture, is cut short, too large, or has samples of other kinds.
    """
    image_size(path)  # which refuses what is no file, and what lies about its size
    with about(path, "fetch it again"):
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            exif, icc = _exif_of(image), image.info.get("icc_profile")
            orientation = exif.get(ORIENTATION, 1) if exif else 1
            pixels: np.ndarray | None
            kind, mode, several = image.format, image.mode, getattr(image, "n_frames", 1) > 1
            # OpenCV takes the black of CMYK for transparency, and multiplies 8 bits of TIFF by theirs
            if mode == "CMYK":
                pixels = np.asarray(_in_srgb(image, icc or b""))
            elif isinstance(image, TiffImagePlugin.TiffImageFile) and max(image.tag_v2.get(258, [1])) <= 8:
                plain = {"1": "L", "L": "L", "LA": "LA", "RGBA": "RGBA", "PA": "RGBA"}.get(mode, "RGB")
                pixels = np.asarray(image.convert(plain))
            else:
                pixels = _in_rgb(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
    if pixels is None:
        raise UserError(f"{path} is not an image, or is cut short ({len(data):,} bytes): fetch it again")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{path} holds samples of {pixels.dtype}: save it in 8 or 16 bits")
    lost = ["all but its first picture"] if several else []
    if mode == "CMYK":
        lost.append("its printing colours (CMYK), turned into sRGB")
        icc = None
    if exif is None:
        lost.append("its EXIF, which is broken")
        exif = Image.Exif()
    if kind != "TIFF":  # which both set upright by themselves
        pixels = np.ascontiguousarray(upright(pixels, orientation))
    colours, alpha = _split(pixels)
    _tell_upright(exif, colours.shape)
    if icc and icc[16:20] != (b"GRAY" if colours.ndim == 2 else b"RGB "):
        lost.append("its colour profile, of another kind than its pixels")
        icc = None
    return Picture(colours, alpha, icc, exif, tuple(lost))


def _in_rgb(pixels: np.ndarray | None) -> np.ndarray | None:
    """From OpenCV's order of the channels."""
    if pixels is None or pixels.ndim == 2 or pixels.shape[2] == 2:
        return pixels
    code = cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    return cv2.cvtColor(pixels, code)


def _split(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Into colours and transparency: of two or four channels the last one is that."""
    if pixels.ndim == 2 or pixels.shape[2] == 3:
        return pixels, None
    colours = pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]
    return np.ascontiguousarray(colours), np.ascontiguousarray(pixels[..., -1])


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turned and mirrored as EXIF's orientation, 1 to 8, says. Another number leaves it as it is."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _exif_of(image: Image.Image) -> Image.Exif | None:
    """None where it is broken: strangers' EXIF leads Pillow into errors of any kind."""
    try:
        exif = image.getexif()
        exif.get_ifd(EXIF_IFD)
        exif.get_ifd(GPS_IFD)
        for tag in LAYOUT & set(exif):
            del exif[tag]
        exif.tobytes()
    except Exception:
        return None
    return exif


def _tell_upright(exif: Image.Exif, shape: tuple[int, ...]) -> None:
    if len(exif):
        exif[ORIENTATION] = 1
    details = exif.get_ifd(EXIF_IFD)
    details.update({tag: size for tag, size in ((HEIGHT, shape[0]), (WIDTH, shape[1])) if tag in details})


# -------------------------------------------------------------------------------------------------- writing


def encoded(picture: Picture, suffix: str) -> tuple[bytes, tuple[str, ...]]:
    """The bytes of a file of the format that `suffix` names, and what of the picture it does not hold.

    JPEG and WebP are of quality 95. Raises UserError where a side is too long for the format.
    """
    lost = []
    if suffix in (".jpg", ".webp", ".bmp") and picture.pixels.dtype == np.uint16:
        lost.append("16 bits")
        alpha = None if picture.alpha is None else _in_eight_bits(picture.alpha)
        picture = replace(picture, pixels=_in_eight_bits(picture.pixels), alpha=alpha)
    if suffix == ".jpg" and picture.alpha is not None:
        lost.append("transparency")
        picture = replace(picture, alpha=None)
    if suffix == ".tif":
        return _tiff(picture), (*picture.lost, *lost)
    metadata: dict[int, bytes] = {}
    if picture.icc:
        metadata[cv2.IMAGE_METADATA_ICCP] = picture.icc
    if len(picture.exif):
        metadata[cv2.IMAGE_METADATA_EXIF] = picture.exif.tobytes().removeprefix(b"Exif\0\0")
    if suffix == ".jpg" and len(metadata.get(cv2.IMAGE_METADATA_EXIF, b"")) > MOST_IN_JPEG:
        lost.append("EXIF, too long for a JPEG")
        del metadata[cv2.IMAGE_METADATA_EXIF]
    if suffix == ".bmp" and metadata:
        lost.append("colour profile and EXIF")
        metadata = {}
    if picture.icc and picture.pixels.ndim == 2 and (picture.alpha is not None or suffix == ".webp"):
        lost.append("grey colour profile")
        metadata.pop(cv2.IMAGE_METADATA_ICCP)
    arrays = [np.frombuffer(each, np.uint8) for each in metadata.values()]
    quality = {".jpg": [cv2.IMWRITE_JPEG_QUALITY, 95], ".webp": [cv2.IMWRITE_WEBP_QUALITY, 95]}
    pixels = _in_bgr(picture)
    with about(f"a {suffix} file of {pixels.shape[1]}x{pixels.shape[0]}", "use --format png", done="made"):
        done, data = cv2.imencodeWithMetadata(suffix, pixels, [*metadata], arrays, quality.get(suffix, []))
    if not done:
        raise UserError(f"no {suffix} file can be {pixels.shape[1]}x{pixels.shape[0]}: use --format png")
    return data.tobytes(), (*picture.lost, *lost)


def _in_bgr(picture: Picture) -> np.ndarray:
    if picture.alpha is None:
        grey = picture.pixels.ndim == 2
        return picture.pixels if grey else cv2.cvtColor(picture.pixels, cv2.COLOR_RGB2BGR)
    colours = [picture.pixels] * (3 if picture.pixels.ndim == 2 else 1)
    return cv2.cvtColor(np.dstack([*colours, picture.alpha]), cv2.COLOR_RGBA2BGRA)


def _tiff(picture: Picture) -> bytes:
    """OpenCV's TIFFs hold no profile and no EXIF, Pillow's no 16 bits of colour: Pillow writes the tags."""
    pixels = np.dstack([each for each in (picture.pixels, picture.alpha) if each is not None])
    height, width, channels = pixels.shape
    steps = pixels.copy()
    steps[:, 1:] -= pixels[:, :-1]  # what 'predictor 2' means: it compresses photographs by a third more
    data = zlib.compress(steps.astype(steps.dtype.newbyteorder("<")).tobytes(), 6)
    tags = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    described: dict[int, Any] = dict(picture.exif)
    described |= {tag: picture.exif.get_ifd(tag) for tag in (EXIF_IFD, GPS_IFD) if tag in picture.exif}
    described |= {256: width, 257: height, 258: (8 * pixels.itemsize,) * channels, 277: channels}
    described |= {259: 8, 317: 2, 262: 1 if picture.pixels.ndim == 2 else 2}  # deflate; grey or RGB
    described |= {278: height, 273: 0, 279: len(data)}  # one strip of all rows
    if picture.alpha is not None:
        described[338] = 2  # transparency that the colours are not multiplied by
    if picture.icc:
        described[34675] = picture.icc
    for tag, value in described.items():
        tags[tag] = value
    file = io.BytesIO()
    tags.save(file)  # strip offsets count from the end of the tags
    return file.getvalue() + data
