"""One process or many: torchrun's environment decides, and nothing computed depends on which.

    python train_Rain200H.py --gpu_id 0,1                       one process a card, through torch's launcher
    torchrun --nproc_per_node=2 train_Rain200H.py               the same by hand; also on CPUs

Gradients and logged terms are averaged over the processes, each of which has an equal slice of the batch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.run import main as torchrun

from config import Machine
from utils import UserError


@dataclass(frozen=True)
class World:
    """This process among its fellows, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def devices(machine: Machine) -> list[torch.device]:
    """The devices that the options and this machine agree on: the listed CUDA ones, or the CPU alone.

    Raises UserError where CUDA devices are there and none of them is listed.
    """
    if not machine.use_GPU or not torch.cuda.is_available():
        return [torch.device("cpu")]
    count = torch.cuda.device_count()
    present = [torch.device("cuda", i) for i in machine.gpu_id if i < count]
    if not present:
        listed = ",".join(map(str, machine.gpu_id))
        raise UserError(
            f"--gpu_id {listed}: this machine has CUDA devices 0 to {count - 1}; or --use_GPU False"
        )
    return present


def launch(machine: Machine) -> None:
    """With several cards listed and no launcher above: starts this script once a card, waits, and exits."""
    cards = devices(machine)
    if len(cards) > 1 and "RANK" not in os.environ:
        torchrun(["--standalone", f"--nproc_per_node={len(cards)}", *sys.argv])
        sys.exit(0)


def start(machine: Machine) -> World:
    """Joins the other processes, if torchrun started any. Raises UserError with too few cards for them."""
    cards = devices(machine)
    if "RANK" not in os.environ:
        return World(0, 1, cards[0])
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    device = cards[0]
    if device.type == "cuda":
        if local >= len(cards):
            raise UserError(f"process {local + 1} of this machine has no card: --gpu_id lists {len(cards)}")
        device = cards[local]
        torch.cuda.set_device(device)
    # gloo besides: flags and scores travel between CPUs without waiting for a card
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return World(rank, size, device)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def averaged(terms: Mapping[str, Tensor], world: World) -> dict[str, float]:
    """Scalar terms averaged over the processes. Every process must call it."""
    stacked = torch.stack([value.detach().double() for value in terms.values()])
    if world.size > 1:
        dist.all_reduce(stacked)
        stacked /= world.size
    return dict(zip(terms, stacked.tolist(), strict=True))


def anywhere(flag: bool, world: World) -> bool:
    """Whether `flag` is set in any process. Every process must call it."""
    if world.size == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def gathered(mine: Mapping[int, Any], world: World) -> list[Any]:
    """What the processes hold under an index each, in the order of the index. Every process must call it."""
    parts: list[Any] = [mine]
    if world.size > 1:
        parts = [None] * world.size
        dist.all_gather_object(parts, dict(mine))
    return [value for _, value in sorted(item for part in parts for item in part.items())]
