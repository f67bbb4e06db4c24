"""Small generated datasets in the official layouts, for any test that needs one.

Each function writes a set's train and test folders below `root` and returns `root`, which is what a user
would give as --data_path. OFFICIAL_LAYOUT has the one of each dataset with scripts of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from utils import write_image

SIZE = (48, 56)  # height, width


def clean_image(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A smooth coloured scene, uint8 (H, W, 3)."""
    coarse = np.random.default_rng((seed, 0)).integers(20, 180, (4, 5, 3)).astype(np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def with_rain(clean: np.ndarray, seed: int) -> np.ndarray:
    """`clean` with one-pixel streaks, an exact grey addition as in Rain200; some of them clip."""
    rng = np.random.default_rng((seed, 1))
    layer = np.zeros(clean.shape[:2], np.uint8)
    for _ in range(12):
        x, y, strength = rng.integers(clean.shape[1]), rng.integers(clean.shape[0]), rng.integers(60, 160)
        cv2.line(layer, (int(x), int(y)), (int(x) + 3, int(y) + 12), int(strength))
    return np.minimum(255, clean.astype(np.uint16) + layer[..., None]).astype(np.uint8)


def pair(seed: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Rainy and clean."""
    clean = clean_image(seed, size)
    return with_rain(clean, seed), clean


def write_pair(rainy_path: Path, clean_path: Path, seed: int) -> None:
    rainy, clean = pair(seed)
    write_image(rainy_path, rainy)
    write_image(clean_path, clean)


def write_side_by_side(path: Path, seed: int, rainy_side: str) -> None:
    rainy, clean = pair(seed)
    write_image(path, np.hstack((rainy, clean) if rainy_side == "left" else (clean, rainy)))


def rain200(root: Path, kind: str = "Heavy", train: int = 4, test: int = 2, inner: str = "X2") -> Path:
    for split, count in (("train", train), ("test", test)):
        folder = root / f"rain_data_{split}_{kind}"
        for n in range(1, count + 1):
            rainy = folder / "rain" / inner / f"norain-{n}x2.png"
            write_pair(rainy, folder / f"norain/norain-{n}.png", 1000 * (split == "test") + n)
    return root


def rain200_light(root: Path, train: int = 4, test: int = 2) -> Path:
    return rain200(root, "Light", train, test)


def rain100(root: Path, train: int = 4, test: int = 2) -> Path:
    for split, count in (("train", train), ("test", test)):
        for n in range(1, count + 1):
            folder = root / f"rain_{split}"
            write_pair(folder / f"rain-{n:03}.png", folder / f"norain-{n:03}.png", n)
    return root


def rain800(root: Path, train: int = 4, test: int = 2) -> Path:
    for folder, count in (("training", train), ("test_syn", test)):
        for n in range(1, count + 1):
            write_side_by_side(root / folder / f"{n}.jpg", n, "right")
    return root


def rain1200(root: Path, train: int = 2, test: int = 2) -> Path:
    """`train` pairs of each strength."""
    for strength in ("Light", "Medium", "Heavy"):
        for n in range(train):
            path = root / f"DID-MDN-training/Rain_{strength}/train2018new/{n}.jpg"
            write_side_by_side(path, n, "left")
    for n in range(test):
        write_side_by_side(root / f"DID-MDN-test/{n}.jpg", n, "left")
    return root


def rain1400(root: Path, train: int = 2, test: int = 1) -> Path:
    """Fourteen rainy images to each of the scenes 1 to `train`, and 901 to 900 + `test`."""
    for split, first, count in (("training", 1, train), ("testing", 901, test)):
        for scene in range(first, first + count):
            clean = clean_image(scene)
            write_image(root / split / f"ground_truth/{scene}.jpg", clean)
            for k in range(1, 15):
                write_image(root / split / f"rainy_image/{scene}_{k}.jpg", with_rain(clean, 100 * scene + k))
    return root


def spa(root: Path, train: int = 3, test: int = 2) -> Path:
    lines = []
    for n in range(train):
        write_pair(root / f"real_world/0/{n}.png", root / f"real_world_gt/0/{n}gt.png", n)
        lines.append(f"/media/data/real_world/0/{n}.png /media/data/real_world_gt/0/{n}gt.png\n")
    root.mkdir(parents=True, exist_ok=True)
    (root / "real_world.txt").write_text("".join(lines))
    for n in range(test):
        folder = root / "Testing/real_test_1000"
        write_pair(folder / f"rain/{n}.png", folder / f"gt/{n}gt.png", 100 + n)
    return root


def real275(root: Path, count: int = 3) -> Path:
    for n in range(1, count + 1):
        write_image(root / f"test/rain/norain-{n}.png", pair(n)[0])
    return root


def real_images(root: Path, count: int = 3) -> Path:
    """Unlabelled images of several sizes, one smaller than any crop."""
    for n in range(1, count + 1):
        write_image(root / f"{n}.jpg", pair(n, (11 + 30 * (n - 1), 70 - 12 * n))[0])
    return root


def rain12(root: Path, count: int = 3) -> Path:
    for n in range(1, count + 1):
        write_side_by_side(root / f"{n}.png", n, "left")
    return root


def merged(root: Path, train: int = 3, test: int = 2) -> Path:
    """The released code's own layout, with its folder of real images."""
    for split, count in (("train", train), ("test", test)):
        for n in range(1, count + 1):
            write_side_by_side(root / split / f"norain-{n}.png", n, "right")
    real_images(root / "Real")
    return root


def plain(root: Path, rainy: str, clean: str, count: int = 3) -> Path:
    """rain/ + norain/, input/ + target/ and the like: the same names on both sides; `root` is the split."""
    for n in range(1, count + 1):
        write_pair(root / rainy / f"{n}.png", root / clean / f"{n}.png", n)
    return root


OFFICIAL_LAYOUT: dict[str, Callable[[Path], Path]] = {
    "Rain200H": rain200,
    "Rain200L": rain200_light,
    "Rain800": rain800,
    "Rain1200": rain1200,
    "Rain1400": rain1400,
    "SPA": spa,
    "Real275": real275,
}
