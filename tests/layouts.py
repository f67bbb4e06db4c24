"""Small generated datasets in the official layouts.

Each function writes a set's train and test folders below `root` and returns `root`, as given to --data_path.
OFFICIAL_LAYOUT holds the function of each dataset that has scripts.
"""

from collections.abc import Callable
from functools import partial
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


rain200_light = partial(rain200, kind="Light")


def rain100(root: Path) -> Path:
    for folder, count in (("rain_train", 4), ("rain_test", 2)):
        for n in range(1, count + 1):
            write_pair(root / folder / f"rain-{n:03}.png", root / folder / f"norain-{n:03}.png", n)
    return root


def prenets_rain100(root: Path) -> Path:
    for n in (1, 2):
        write_pair(root / f"rainy/rain-{n:03}.png", root / f"norain-{n:03}.png", n)
    return root


def halves(root: Path, rainy_side: str, counts: dict[str, int]) -> Path:
    """Side-by-side images; `counts`: how many of each name, with {} for the number."""
    for name, count in counts.items():
        for n in range(1, count + 1):
            write_side_by_side(root / name.format(n), n, rainy_side)
    return root


def rain800(root: Path) -> Path:
    return halves(root, "right", {"training/{}.jpg": 4, "test_syn/{}.jpg": 2})


def rain1200(root: Path) -> Path:
    parts = (f"DID-MDN-training/Rain_{strength}" for strength in ("Light", "Medium", "Heavy"))
    train = {f"{part}/train2018new/{{}}.jpg": 2 for part in parts}
    return halves(root, "left", {**train, "DID-MDN-test/{}.jpg": 2})


def rain12(root: Path, count: int = 3) -> Path:
    return halves(root, "left", {"{}.png": count})


def merged(root: Path) -> Path:
    """The released code's own layout, with its folder of real images."""
    real_images(root / "Real")
    return halves(root, "right", {"train/norain-{}.png": 3, "test/norain-{}.png": 2})


def rain1400(root: Path) -> Path:
    """Fourteen rainy images to each of the scenes 1 and 2, and to 901."""
    for split, scene in (("training", 1), ("training", 2), ("testing", 901)):
        clean = clean_image(scene)
        write_image(root / split / f"ground_truth/{scene}.jpg", clean)
        for k in range(1, 15):
            write_image(root / split / f"rainy_image/{scene}_{k}.jpg", with_rain(clean, 100 * scene + k))
    return root


def spa(root: Path, train: int = 3) -> Path:
    lines = []
    for n in range(train):
        write_pair(root / f"real_world/0/{n}.png", root / f"real_world_gt/0/{n}gt.png", n)
        lines.append(f"/media/data/real_world/0/{n}.png /media/data/real_world_gt/0/{n}gt.png\n")
    (root / "real_world.txt").write_text("".join(lines))
    for n in range(2):
        folder = root / "Testing/real_test_1000"
        write_pair(folder / f"rain/{n}.png", folder / f"gt/{n}gt.png", 100 + n)
    return root


def real275(root: Path) -> Path:
    for n in range(1, 4):
        write_image(root / f"test/rain/norain-{n}.png", pair(n)[0])
    return root


def real_images(root: Path, count: int = 3) -> Path:
    """Unlabelled images of several sizes, one smaller than any crop."""
    for n in range(1, count + 1):
        write_image(root / f"{n}.jpg", pair(n, (11 + 30 * (n - 1), 70 - 12 * n))[0])
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
