"""A step's gradient as one CUDA graph: one launch in place of some ten thousand, which the card waits for.

engine.training_step without it is the oracle: the same gradient by the same operations. On a CPU there is no
graph, and the rest runs alike, which is how it is tested. With --compile the network within is compiled, as
one graph of its own, to fewer kernels, which is what is left to save. On CUDA none of it has been tried:
`python benchmarks/prove_cuda.py` does that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

Batch = Mapping[str, Tensor]


class FastGradient:
    """The gradients of `parameters`, and the terms of the loss, of one part of a step's batch after another.

    `work` takes a part, adds its gradient, and returns scalars by name; the first part is recorded, every
    further one must have its shapes. What `work` does in Python is done once: a number that changes from step
    to step must be a tensor, changed in place. The optimizer must leave the gradients where they are: they
    are views of one flat buffer, which several processes average in one piece. No
    DistributedDataParallel then; the processes must begin with the same weights.
    """

    def __init__(self, work: Callable[[Batch], Mapping[str, Tensor]], parameters: Iterable[Tensor]) -> None:
        self.work = work
        self.batch: dict[str, Tensor] = {}
        kept = list(parameters)
        self.flat = torch.zeros(sum(p.numel() for p in kept), dtype=kept[0].dtype, device=kept[0].device)
        for p, part in zip(kept, self.flat.split([p.numel() for p in kept]), strict=True):
            p.grad = part.as_strided(p.shape, p.stride())  # fused Adam reads both as rows

    def __call__(self, parts: Sequence[Batch]) -> list[dict[str, Tensor]]:
        """The terms of each part; the gradients are then the sum over the parts, and the processes' mean."""
        if not self.batch:
            self._record(parts[0])
        self.flat.zero_()
        terms = [self._replayed(part) for part in parts]
        if dist.is_initialized():
            dist.all_reduce(self.flat)
            self.flat /= dist.get_world_size()
        return terms

    def _replayed(self, part: Batch) -> dict[str, Tensor]:
        for name, images in part.items():
            self.batch[name].copy_(images)
        self.replay()
        return dict(zip(self.names, self.values.clone(), strict=True))  # the next replay writes over them

    def _record(self, part: Batch) -> None:
        self.batch = {name: images.clone() for name, images in part.items()}
        self.replay: Callable[[], None] = self._work
        if not self.flat.is_cuda:
            return
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(3):  # compiles, and lets cuDNN choose, which cannot be recorded
                self._work()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # NCCL's watchdog may go on
            self._work()
        self.replay = graph.replay

    def _work(self) -> None:
        terms = self.work(self.batch)
        self.names, self.values = list(terms), torch.stack([value.detach() for value in terms.values()])
