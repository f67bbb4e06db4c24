"""What falls on a training crop, and what lies between it and the camera.

A streak layer is what rain adds to an image: int16 (H, W, 1), grey, 0 and more. Crops are uint8 RGB
(P, P, 3). Everything drawn comes from the generator that is handed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

VEIL, HAZE_LIGHT = (0.1, 0.5), (150, 240)  # the share of the light that haze takes, and gives: its grey level
JPEG_QUALITY = (50, 96)  # what cameras and web pages save by
# An unsharp mask, as cameras and web pages apply it: the deviation of its blur, in pixels, and its amount
SHARPENING = (0.5, 1.2), (0.3, 1.5)


@dataclass(frozen=True)
class Weather:
    """How layers vary, and how crops are seen: from afar, without rain, in haze, as a JPEG."""

    rotation: float = 0.0  # degrees at most, to either side
    zoom: float = 1.0  # times larger at most, or smaller
    strength: float = 1.0  # times brighter at most, or darker
    blur: float = 0.0  # pixels at most: the standard deviation of a Gaussian
    layers: int = 1  # at most
    mirrored: bool = False
    clear: float = 0.0
    veil: float = 0.0
    shrink: float = 1.0  # times smaller at most
    sharpen: float = 0.0
    jpeg: float = 0.0

    def reach(self, size: int, rng: np.random.Generator) -> int:
        """The side of the window that `seen` shrinks to a crop of `size`."""
        return round(size * self.shrink ** rng.uniform())

    def streaks(
        self,
        rainy: np.ndarray,
        clean: np.ndarray,
        size: int,
        place: np.random.Generator,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """A window of the layer between two images, int16 (size, size, 1), at a `place`, varied by `rng`."""
        angle = rng.triangular(-self.rotation, 0, self.rotation) if self.rotation else 0.0
        zoom, strength = (most ** rng.uniform(-1, 1) for most in (self.zoom, self.strength))
        mirrored = self.mirrored and rng.integers(2)
        deviation = rng.uniform(0, self.blur) if self.blur else 0.0
        warped = angle or zoom != 1
        if not warped:
            rainy, clean = window((rainy, clean), size, place)
        # one grey layer for the three channels, of which the darkest is clipped the least
        layer = (rainy.astype(np.int16) - clean).max(axis=2, keepdims=True)
        if warped:
            layer = _warped_window(layer, size, angle, zoom, place)
        if deviation:
            layer = cv2.GaussianBlur(layer, (0, 0), deviation)[..., None]
        if strength != 1:
            layer = np.round(layer * strength).astype(np.int16)
        return layer[:, ::-1] if mirrored else layer

    def seen(
        self, rainy: np.ndarray, clean: np.ndarray, size: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Windows as crops of `size`: without rain, in haze, sharpened, a JPEG, as often as it is to be.

        All but the rain is on both sides: the network is to take the rain away, and to leave all else.
        """
        clear, veil, jpeg = rng.random(3) < (self.clear, self.veil, self.jpeg)
        if clear:
            rainy = clean
        if veil:
            share, light = rng.uniform(*VEIL), rng.uniform(*HAZE_LIGHT)
            rainy, clean = (
                np.round(side * (1 - share) + light * share).astype(np.uint8) for side in (rainy, clean)
            )
        if len(rainy) != size:
            rainy, clean = (
                cv2.resize(side, (size, size), interpolation=cv2.INTER_AREA) for side in (rainy, clean)
            )
        if rng.random() < self.sharpen:
            deviation, amount = (rng.uniform(*bounds) for bounds in SHARPENING)
            rainy, clean = (_sharpened(side, deviation, amount) for side in (rainy, clean))
        if jpeg:
            quality = int(rng.integers(*JPEG_QUALITY))
            rainy, clean = (_compressed(side, quality) for side in (rainy, clean))
        return rainy, clean


def _sharpened(image: np.ndarray, deviation: float, amount: float) -> np.ndarray:
    return cv2.addWeighted(image, 1 + amount, cv2.GaussianBlur(image, (0, 0), deviation), -amount, 0)


def _compressed(image: np.ndarray, quality: int) -> np.ndarray:
    _, code = cv2.imencode(".jpg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, quality))
    decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
    assert decoded is not None  # what it has written itself it reads
    return decoded[..., ::-1]


# -------------------------------------------------------------------------------------------------- windows


def window(images: Sequence[np.ndarray], size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """One random (size, size, C) window of images of one size; what is smaller is reflected."""
    height, width = images[0].shape[:2]
    top, left = (int(rng.integers(max(1, length - size + 1))) for length in (height, width))
    return [_extended(image[top : top + size, left : left + size], size) for image in images]


def _extended(image: np.ndarray, size: int) -> np.ndarray:
    for axis in (0, 1):
        if missing := size - image.shape[axis]:
            widths = [(0, missing if axis == i else 0) for i in range(3)]
            image = np.pad(image, widths, mode="reflect" if image.shape[axis] > 1 else "edge")
    return image


def _warped_window(
    layer: np.ndarray, size: int, angle: float, zoom: float, rng: np.random.Generator
) -> np.ndarray:
    """A random window of a layer (H, W, 1), turned by `angle` degrees and enlarged `zoom` times.

    What lies outside the layer is mirrored, as `_extended` does. (size, size, 1), of the layer's type.
    """
    reach = size / zoom  # of the layer's own pixels
    x, y = (rng.uniform(min(reach, side) / 2, side - min(reach, side) / 2) for side in layer.shape[1::-1])
    turn = cv2.getRotationMatrix2D((x, y), angle, zoom)
    turn[:, 2] += size / 2 - x, size / 2 - y
    return cv2.warpAffine(layer, turn, (size, size), borderMode=cv2.BORDER_REFLECT_101)[..., None]


def turned(image: np.ndarray, which: int) -> np.ndarray:
    """One of the eight flips and rotations of a square; 0 is the image itself, 4 its mirror image."""
    image = np.rot90(image, which % 4)
    return image[:, ::-1] if which >= 4 else image
