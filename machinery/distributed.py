"""One process or several: set by torchrun's environment; results do not depend on it.

    python train_Rain200H.py --gpu_id 0,1                       one process per card, through torch's launcher
    torchrun --nproc_per_node=2 train_Rain200H.py               the same by hand; also on CPUs

Gradients and logged terms are averaged over the processes, each of which has an equal slice of the batch.
"""

import contextlib
import gc
import logging
import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.rendezvous import rendezvous
from torch.distributed.run import main as torchrun

from machinery.options import Machine
from utils import UserError

# Timeout of collective operations: longer than compiling, or than waiting for others' validation images.
TIMEOUT = timedelta(hours=1)
STARTUP = timedelta(minutes=5)  # within which all processes must have connected


@dataclass(frozen=True)
class World:
    """This process: its rank (0: the main one), the number of processes and its device."""

    rank: int
    size: int
    device: torch.device


def devices(machine: Machine) -> list[torch.device]:
    """The CUDA devices of --gpu_id that exist, or the CPU.

    Raises UserError where there are CUDA devices and none of them is listed.
    """
    if not machine.use_GPU or not torch.cuda.is_available():
        return [torch.device("cpu")]
    count = torch.cuda.device_count()
    present = [torch.device("cuda", i) for i in dict.fromkeys(machine.gpu_id) if i < count]
    if not present:
        listed = ",".join(map(str, machine.gpu_id))
        raise UserError(
            f"--gpu_id {listed}: this machine has CUDA devices 0 to {count - 1}; or use --use_GPU False"
        )
    return present


def device(machine: Machine, local: int = 0) -> torch.device:
    """Sets this process up to compute, and returns its device: of `devices`, the one numbered `local`.

    Call it first. Raises UserError where there are fewer cards than processes.
    """
    set_arithmetic(machine.precision, getattr(machine, "deterministic", False))
    cards = devices(machine)
    if cards[0].type == "cpu":
        return cards[0]
    if local >= len(cards):
        raise UserError(f"process {local + 1} of this machine has no card: --gpu_id lists {len(cards)}")
    torch.cuda.set_device(cards[local])  # or pinned memory and streams would be on the first card
    return cards[local]


# -------------------------------------------------------------------------------------- starting, ending


def launched() -> bool:
    """Whether torchrun or `launch` started this process."""
    return "RANK" in os.environ


def launch(machine: Machine) -> None:
    """With several cards and no launcher: starts this script once per card, waits for it and exits."""
    cards = devices(machine)
    if len(cards) == 1 or launched():
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // len(cards))))
    logging.disable(logging.ERROR)  # the processes print their own errors
    try:
        torchrun(["--standalone", f"--nproc_per_node={len(cards)}", *sys.argv])
    except ChildFailedError as failed:
        _, failure = failed.get_first_failure()
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)  # as in a shell
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    sys.exit(0)


def start(machine: Machine) -> World:
    """Joins the process group if torchrun started this process.

    Raises UserError where the environment is not torchrun's, a process is missing, or there are fewer cards
    than processes.
    """
    if not launched():
        return World(0, 1, device(machine))
    try:
        rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        if not 0 <= rank < size:
            raise ValueError("RANK must be below WORLD_SIZE")
        own = device(machine, local)
        socket.getaddrinfo(os.environ["MASTER_ADDR"], None)  # or torch would retry until its timeout
        store, *_ = next(rendezvous("env://", timeout=STARTUP))
    except (KeyError, ValueError, socket.gaierror, dist.DistError) as error:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        given = ", ".join(f"{name} is {os.environ.get(name, 'not set')}" for name in names)
        raise UserError(
            f"the processes cannot connect: {given}; use torchrun or unset RANK: {error}"
        ) from None
    group: dict[str, Any] = {"store": store, "rank": rank, "world_size": size, "timeout": TIMEOUT}
    if own.type == "cuda":
        # gloo as well: flags and scores travel between CPUs without waiting for a card
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=own, **group)
    else:
        dist.init_process_group("gloo", **group)
    return World(rank, size, own)


def stop() -> None:
    """Leaves the process group, after the last reference to a DistributedDataParallel is gone.

    A DistributedDataParallel that still holds the group makes torch wait for gloo's thread with the GIL
    held, while that thread may need the GIL to free a tensor it has just sent.
    """
    if dist.is_initialized():
        gc.collect()  # it is in reference cycles
        dist.destroy_process_group()


def command() -> str:
    """The command line of this script, without the launcher's part."""
    return shlex.join(["python", *sys.argv])


class Stop:
    """Whether Ctrl-C, SIGTERM or SIGHUP has `asked` to stop: the current step is finished and saved first."""

    asked = False

    def listen(self) -> None:
        signals = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
            signals.append(signal.SIGHUP)
        for each in signals:
            signal.signal(each, self.on_signal)

    def on_signal(self, number: int, frame: object) -> None:
        """A second signal stops at once."""
        if self.asked and not launched():  # a launcher sends the signal again that the terminal sent to all
            raise KeyboardInterrupt
        self.asked = True


# ------------------------------------------------------------------------------------------- collectives


def all_reduce_mean(terms: Mapping[str, Tensor], world: World) -> dict[str, float]:
    """Scalar terms averaged over the processes. Every process must call it."""
    stacked = torch.stack([value.detach().double() for value in terms.values()])
    if world.size > 1:
        dist.all_reduce(stacked)
        stacked /= world.size
    return dict(zip(terms, stacked.tolist(), strict=True))


def any_rank(flag: bool, world: World) -> bool:
    """Whether `flag` is set in any process. Every process must call it."""
    return bool(all_reduce_mean({"": torch.tensor(flag)}, world)[""])


def gathered(mine: Mapping[int, Any], world: World) -> list[Any]:
    """The values of all processes, ordered by their index. Every process must call it."""
    parts: list[Any] = [mine]
    if world.size > 1:
        parts = [None] * world.size
        dist.all_gather_object(parts, dict(mine))
    return [value for _, value in sorted(item for part in parts for item in part.items())]


# ------------------------------------------------------------------------------------------------- arithmetic


def set_arithmetic(precision: str, deterministic: bool = False) -> None:
    """Sets the arithmetic of this process, before anything is computed on a card.

    `precision` is that of float32 convolutions and matrix products on CUDA: "tf32" rounds the factors to
    10 bits of mantissa, which the tensor cores of Ampere and later multiply; any other value keeps all 23
    bits. PyTorch's default is TF32 for convolutions.

    `deterministic`: a run repeats, and resumes, bit for bit on CUDA too, on the same card and versions.
    Without it three things vary: the convolution algorithm that cuDNN finds fastest, the order of cuBLAS's
    sums, and the atomic additions in the backward pass of bilinear upsampling. Slower; PyTorch raises
    RuntimeError at an operation without a deterministic implementation. A CPU run repeats in any case.
    """
    # not the newer fp32_precision: for all of cuDNN it has no effect in 2.11, and inductor fails with "tf32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    if deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports inductor: 1.4 s
        torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        torch.backends.cudnn.benchmark = False
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # none is read
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the card is first used


@contextlib.contextmanager
def many_sizes(compiled: bool) -> Iterator[None]:
    """For images of many sizes: no compiling per size, no search for the fastest cuDNN algorithm."""
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    # importing the stance takes seconds, which only a compiled run should pay
    with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = benchmark
