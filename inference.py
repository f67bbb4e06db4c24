"""A network and how it is run: what training, scoring and one's own photographs all go through.

derain = Derainer.open("trained_model/photographs")
derained = derain(rainy)        # NumPy, uint8 RGB (H, W, 3): both
"""

import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from backbones import AutocastModel, network_from
from machinery.checkpoints import find_checkpoint, load_checkpoint
from utils import UserError, to_tensor, to_uint8

CPU = torch.device("cpu")
DEFAULT_MODEL = Path("trained_model/photographs")  # of photographs and tools
OVERLAP = 64  # of two tiles, in pixels
LIGHT = 10  # levels of 255 that a result is brightened by at most: photographs of real rain lose up to 9
TONES = 4095  # levels that an image's mean by a tone curve is reckoned by
# What a tile may take on a CPU, however much is free: with torch itself and a photograph of 3840x2160 less
# than 2.5 GB, and larger tiles are hardly faster.
MOST_MEMORY = 1.3e9
# What a process grows by, to what its tensors take: the allocator's holes, the convolutions' own room.
SLACK = 2.5


class Derainer:
    """One image after another through a network. Images may be of any size.

    `tile`: larger images are cut into tiles of this side, in pixels, so that memory stays bounded; 0: never;
    None: of the side that the free memory allows, found when the first large image comes.
    `self_ensemble`: the mean over the eight flips and rotations of an image, at eight times the cost.
    `strength`: the share of what the network takes away that goes; 0 leaves the image as it was.
    `darker`: how far the mean brightness may fall, in levels of 255; beyond it `relit` brightens.
    `content` and `path` are the checkpoint it was opened from, if it was. Whoever sets `progress` is told
    after each tile which share of the image is done, in (0, 1].
    """

    def __init__(
        self,
        net: nn.Module,
        device: torch.device = CPU,
        *,
        precision: str = "float32",
        tile: int | None = 0,
        self_ensemble: bool = False,
        strength: float = 1.0,
        darker: float = 255.0,
    ) -> None:
        self.net = (net if isinstance(net, AutocastModel) else AutocastModel(net, precision)).to(device)
        self.device, self.tile, self.self_ensemble = device, tile, self_ensemble
        self.strength, self.darker = strength, darker
        self.content: dict[str, Any] = {}
        self.path = Path()
        self.progress: Callable[[float], object] = lambda share: None

    @classmethod
    def open(
        cls,
        logdir: Path | str,
        device: torch.device = CPU,
        *,
        remedy: str = "train one, or give --logdir",
        **options: Any,
    ) -> Self:
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
        """uint8 RGB (H, W, 3) to the same without rain: clamped, rounded.

        Raises UserError for an array of another kind.
        """
        if rainy.dtype != np.uint8 or rainy.ndim != 3 or rainy.shape[2] != 3:
            raise UserError(f"an image is uint8 RGB, (H, W, 3), not {rainy.dtype} {rainy.shape}")
        image = to_tensor(np.require(rainy, requirements="W"))
        return to_uint8(self.relit(self.derained(image), image))

    @torch.inference_mode()
    def derained(self, rainy: Tensor) -> Tensor:
        """One image (3, H, W) in [0, 1] to the derained one, float32, on the CPU, not clamped."""
        turns = [(turn, flip) for turn in range(4) for flip in ([], [2])] if self.self_ensemble else [(0, [])]
        total = torch.zeros_like(rainy)
        for number, (turn, flip) in enumerate(turns):
            turned = rainy.rot90(turn, (1, 2)).flip(flip)
            image = self._in_tiles(turned, number / len(turns), 1 / len(turns))
            total += image.flip(flip).rot90(-turn, (1, 2))
        return torch.lerp(rainy, total / len(turns), self.strength)

    def relit(self, derained: Tensor, rainy: Tensor) -> Tensor:
        """`derained`, brightened by a tone curve where its mean is more than `darker` below that of `rainy`.

        By LIGHT at most: dense rain has much light of its own, which is to go with it. Black and white stay.
        Both are (3, H, W), in [0, 1] but for what is clamped here. Scores are of images before it.
        """
        levels = derained.clamp(0, 1)
        before, after = float(rainy.mean()), float(levels.mean())
        least = min(before - self.darker / 255, after + LIGHT / 255)
        return derained if after >= least else levels.pow_(_exponent(levels, least))

    def _whole(self, rainy: Tensor) -> Tensor:
        derained = self.net(rainy[None].to(self.device)).derained[0].cpu()
        if not torch.isfinite(derained).all():  # finite weights may overflow, above all in bfloat16
            raise UserError(
                f"{self.path} makes of an image what is no number: its weights are no good, or --precision "
                "float32 helps"
            )
        return derained

    def _in_tiles(self, rainy: Tensor, begun: float, share: float) -> Tensor:
        """Tiles overlap, and are blended there by linear ramps.

        Their corners lie on multiples of 32, so that the pyramid pools the same pixels together as it would
        in the whole image. `begun` and `share` of what is to be done: for `progress`.
        """
        height, width = rainy.shape[-2:]
        if self.tile is None and max(height, width) > 4 * OVERLAP:
            self.tile = tile_that_fits(bytes_a_pixel(self.net, self.device), memory_to_use(self.device))
        if not self.tile or max(height, width) <= self.tile:
            image = self._whole(rainy)
            self.progress(begun + share)
            return image
        if self.tile < 4 * OVERLAP:
            raise UserError(f"--tile {self.tile} is too small: {4 * OVERLAP} at least")
        total, weights = torch.zeros_like(rainy), torch.zeros_like(rainy[:1])
        spots = [(top, left) for top in self._spans(height) for left in self._spans(width)]
        for number, (rows, columns) in enumerate(spots, 1):
            part = rainy[:, rows, columns]
            weight = _ramp(part.shape[-2])[:, None] * _ramp(part.shape[-1])
            total[:, rows, columns] += weight * self._whole(part)
            weights[:, rows, columns] += weight
            self.progress(begun + share * number / len(spots))
        return total.div_(weights)

    def _spans(self, side: int) -> list[slice]:
        """As few as there can be of at most `tile` pixels, of much the same length."""
        assert self.tile
        inner = max(1, side - OVERLAP)
        step = math.ceil(inner / math.ceil(inner / ((self.tile - OVERLAP) // 32 * 32)) / 32) * 32
        return [slice(start, start + step + OVERLAP) for start in range(0, inner, step)]


def _exponent(image: Tensor, least: float) -> float:
    """The largest, from 1 down, by which `image`, in [0, 1], has a mean of `least` in 8 bits; 0.2 if none."""
    exponents, tones = np.linspace(1, 0.2, 801), np.arange(TONES + 1) / TONES
    counts = torch.zeros(len(tones), dtype=torch.int64)
    for colour in image:
        counts += torch.bincount((colour * TONES).round_().int().ravel(), minlength=len(tones))
    means = np.rint(255 * tones ** exponents[:, None]) / 255 @ (counts.numpy() / image.numel())
    return float(exponents[min(int(np.searchsorted(means, least)), len(exponents) - 1)])


def _ramp(side: int) -> Tensor:
    """Rises from the tile's edge over the overlap, and falls again: (side,), above 0."""
    position = torch.arange(1, side + 1, dtype=torch.float32)
    return torch.minimum(position, side + 1 - position).clamp(max=OVERLAP)


# ------------------------------------------------------------------------------------- what a machine can do


def bytes_a_pixel(net: nn.Module, device: torch.device) -> float:
    """What a network's maps take at their peak, of each pixel of an image, beside the weights."""
    # half a second, and 80 MB, that only those who measure should pay
    from torch.distributed._tools.mem_tracker import MemTracker

    rainy = torch.zeros(1, 3, 128, 128, device=device)
    with torch.no_grad(), MemTracker() as tracker:
        net(rainy)
    peak = tracker.get_tracker_snapshot("peak")[rainy.device]["Total"]
    return (peak - sum(weight.nbytes for weight in net.parameters())) / rainy[0, 0].numel()


def memory_to_use(device: torch.device) -> float:
    """Half of the bytes that are free on the card, or on the machine or in the container that it runs in."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        most, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no such system, or "max": no limit
        most, used = free, 0
    return min(free / 2, (most - used) / 2, MOST_MEMORY)


def tile_that_fits(pixel: float, memory: float) -> int:
    """The side of tiles that take `memory` bytes at most, where a pixel takes `pixel` of them.

    Never below 256, a multiple of 32.
    """
    side = math.sqrt(max(0, memory) / SLACK / pixel)
    return max(4 * OVERLAP, int(side) // 32 * 32)


def best_precision(device: torch.device) -> str:
    """bfloat16 where the processor is faster at it, and float32 elsewhere.

    With AMX, and on AMD's processors with AVX512-BF16. Intel's that have this alone took 1.5 times as long as
    in float32 (measured on one of them), and where it is emulated it is slower still.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    amd = torch.cpu._is_avx512_bf16_supported() and "AMD" in hardware(device)
    return "bfloat16" if amd or torch.cpu._is_amx_tile_supported() else "float32"


def hardware(device: torch.device) -> str:
    """What it ran on, in words, for the record beside each figure."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
