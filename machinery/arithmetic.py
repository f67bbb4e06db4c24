"""What the numbers of a run are: float32 that is float32 and, where asked for, the same ones in every run."""

import contextlib
import os
from collections.abc import Iterator

import torch


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
