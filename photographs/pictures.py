"""Pictures in and out as they are: 8 or 16 bits, grey or colour, transparency, colour profile, EXIF.

`utils.read_image` gives a benchmark's image, 8 bits of RGB; this gives a person's own, and what lies beside
its pixels. Pillow reads and writes 8 bits; OpenCV 16, since Pillow has none of colour.
"""

import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import tifffile
import torch
from PIL import Image, ImageCms
from torch import Tensor

from utils import UserError, content_of, file_errors, image_size

# what holds every picture without loss, and is kept; others are written as PNG
LOSSLESS = {".png": ".png", ".tif": ".tif", ".tiff": ".tif", ".bmp": ".bmp"}
FORMATS = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tif", "bmp": ".bmp"}
_PILLOW = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".bmp": "BMP"}
ORIENTATION, EXIF_IFD, GPS_IFD = 0x0112, 0x8769, 0x8825  # tags of EXIF
# of the first folder of EXIF what tells of the photograph, and not of its file's own layout: description,
# maker, model, software, date, artist, copyright
TOLD = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)
SIZES = (0xA002, 0xA003)  # of the second folder: width and height, which may have changed places


@dataclass(frozen=True)
class Picture:
    """One picture, upright, and what else its file holds."""

    pixels: np.ndarray  # uint8 or uint16 RGB (H, W, 3)
    alpha: np.ndarray | None = None  # of the same kind, (H, W)
    grey: bool = False  # its three channels are one, and are written so
    icc: bytes = b""  # the colour profile
    exif: Image.Exif = field(default_factory=Image.Exif)
    lost: tuple[str, ...] = ()  # what could not be read with it, in words

    def tensor(self) -> Tensor:
        """Float32 RGB (3, H, W) in [0, 1]."""
        return torch.from_numpy(self.pixels.astype(np.float32)).div_(_peak(self.pixels)).permute(2, 0, 1)

    def with_pixels(self, image: Tensor) -> Self:
        """This picture with the pixels of `image`, float (3, H, W), clamped to [0, 1] and rounded."""
        image = image.mean(0).expand(3, -1, -1) if self.grey else image
        levels = (image.permute(1, 2, 0).clamp(0, 1) * _peak(self.pixels)).round_().numpy()
        return replace(self, pixels=levels.astype(self.pixels.dtype))

    def beside(self, other: Self) -> Self:
        """Both side by side, with this one's profile and EXIF."""
        alphas = None if self.alpha is None or other.alpha is None else np.hstack([self.alpha, other.alpha])
        return replace(self, pixels=np.hstack([self.pixels, other.pixels]), alpha=alphas)

    def in_eight_bits(self) -> Self:
        if self.pixels.dtype == np.uint8:
            return self
        pixels, alpha = (
            None if each is None else ((each.astype(np.uint32) + 128) // 257).astype(np.uint8)
            for each in (self.pixels, self.alpha)
        )
        assert pixels is not None
        return replace(self, pixels=pixels, alpha=alpha)

    def shown(self) -> np.ndarray:
        """As a browser shows it: uint8 RGB (H, W, 3), its profile turned into sRGB, on white."""
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
    """`image` turned from its profile into sRGB; by Pillow's plain rule where the profile is broken."""
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
    data = content_of(path, "fetch it again")
    lost = []
    with (
        file_errors(path, "fetch it again", kinds=(Exception,)),  # a stranger's file: errors of any kind
        Image.open(io.BytesIO(data)) as file,
    ):
        image: Image.Image = file
        kind = file.format
        if getattr(file, "n_frames", 1) > 1:
            lost.append("all but its first picture")
        try:
            exif = image.getexif()
            orientation = exif.get(ORIENTATION, 1)
            kept = _kept_of(exif)
        except Exception:  # bytes of other kinds than their tags say lead Pillow into errors of any kind
            lost.append("its EXIF, which is broken")
            orientation, kept = 1, Image.Exif()
        icc = image.info.get("icc_profile") or b""
        if image.mode == "CMYK":
            lost.append("its printing colours (CMYK), turned into sRGB")
            image, icc = _in_srgb(image, icc), b""
        grey = image.mode in ("1", "L", "LA", "I", "I;16", "I;16B", "F")
        if _is_deep(file, data):
            deep = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            if deep is None:
                raise UserError(
                    f"{path} is not an image, or is cut short ({len(data):,} bytes): fetch it again"
                )
            if deep.dtype != np.uint16:
                raise UserError(f"{path} holds samples of {deep.dtype}: save it in 8 or 16 bits")
            colours, alpha = _split(deep)
        else:
            see_through = "A" in image.getbands() or "transparency" in image.info
            rgba = np.asarray(image.convert("RGBA" if see_through else "RGB"))
            colours, alpha = rgba[..., :3], rgba[..., 3] if see_through else None
        if kind != "TIFF":  # which Pillow and OpenCV both set upright by themselves
            colours = upright(colours, orientation)
            alpha = None if alpha is None else upright(alpha, orientation)
    if icc and icc[16:20] != (b"GRAY" if grey else b"RGB "):
        lost.append("its colour profile, which is broken or of another kind than its pixels")
        icc = b""
    details = kept.get_ifd(EXIF_IFD)
    details.update(
        {tag: side for tag, side in zip(SIZES, colours.shape[1::-1], strict=True) if tag in details}
    )
    return Picture(np.ascontiguousarray(colours), alpha, grey, icc, kept, tuple(lost))


def _is_deep(image: Any, data: bytes) -> bool:
    """Whether it has more than 8 bits a sample, which Pillow would cut off in colour."""
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, [8])) > 8
    return (
        image.format == "PNG" and data[24] > 8
    )  # the signature, then IHDR: length, name, width, height, bits


