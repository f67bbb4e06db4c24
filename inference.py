"""A network and how it is run: what training, scoring and one's own photographs all go through.

derain = Derainer.open("trained_model/Rain200L+Real")
derained = derain(rainy)        # NumPy, uint8 RGB (H, W, 3): both
"""

from __future__ import annotations

import inspect
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from machinery.checkpoints import fill, find_checkpoint, load_checkpoint
from networks import BACKBONES, Derained
from utils import UserError, to_tensor, to_uint8

CPU = torch.device("cpu")


class Prepared(nn.Module):
    """Any backbone, run channels last and in the arithmetic asked for. What it gives is float32.

    So no loss and no score ever sees bfloat16, and whoever writes one need not think of it.
    """

    def __init__(self, net: nn.Module, precision: str = "float32") -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.precision = precision

    def forward(self, rainy: Tensor) -> Derained:
        with torch.autocast(rainy.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            output = self.net(rainy.contiguous(memory_format=torch.channels_last))
        return Derained(*(each.float() for each in output))


class Derainer:
    """One image after another through a network. Images may be of any size.

    `tile`: larger images are cut into tiles of this side, in pixels, so that memory stays bounded; 0: never.
    `self_ensemble`: the mean over the eight flips and rotations of an image, at eight times the cost.
    `content` and `path` are the checkpoint it was opened from, if it was.
    """

    def __init__(
        self,
        net: nn.Module,
        device: torch.device = CPU,
        *,
        precision: str = "float32",
        tile: int = 0,
        self_ensemble: bool = False,
    ) -> None:
        self.net = (net if isinstance(net, Prepared) else Prepared(net, precision)).to(device)
        self.device, self.tile, self.self_ensemble = device, tile, self_ensemble
        self.content: dict[str, Any] = {}
        self.path = Path()

    @classmethod
    def open(
        cls,
        logdir: Path | str,
        device: torch.device = CPU,
        *,
        remedy: str = "train one, or give --logdir",
        **options: Any,
    ) -> Derainer:
        """From a checkpoint, ours or the authors', or a folder with net_latest; `options` as the class has.

        Raises UserError where there is none (`remedy` says how to make one) or where it is not sound.
        """
        path = find_checkpoint(Path(logdir), remedy)
        content = load_checkpoint(path)
        net = network_from(content, path)
        derainer = cls(net, device, **options)
        derainer.content, derainer.path = content, path
        return derainer

    def __call__(self, rainy: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3) to the same without rain: clamped, rounded."""
        return to_uint8(self.derained(to_tensor(rainy)))

    @torch.inference_mode()
    def derained(self, rainy: Tensor) -> Tensor:
        """One image (3, H, W) in [0, 1] to the derained one, float32, on the CPU, not clamped."""
        if not self.self_ensemble:
            return self._in_tiles(rainy)
        total = torch.zeros_like(rainy)
        for turns in range(4):
            for flip in ([], [2]):
                turned = rainy.rot90(turns, (1, 2)).flip(flip)
                total += self._in_tiles(turned).flip(flip).rot90(-turns, (1, 2))
        return total / 8

    def _whole(self, rainy: Tensor) -> Tensor:
        return self.net(rainy[None].to(self.device)).derained[0].cpu()

    def _in_tiles(self, rainy: Tensor, overlap: int = 64) -> Tensor:
        """Tiles overlap, and are blended there by linear ramps.

        Their corners lie on multiples of 32, so that the pyramid pools the same pixels together as it would
        in the whole image.
        """
        height, width = rainy.shape[-2:]
        if not self.tile or max(height, width) <= self.tile:
            return self._whole(rainy)
        if self.tile < 4 * overlap:
            raise UserError(f"--tile {self.tile} is too small: {4 * overlap} at least")
        total, weights = torch.zeros_like(rainy), torch.zeros_like(rainy[:1])
        for top in self._starts(height, overlap):
            for left in self._starts(width, overlap):
                part = rainy[:, top : top + self.tile, left : left + self.tile]
                weight = _ramp(part.shape[-2], overlap)[:, None] * _ramp(part.shape[-1], overlap)
                spot = (slice(None), slice(top, top + self.tile), slice(left, left + self.tile))
                total[spot] += weight * self._whole(part)
                weights[spot] += weight
        return total / weights

    def _starts(self, side: int, overlap: int) -> range:
        return range(0, max(1, side - overlap), (self.tile - overlap) // 32 * 32)


def _ramp(side: int, overlap: int) -> Tensor:
    """Rises from the tile's edge over the overlap, and falls again: (side,), above 0."""
    position = torch.arange(1, side + 1, dtype=torch.float32)
    return torch.minimum(position, side + 1 - position).clamp(max=overlap)


# ------------------------------------------------------------------------------------- building a network


def network_of(record: Any) -> dict[str, Any]:
    """How to build a recipe's network: its backbone, and those of the recipe's fields that this one takes.

    Raises UserError where networks.BACKBONES has no such backbone.
    """
    names = inspect.signature(_backbone(record.backbone)).parameters
    arguments = {name: getattr(record, name) for name in names if hasattr(record, name)}
    return {"backbone": record.backbone, "arguments": arguments}


def build(network: Mapping[str, Any]) -> nn.Module:
    """A network with fresh weights from what `network_of` says, or a checkpoint's `network`."""
    return _backbone(network["backbone"])(**network["arguments"])


def network_from(content: Mapping[str, Any], path: Path) -> nn.Module:
    """The network in a checkpoint, in float32. Raises UserError where the two do not fit."""
    try:
        with torch.device("meta"):  # shapes alone, until they are known to be those of the weights
            net = build(content["network"])
    except (TypeError, ValueError):
        raise UserError(f"{path}: {content['network']} builds no network: train anew") from None
    fill(net, content["net"], path)
    return net


def _backbone(name: str) -> type[nn.Module]:
    if name not in BACKBONES:
        raise UserError(f"there is no backbone {name!r}: networks.BACKBONES has {', '.join(BACKBONES)}")
    return BACKBONES[name]


def hardware(device: torch.device) -> str:
    """What it ran on, in words, for the record beside each figure."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
