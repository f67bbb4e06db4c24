"""Reads and writes photographs with their metadata: 8 or 16 bits, grey, alpha, colour profile, EXIF.

`utils.read_image` reads the images of datasets, as 8-bit RGB. Pillow reads and writes 8 bits; OpenCV and
tifffile 16 bits, which Pillow does not support in colour.
"""

import io
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import tifffile
import torch
from PIL import Image, ImageCms
from torch import Tensor

from utils import (
    file_errors,
    in_eight_bits,
    in_rgb,
    join_names,
    read_header,
)

# lossless formats, which are kept; other photographs are written as PNG
LOSSLESS = {".png": ".png", ".tif": ".tif", ".tiff": ".tif", ".bmp": ".bmp"}
FORMATS = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tif", "bmp": ".bmp"}
# metadata that our writers of 8 bits, and of 16 bits, cannot write
_UNWRITTEN = {".bmp": {"colour profile", "EXIF"}, ".webp": {"resolution"}}
_UNWRITTEN_16 = {".png": {"resolution"}, ".tif": {"EXIF"}}
ORIENTATION, EXIF_IFD, GPS_IFD = 0x0112, 0x8769, 0x8825  # EXIF tags
# EXIF tags of the first folder that describe the photograph, not the layout of its file: description, maker,
# model, software, date, artist, host computer, copyright, rating (two), and Windows' title to subject
DESCRIPTIVE = {0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x013C, 0x8298, 0x4746, 0x4749}
DESCRIPTIVE |= {0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F}
SIZES = (0xA002, 0xA003)  # EXIF tags of width and height, wrong where the picture is rotated


@dataclass(frozen=True)
class Picture:
    """An upright photograph and its metadata."""

    pixels: np.ndarray  # uint8 or uint16 RGB (H, W, 3)
    alpha: np.ndarray | None = None  # of the same type, (H, W)
    grey: bool = False  # the three channels are equal, and are written as one
    icc: bytes = b""  # colour profile
    exif: Image.Exif = field(default_factory=Image.Exif)
    dpi: tuple[float, ...] = ()  # resolution: horizontal, vertical
    lost: tuple[str, ...] = ()  # names of what was not read

    def tensor(self) -> Tensor:
        """Float32 RGB (3, H, W) in [0, 1]."""
        return torch.from_numpy(self.pixels.astype(np.float32)).div_(_peak(self.pixels)).permute(2, 0, 1)

    def with_pixels(self, image: Tensor) -> Self:
        """This picture with the pixels of `image`, float (3, H, W), clamped to [0, 1] and rounded."""
        image = image.mean(0).expand(3, -1, -1) if self.grey else image
        levels = (image.permute(1, 2, 0).clamp(0, 1) * _peak(self.pixels)).round_().numpy()
        return replace(self, pixels=levels.astype(self.pixels.dtype))

    def in_eight_bits(self) -> Self:
        if self.pixels.dtype == np.uint8:
            return self
        alpha = None if self.alpha is None else in_eight_bits(self.alpha)
        return replace(self, pixels=in_eight_bits(self.pixels), alpha=alpha)

    def to_display(self) -> np.ndarray:
        """uint8 sRGB (H, W, 3), on a white background."""
        plain = self.in_eight_bits()
        rgb = plain.pixels
        if self.icc and not self.grey:
            rgb = np.asarray(_in_srgb(Image.fromarray(rgb), self.icc))
        if plain.alpha is not None:
            cover = plain.alpha[..., None] / np.float32(255)
            rgb = (rgb * cover + 255 * (1 - cover)).round().astype(np.uint8)
        return rgb


def _peak(pixels: np.ndarray) -> int:
    return int(np.iinfo(pixels.dtype).max)


def _in_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    """Converts from a colour profile to sRGB; without one, or with a broken one, by Pillow's formula."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(profile, srgb, image.mode, "RGB").apply(image)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image.convert("RGB")


# -------------------------------------------------------------------------------------------------- reading


def read_picture(path: Path) -> Picture:
    """Reads a photograph and sets it upright by its EXIF orientation.

    Raises UserError if the file is not an image, or is truncated, corrupt, unsupported or too large.
    """
    with file_errors(path, "fetch it again"):
        data = path.read_bytes()
    bits, *_ = read_header(path, io.BytesIO(data))
    lost = []
    with (
        file_errors(path, "fetch it again", kinds=(Exception,)),  # Pillow raises errors of any kind
        Image.open(io.BytesIO(data)) as file,
    ):
        image: Image.Image = file
        kind = file.format
        Image.open(io.BytesIO(data)).verify()  # Pillow decodes a PNG with a wrong checksum
        if getattr(file, "n_frames", 1) > 1:
            lost.append("all but its first picture")
        try:
            exif = image.getexif()
            orientation = exif.get(ORIENTATION, 1)
            kept = _kept_of(exif)
        except Exception:  # of any kind, for broken EXIF
            lost.append("EXIF, which is broken")
            orientation, kept = 1, Image.Exif()
        icc = image.info.get("icc_profile") or b""
        dpi = tuple(map(float, image.info.get("dpi", ())))
        if image.mode == "CMYK":
            lost.append("CMYK colours, converted to sRGB")
            image, icc = _in_srgb(image, icc), b""
        grey = image.mode in ("1", "L", "LA", "I", "I;16", "I;16B")
        if bits > 8:  # Pillow would reduce colours to 8 bits
            pixels = in_rgb(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
        else:
            has_alpha = "A" in image.getbands() or "transparency" in image.info
            pixels = np.asarray(image.convert("RGBA" if has_alpha else "RGB"))
        if kind != "TIFF":  # which Pillow and OpenCV set upright
            pixels = upright(pixels, orientation)
        lost += _unread(file)
    if icc and icc[16:20] != (b"GRAY" if grey else b"RGB "):
        lost.append("colour profile, which is broken or of another colour space than the pixels")
        icc = b""
    if not all(0 < each < 1 << 16 for each in dpi):
        dpi = ()
    alpha = pixels[..., 3] if pixels.shape[2] == 4 else None
    return Picture(np.ascontiguousarray(pixels[..., :3]), alpha, grey, icc, kept, dpi, tuple(lost))


def _unread(file: Any) -> list[str]:
    """Names of a file's metadata that are not read."""
    names = {"xmp": "XMP", "photoshop": "IPTC", "comment": "comment"}
    lost = [name for key, name in names.items() if file.info.get(key)]
    texts = [key for key in getattr(file, "text", {}) if "xmp" not in key]
    lost += [f"text ({join_names(texts)})"] if texts else []
    gamma = file.info.get("gamma", 1 / 2.2)
    if abs(gamma - 1 / 2.2) > 0.01:
        lost.append(f"gamma (gAMA {gamma:g}), which browsers apply")
    return lost


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Rotates and mirrors (H, W, ...) by EXIF's orientation, 1 to 8; any other value changes nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _kept_of(exif: Image.Exif) -> Image.Exif:
    """The EXIF of the result: without tags that describe the layout of the file it was read from."""
    kept = Image.Exif()
    kept.update({tag: exif[tag] for tag in DESCRIPTIVE if tag in exif})
    for folder in (EXIF_IFD, GPS_IFD):
        if inner := exif.get_ifd(folder):
            kept.get_ifd(folder).update({tag: inner[tag] for tag in inner if tag not in SIZES})
    kept.tobytes()  # raises if broken
    return kept


