"""What a checkpoint costs, as papers tabulate it: parameters, MACs, time and peak memory for one image.

    python tools/cost.py --logdir trained_model/Rain200H+Real
    python tools/cost.py --logdir trained_model/Rain200H --size 512,512 --precision bfloat16

MACs are multiplications with the addition that follows each, of convolutions and matrix products; biases,
activations, pooling and resizing are not counted. Others count so too, whatever they call it:
Derain-toolbox's 'Flops' are MACs, at 256x256 66.56 G of PReNet and 194.5 G of RCDNet. FLOPs proper are twice
as many. They are those really done: of DerainNet a 3x3 convolution beside a 5x5 is done as one of 5x5, and
each map meets a 1x1 fusion at its own resolution; as the paper draws it there are 5 % fewer.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).resolve().parents[1]))  # found as a script too, whatever folder one is in


from benchmarks.measure import peak_memory, seconds
from inference import DEFAULT_MODEL, Derainer, hardware
from machinery import distributed
from machinery.options import Machine, option, parse
from utils import escape_unprintable, run


@dataclass(frozen=True)
class Cost(Machine):
    """The options of this script."""

    logdir: Path = option(DEFAULT_MODEL, "the model: a checkpoint, or its folder")
    size: tuple[int, ...] = option((256, 256), "height and width of the image", count=2, min=1, max=16384)
    rounds: int = option(5, "times that the image is derained, after a first that does not count", min=1)


def main() -> None:
    options = parse(Cost(), __doc__)
    device = distributed.device(options)
    derainer = Derainer.open(options.logdir, device, precision=options.precision)
    net = derainer.net.net
    rainy = torch.rand(3, *options.size, generator=torch.Generator().manual_seed(0))
    derainer.derained(rainy)  # the first: its peak is the process's, no later image can have added to it
    peak = peak_memory(device)
    times = [seconds(lambda: derainer.derained(rainy), device) for _ in range(options.rounds)]
    method = escape_unprintable(derainer.content["recipe"].get("stage", "unknown"))
    parameters = sum(each.numel() for each in net.parameters())
    height, width = options.size
    cells = {
        "model": f"{method}, {derainer.path}",
        "size": f"{width}x{height}",
        "parameters": f"{parameters / 1e6:.2f} M",
        "MACs": f"{macs(net, options.size) / 1e9:.1f} G",
        "time": f"{statistics.median(times):.3f} s ({min(times):.3f} to {max(times):.3f})",
        "peak memory": f"{peak / 1e9:.2f} GB",
    }
    print(f"| {' | '.join(cells)} |\n{'|---' * len(cells)}|\n| {' | '.join(cells.values())} |\n")
    whose = "torch's own on the card" if device.type == "cuda" else "the process's, Python and PyTorch in it"
    print(
        f"{parameters:,} parameters. MACs, not FLOPs, which are twice as many. Time: median of "
        f"{options.rounds} images, one at a time, {options.precision}, {hardware(device)}. "
        f"Peak memory: {whose}."
    )


def macs(net: nn.Module, size: Sequence[int]) -> int:
    """Multiply-accumulates of one image of `size` (height, width) through `net`; nothing is computed."""
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), counter, torch.no_grad():
        net(torch.empty(1, 3, *size, device=next(net.parameters()).device))
    return counter.get_total_flops() // 2


if __name__ == "__main__":
    run(main)
