"""One process or many: torchrun's environment decides, and nothing computed depends on which.

    python train_Rain200H.py --gpu_id 0,1                       one process a card, through torch's launcher
    torchrun --nproc_per_node=2 train_Rain200H.py               the same by hand; also on CPUs

Gradients and logged terms are averaged over the processes, each of which has an equal slice of the batch.
"""

import contextlib
import gc
import io
import json
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from machinery.options import Machine
from utils import KILLED_WORKER, UserError, is_killed_worker

# After so long a wait for another process it is lost. None takes as long to compile, or to score its images
# when the others have scored theirs; where a process ends, its fellows notice at once.
PATIENCE = timedelta(hours=1)


@dataclass(frozen=True)
class World:
    """This process among its fellows, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main_process(self) -> bool:
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


def ready(machine: Machine, device: torch.device) -> torch.device:
    """Sets this process up to compute on `device`, before anything does."""
    set_arithmetic(machine.precision, getattr(machine, "deterministic", False))
    if device.type == "cuda":
        torch.cuda.set_device(device)  # else pinned memory and streams would be the first card's
    return device


def device(machine: Machine) -> torch.device:
    """The one device of a script that takes one, ready to compute: the first of those listed."""
    return ready(machine, devices(machine)[0])


# -------------------------------------------------------------------------------------- starting, ending


def launched() -> bool:
    """Whether torchrun, or `launch`, started this process."""
    return "RANK" in os.environ


def _from_launcher(name: str) -> int:
    if not (value := os.environ.get(name, "")).isdecimal():
        raise UserError(f"{name} is {value!r} and RANK is set, as if torchrun had started this: unset RANK")
    return int(value)


def launch(machine: Machine) -> None:
    """With several cards listed and no launcher above: starts this script once a card, waits, and exits."""
    cards = devices(machine)
    if len(cards) == 1 or launched():
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // len(cards))))
    logging.disable(logging.ERROR)  # the processes say for themselves what is wrong
    try:
        torchrun(["--standalone", f"--nproc_per_node={len(cards)}", *sys.argv])
    except ChildFailedError as failed:
        _, failure = failed.get_first_failure()
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)  # as shells count
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    sys.exit(0)


def start(machine: Machine) -> World:
    """Joins the other processes, if torchrun started any. Raises UserError with too few cards for them."""
    cards = devices(machine)
    if not launched():
        return World(0, 1, ready(machine, cards[0]))
    rank, size, local = map(_from_launcher, ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    device = cards[0]
    if device.type == "cuda":
        if local >= len(cards):
            raise UserError(f"process {local + 1} of this machine has no card: --gpu_id lists {len(cards)}")
        device = cards[local]
    ready(machine, device)
    try:
        if device.type == "cuda":
            # gloo besides: flags and scores travel between CPUs without waiting for a card
            dist.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=PATIENCE)
    except ValueError as error:  # of MASTER_ADDR and MASTER_PORT, which torchrun sets too
        raise UserError(f"{error}: start it by torchrun, or unset RANK") from None
    return World(rank, size, device)


def stop() -> None:
    """Leaves the group. Nobody may hold a DistributedDataParallel any more.

    Where that is the last to hold the group, torch waits for gloo's thread, and does not let go of Python
    meanwhile, which the thread may wait for: to free a tensor that was sent just before.
    """
    if dist.is_initialized():
        gc.collect()  # it is in cycles
        dist.destroy_process_group()


def command() -> str:
    """The command line that started this run, the launcher's where there is one, to be typed again."""
    words = [sys.executable, *sys.argv]
    if launched():
        with contextlib.suppress(psutil.Error):
            words = psutil.Process(os.getppid()).cmdline()
    first, *rest = words
    if rest and Path(rest[0]).name == "torchrun":
        first, *rest = rest
    return shlex.join([Path(first).name.rstrip("0123456789."), *rest])


def command_to_resume() -> str:
    return command() + ("" if "--resume" in sys.argv else " --resume")