# -------------------------------------------------------------------------------------------------- writing


def encoded(picture: Picture, suffix: str) -> tuple[bytes, list[str]]:
    """The bytes of a file in the format of `suffix`, and the names of what it has lost.

    JPEG and WebP have quality 95. Raises UserError if the format cannot hold the picture.
    """
    lost = [*picture.lost]
    deep = picture.pixels.dtype == np.uint16 and suffix in (".png", ".tif")
    if picture.pixels.dtype == np.uint16 and not deep:
        lost.append("16 bits")
        picture = picture.in_eight_bits()
    if suffix in (".jpg", ".bmp") and picture.alpha is not None:
        lost.append("transparency")
        picture = replace(picture, alpha=None)
    one = picture.grey and (picture.alpha is None or not deep)  # no writer of 16 bits has grey with alpha
    pixels = picture.pixels[..., 0] if one else picture.pixels
    if picture.alpha is not None:
        pixels = np.dstack([pixels, picture.alpha])
    metadata = {
        "colour profile": picture.icc,
        "EXIF": picture.exif.tobytes() if len(picture.exif) else b"",
        "resolution": picture.dpi,
    }
    unwritten = (_UNWRITTEN_16 if deep else _UNWRITTEN).get(suffix, set())
    unwritten = unwritten | {"colour profile"} if picture.grey and not one else unwritten
    lost += [name for name, value in metadata.items() if value and name in unwritten]
    metadata = {name: value for name, value in metadata.items() if value and name not in unwritten}
    size = f"{pixels.shape[1]}x{pixels.shape[0]}"
    with file_errors(f"a {suffix} file of {size}", "use another --format", done="made", kinds=(Exception,)):
        return (_deep if deep else _shallow)(pixels, suffix, metadata), lost


def _shallow(pixels: np.ndarray, suffix: str, metadata: dict[str, Any]) -> bytes:
    """8 bits per sample."""
    keywords = {"colour profile": "icc_profile", "EXIF": "exif", "resolution": "dpi"}
    how = {keywords[name]: value for name, value in metadata.items()}
    how |= {"quality": 95} if suffix in (".jpg", ".webp") else {}
    if suffix == ".png":
        # a noisy photograph of 12 megapixels: 17.2 MB in 0.95 s; at the default level 17.3 MB in 4.7 s
        how |= {"compress_level": 1, "compress_type": zlib.Z_RLE}
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, Image.registered_extensions()[suffix], **how)
    return file.getvalue()


def _deep(pixels: np.ndarray, suffix: str, metadata: dict[str, Any]) -> bytes:
    """16 bits per sample."""
    profile = metadata.get("colour profile")
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if suffix == ".tif":
        file = io.BytesIO()
        how: dict[str, Any] = {"photometric": "minisblack" if channels == 1 else "rgb", "metadata": None}
        how |= {"extrasamples": ["unassalpha"]} if channels == 4 else {}
        if "resolution" in metadata:
            how |= {"resolution": metadata["resolution"], "resolutionunit": "INCH"}
        tifffile.imwrite(file, pixels, compression="zlib", iccprofile=profile, **how)
        return file.getvalue()
    blocks = {cv2.IMAGE_METADATA_ICCP: profile or b""}
    blocks[cv2.IMAGE_METADATA_EXIF] = metadata.get("EXIF", b"").removeprefix(b"Exif\0\0")
    kinds = [kind for kind, block in blocks.items() if block]
    arrays = [np.frombuffer(blocks[kind], np.uint8) for kind in kinds]
    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    pixels = pixels if channels == 1 else cv2.cvtColor(pixels, order[channels])
    # at OpenCV's default level, which is faster than its level 1: 0.9 s and 2.7 s for 12 megapixels
    done, data = cv2.imencodeWithMetadata(suffix, pixels, kinds, arrays)
    if not done:
        raise ValueError("OpenCV refuses it")
    return data.tobytes()