def _split(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """OpenCV's array into RGB and transparency."""
    if pixels.ndim == 2:
        return np.dstack([pixels] * 3), None
    if pixels.shape[2] == 2:
        return np.dstack([pixels[..., 0]] * 3), pixels[..., 1]
    return pixels[..., 2::-1], pixels[..., 3] if pixels.shape[2] == 4 else None


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turned and mirrored as EXIF's orientation, 1 to 8, says. Another number leaves it as it is."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _kept_of(exif: Image.Exif) -> Image.Exif:
    """What goes into the result: nothing that describes the layout of the file it was read from."""
    kept = Image.Exif()
    kept.update({tag: exif[tag] for tag in TOLD if tag in exif})
    for folder in (EXIF_IFD, GPS_IFD):
        if inner := exif.get_ifd(folder):
            kept.get_ifd(folder).update(inner)
    kept.tobytes()  # what cannot be written is broken
    return kept


# -------------------------------------------------------------------------------------------------- writing


def encoded(picture: Picture, suffix: str) -> tuple[bytes, tuple[str, ...]]:
    """The bytes of a file of the format that `suffix` names, and what of the picture it does not hold.

    JPEG and WebP are of quality 95. Raises UserError where a side is too long for the format.
    """
    lost = list(picture.lost)
    if picture.pixels.dtype == np.uint16 and suffix in (".png", ".tif"):
        return _deep(picture, suffix, lost), tuple(lost)
    if picture.pixels.dtype == np.uint16:
        lost.append("16 bits")
        picture = picture.in_eight_bits()
    if suffix in (".jpg", ".bmp") and picture.alpha is not None:
        lost.append("transparency")
        picture = replace(picture, alpha=None)
    kinds = {"colour profile": {"icc_profile": picture.icc} if picture.icc else {}}
    kinds["EXIF"] = {"exif": picture.exif.tobytes()} if len(picture.exif) else {}
    if suffix == ".bmp":
        lost += [what for what, more in kinds.items() if more]
        kinds = {}
    pixels = picture.pixels[..., :1] if picture.grey else picture.pixels
    bands = [pixels] if picture.alpha is None else [pixels, picture.alpha[..., None]]
    image = Image.fromarray(
        np.concatenate(bands, axis=2).squeeze(2 if picture.grey and len(bands) == 1 else ())
    )
    size = f"{image.width}x{image.height}"
    with file_errors(f"a {suffix} file of {size}", "use --format png", done="made", kinds=(Exception,)):
        while True:
            file = io.BytesIO()
            more = {key: value for each in kinds.values() for key, value in each.items()}
            quality = {"quality": 95} if suffix in (".jpg", ".webp") else {}
            try:
                image.save(file, _PILLOW[suffix], **more, **quality)
            except ValueError:  # too long for a JPEG's segment, or what no writer of Pillow's takes
                if "EXIF" not in kinds or not kinds.pop("EXIF"):
                    raise
                lost.append("its EXIF, which this format does not hold")
                continue
            return file.getvalue(), tuple(lost)


def _deep(picture: Picture, suffix: str, lost: list[str]) -> bytes:
    """16 bits a sample; adds to `lost` what does not go into the file."""
    grey = picture.grey and picture.alpha is None
    bands = [picture.pixels] if picture.alpha is None else [picture.pixels, picture.alpha[..., None]]
    rgb = picture.pixels[..., 0] if grey else np.concatenate(bands, axis=2)
    size = f"{rgb.shape[1]}x{rgb.shape[0]}"
    profile = picture.icc if grey == picture.grey else b""  # one of grey, and its grey is written as colour
    with file_errors(f"a {suffix} file of {size}", "use --format png", done="made", kinds=(Exception,)):
        if suffix == ".tif":
            file = io.BytesIO()
            how: dict[str, Any] = {"photometric": "minisblack" if grey else "rgb", "metadata": None}
            how |= {} if picture.alpha is None else {"extrasamples": ["unassalpha"]}
            tifffile.imwrite(file, rgb, compression="zlib", iccprofile=profile or None, **how)
            lost += ["EXIF"] * bool(len(picture.exif))
            return file.getvalue()
        beside = {cv2.IMAGE_METADATA_ICCP: profile} if profile else {}
        if len(picture.exif):
            beside[cv2.IMAGE_METADATA_EXIF] = picture.exif.tobytes().removeprefix(b"Exif\0\0")
        order = {2: None, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[2 if grey else rgb.shape[2]]
        pixels = rgb if order is None else cv2.cvtColor(rgb, order)
        for attempt in (beside, {}):  # OpenCV refuses the picture for a profile that it cannot read
            arrays = [np.frombuffer(each, np.uint8) for each in attempt.values()]
            done, data = cv2.imencodeWithMetadata(suffix, pixels, [*attempt], arrays)
            if done:
                lost += ["colour profile and EXIF"] * (len(attempt) < len(beside))
                return data.tobytes()
    raise UserError(f"no {suffix} file can be {size}: use --format png")
