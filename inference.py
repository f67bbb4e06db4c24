"""One image through the network: used by validation, by the eval scripts and for one's own photographs."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from torch import Tensor

from config import Machine
from networks import Derained, DerainNet


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


def hardware(device: torch.device) -> str:
    """What it ran on, in words, for the record beside each figure."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
