"""Finds images of the same scene, whatever their compression or rain; not those of another crop.

Rain800's 700 training pairs show 368 scenes, and Rain200H and Rain200L the same 300: a held-back pair whose
scene is trained on measures memory.
"""

from collections.abc import Sequence
from multiprocessing.pool import ThreadPool

import cv2
import numpy as np

from datasets.pairs import ImageRef, read_side

SIDE = 16  # of a thumbnail, in pixels
SAME = 0.95  # minimum correlation of two thumbnails of one scene


def thumbnails(images: Sequence[ImageRef]) -> np.ndarray:
    """Grey thumbnails, float32 (N, 256), of mean 0 and norm 1: a product of two is their correlation.

    A plain image is all zeros, and matches none. Raises UserError for an image that cannot be read.
    """
    with ThreadPool() as pool:
        rows = np.stack(pool.map(_thumbnail, images)).reshape(len(images), SIDE * SIDE)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-3)


def _thumbnail(image: ImageRef) -> np.ndarray:
    grey = cv2.cvtColor(read_side(image), cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def show_scene_of(images: Sequence[ImageRef], others: Sequence[ImageRef]) -> np.ndarray:
    """For each of `images` whether one of `others` shows its scene: bool (N,). The same file always does."""
    distinct = list(dict.fromkeys([*others, *images]))
    rows = thumbnails(distinct)
    scenes = set(others)
    alike = (rows @ rows[: len(scenes)].T > SAME).any(axis=1)
    same = {image for image, yes in zip(distinct, alike, strict=True) if yes} | scenes
    return np.array([image in same for image in images], bool)