class Stop:
    """Whether Ctrl-C or SIGTERM has `asked` to stop: the step under way is finished and saved first."""

    asked = False

    def listen(self) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, self.on_signal)

    def on_signal(self, number: int, frame: object) -> None:
        """A second signal does not wait."""
        if self.asked and not launched():  # a launcher hands on what we got from the group
            raise KeyboardInterrupt
        self.asked = True


# ------------------------------------------------------------------------------------------- errors, once


@contextlib.contextmanager
def silence_other_ranks() -> Iterator[None]:
    """Silences what all processes of a machine would print alike: --help, an option that does not exist."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def report_error_once() -> Iterator[None]:
    """Has an error told by one process a machine, the first that meets it; the others end in silence.

    The end of a process breaks its fellows' connections: they raise UserError, which says how to go on.
    """
    try:
        yield
        return
    except UserError as error:
        message = str(error)
    except (ConnectionError, EOFError, RuntimeError) as error:
        # gloo raises plain RuntimeErrors, whose text alone tells them from others
        lost = isinstance(error, dist.DistError) or "gloo" in str(error).lower()
        if not lost and not is_killed_worker(error):
            raise
        why = "another process of this run has ended, and so does this one" if lost else KILLED_WORKER
        message = f"{why}; go on from the last checkpoint with: {command_to_resume()}"
    if not _is_first_to_fail(message):
        sys.exit(2)
    if launched():
        print(file=sys.stderr)  # the cursor stands at the end of the first process's progress bar
    raise UserError(message)


def _is_first_to_fail(message: str) -> bool:
    """Of this machine's processes. The first one's message is left for torchrun's own report as well."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # run/attempt/local rank/error.json
    if not file:
        return True
    try:
        (Path(file).parents[1] / "told").touch(exist_ok=False)
    except FileExistsError:
        return False
    report = {"message": message, "extraInfo": {"timestamp": int(time.time())}}
    Path(file).write_text(json.dumps({"message": report}))
    return True


# --------------------------------------------------------------------------------------- what is shared


def all_reduce_mean(terms: Mapping[str, Tensor], world: World) -> dict[str, float]:
    """Scalar terms averaged over the processes. Every process must call it."""
    stacked = torch.stack([value.detach().double() for value in terms.values()])
    if world.size > 1:
        dist.all_reduce(stacked)
        stacked /= world.size
    return dict(zip(terms, stacked.tolist(), strict=True))


def any_rank(flag: bool, world: World) -> bool:
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


# ------------------------------------------------------------------------------------------------- arithmetic


def set_arithmetic(precision: str, deterministic: bool = False) -> None:
    """Sets up this process, before anything is computed on a card.

    `precision`: of the float32 convolutions and matrix products on CUDA. "tf32" rounds what they multiply to
    10 bits of mantissa, which the tensor cores of Ampere and later take; with anything else they multiply all
    23 bits. PyTorch's own default is TF32 for convolutions: float32 is then not float32.

    `deterministic`: a run repeats, and goes on after --resume, bit for bit on CUDA too, on the same card and
    versions. Without it three things differ from run to run: the algorithm that cuDNN finds fastest, the
    order in which cuBLAS adds, and the backward pass of bilinear upsampling, which adds atomically and for
    which PyTorch then takes another formula. Slower. PyTorch raises RuntimeError at an operation for which it
    knows no such way. On a CPU a run repeats anyway; on CUDA this has not been tried.
    """
    # not by the newer fp32_precision: for all of cuDNN it does nothing in 2.11, and inductor fails at "tf32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        torch.backends.cudnn.benchmark = False
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # none is read
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the card is first used


@contextlib.contextmanager
def many_sizes(compiled: bool) -> Iterator[None]:
    """For images of many sizes: nothing `compiled` is compiled for each, and cuDNN seeks no algorithms."""
    sought, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    # the stance's module takes seconds to import, which only a compiled run should pay
    with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = sought
