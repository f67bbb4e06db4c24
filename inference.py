"""One image through the network: used by validation, by the eval scripts and for one's own photographs."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from torch import Tensor

from machinery.options import Machine
from networks import Derained, DerainNet
from utils import UserError


def place(net: DerainNet, device: torch.device) -> DerainNet:
    """Moves the network to `device`, its weights laid out channels last: the same numbers, faster."""
    return net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def autocast(machine: Machine, device: torch.device) -> torch.autocast:
    """bfloat16 inside the network where --precision asks for it; weights and losses stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=machine.precision == "bfloat16")


@torch.inference_mode()
def derain(net: DerainNet, rainy: Tensor, machine: Machine, device: torch.device) -> Derained:
    """One image (3, H, W) in [0, 1] to what the network makes of it, float32, on the CPU, each with N = 1."""
    batch = rainy[None].to(device).contiguous(memory_format=torch.channels_last)
    with autocast(machine, device):
        output = net(batch)
    return Derained(*(each.float().cpu() for each in output))


def derain_in_tiles(
    net: DerainNet, rainy: Tensor, machine: Machine, device: torch.device, tile: int, overlap: int = 64
) -> Tensor:
    """One image (3, H, W) to the derained one, by tiles where it is larger than `tile`: memory stays bounded.

    Tiles overlap, and are blended there by linear ramps. Their corners lie on multiples of 32, so that the
    pyramid pools the same pixels together as it would in the whole image. Raises UserError for a tile that is
    too small to overlap.
    """
    if tile < 4 * overlap:
        raise UserError(f"--tile {tile} is too small: {4 * overlap} at least")
    height, width = rainy.shape[-2:]
    if height <= tile and width <= tile:
        return derain(net, rainy, machine, device).derained[0]
    total, weights = torch.zeros_like(rainy), torch.zeros_like(rainy[:1])
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            part = rainy[:, top : top + tile, left : left + tile]
            weight = _ramp(part.shape[-2], overlap)[:, None] * _ramp(part.shape[-1], overlap)
            spot = (slice(None), slice(top, top + tile), slice(left, left + tile))
            total[spot] += weight * derain(net, part, machine, device).derained[0]
            weights[spot] += weight
    return total / weights


def _starts(side: int, tile: int, overlap: int) -> range:
    step = (tile - overlap) // 32 * 32
    return range(0, max(1, side - overlap), step)


def _ramp(side: int, overlap: int) -> Tensor:
    """Rises from the tile's edge over the overlap, and falls again: (side,), above 0."""
    position = torch.arange(1, side + 1, dtype=torch.float32)
    return torch.minimum(position, side + 1 - position).clamp(max=overlap)


def hardware(device: torch.device) -> str:
    """What it ran on, in words, for the record beside each figure."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
