"""What the programs here measure on: a photograph, a small set, a training step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch
from torch import Tensor, nn

from config import STUDENTS, TEACHERS
from engine import backward, training_step
from machinery.fast import FastGradient
from stages import SID, SSIDKD, Stage
from utils import to_tensor, to_uint8, write_image

Batch = Mapping[str, Tensor]


def photograph(size: tuple[int, int]) -> Tensor:
    """A photograph that ships with scikit-image, scaled, under a little noise: (1, 3, H, W) in [0, 1]."""
    image = cv2.resize(skimage.data.astronaut(), size[::-1], interpolation=cv2.INTER_AREA)
    noise = np.random.default_rng(0).normal(0, 20, image.shape)
    return to_tensor(np.clip(image + noise, 0, 255).astype(np.uint8))[None]


def generated_set(root: Path, pairs: int) -> Path:
    """So many training pairs of 481x321 in the layout of a plain set."""
    clean = to_uint8(photograph((321, 481))[0])
    for number in range(1, pairs + 1):
        streaks = np.random.default_rng(number).integers(0, 100, (*clean.shape[:2], 1), np.uint8)
        rainy = np.clip(clean.astype(np.int16) + streaks, 0, 255).astype(np.uint8)
        write_image(root / "train/rain" / f"{number}.png", rainy)
        write_image(root / "train/norain" / f"{number}.png", clean)
    return root


def stage_and_batch(name: str, count: int, side: int, device: torch.device) -> tuple[Stage, Batch]:
    torch.manual_seed(1)
    names = ("rainy", "clean") if name == "SID" else ("rainy", "clean", "real_rainy")
    batch = {each: torch.rand(count, 3, side, side).to(device) for each in names}
    if name == "SID":
        return SID(TEACHERS["Rain200H"]), batch
    return SSIDKD(replace(STUDENTS["Rain200H"], patch_size=side)), batch


class Step:
    """A training step, the engine's own, as a function of no arguments."""

    def __init__(self, net: nn.Module, stage: Stage, batch: Batch) -> None:
        self.net: Any = net
        self.stage, self.batch = stage, batch
        fused = next(net.parameters()).is_cuda
        self.optimizer = torch.optim.Adam(net.parameters(), 1e-4, fused=fused)
        self.fast: FastGradient | None = None

    def recorded(self) -> Step:
        self.fast = FastGradient(partial(backward, self.stage, self.net, parts=1), self.net.parameters())
        return self

    def __call__(self) -> dict[str, Tensor]:
        return training_step(self.stage, self.net, self.optimizer, [self.batch], fast=self.fast)
