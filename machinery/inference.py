"""A network and how it is run, for training, scoring and one's own photographs alike.

derain = Derainer.open("trained_model/photographs")
derained = derain(rainy)        # both NumPy, uint8 RGB (H, W, 3)
"""

import itertools
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from machinery.backbones import AutocastModel, network_from
from machinery.checkpoints import find_checkpoint, load_checkpoint
from machinery.lightnet import Encoded
from utils import UserError, to_tensor, to_uint8

if TYPE_CHECKING:  # no training imports it
    from photographs.pictures import Picture

CPU = torch.device("cpu")
DEFAULT_MODEL = Path("trained_model/photographs")  # of photographs and tools
OVERLAP = 64  # of two tiles, in pixels
# Limits of a tile on a CPU, its maps in bytes and its side in pixels: a 3840x2160 photograph then takes less
# than 2.5 GB with torch itself. The maps of larger tiles leave the cache: 1,536 takes 15 % longer than 800.
MOST_MEMORY, CPU_SIDE = 1.3e9, 800
# Limit of a tile's maps anywhere: at two bytes an element, no map then has more than 2^31 elements.
MOST_MAPS = 2**32
SLACK = 2.5  # process growth / size of the maps: allocator fragmentation, workspace of the convolutions

Grid = dict[tuple[int, int], tuple[Any, slice, slice]]  # (row, column) of a tile: its pixels


class Derainer:
    """Runs a network on one image of any size after another.

    `tile`: side of the tiles that larger images are cut into, in pixels; 0: never; None: as large as the free
    memory allows, measured at the first large image.
    `self_ensemble`: average over the eight flips and rotations of an image, at eight times the cost.
    `strength`: fraction of the predicted rain that is removed, in [0, 1].
    `content` and `path`: the checkpoint it was opened from, if any. `progress` is called after each tile
    with the fraction of the image that is done, in (0, 1].
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
    ) -> None:
        if tile and tile < 4 * OVERLAP:
            raise UserError(f"--tile {tile} is too small: {4 * OVERLAP} at least, or 0")
        self.net = (net if isinstance(net, AutocastModel) else AutocastModel(net, precision)).to(device)
        self.device, self.tile, self.self_ensemble = device, tile, self_ensemble
        self.strength = strength
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
        """From a checkpoint, ours or the authors', or a folder with net_latest; `options`: as of the class.

        Raises UserError if there is none (`remedy` says how to get one) or if it cannot be used.
        """
        path = find_checkpoint(Path(logdir), remedy)
        content = load_checkpoint(path)
        net = network_from(content, path)
        derainer = cls(net, device, **options)
        derainer.content, derainer.path = content, path
        return derainer

    def __call__(self, rainy: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3) to its derained image, of the same kind: clamped, rounded.

        Raises UserError for any other array.
        """
        if rainy.dtype != np.uint8 or rainy.ndim != 3 or rainy.shape[2] != 3:
            raise UserError(f"an image is uint8 RGB, (H, W, 3), not {rainy.dtype} {rainy.shape}")
        return to_uint8(self.derained(to_tensor(np.require(rainy, requirements="W"))))

    def photograph(self, picture: "Picture") -> "Picture":
        """A picture to its derained picture, with the same bits, transparency and metadata."""
        return picture.with_pixels(self.derained(picture.tensor()))

    @torch.inference_mode()
    def derained(self, rainy: Tensor) -> Tensor:
        """One image (3, H, W) in [0, 1] to its derained image, float32, on the CPU, not clamped."""
        if self.self_ensemble:
            total = torch.zeros_like(rainy)
            for number, (turn, flip) in enumerate(itertools.product(range(4), ([], [2]))):
                view = rainy.rot90(turn, (1, 2)).flip(flip)
                total += self._in_tiles(view, number / 8, 1 / 8).flip(flip).rot90(-turn, (1, 2))
            derained = total / 8
        else:
            derained = self._in_tiles(rainy, 0, 1)
        return derained if self.strength == 1 else torch.lerp(rainy, derained, self.strength)

    def _network(self, rainy: Tensor, **context: Any) -> Tensor:
        derained = self.net(rainy[None].to(self.device), **context).derained[0].cpu()
        if not torch.isfinite(derained).all():  # finite weights may overflow, above all in bfloat16
            raise UserError(
                f"{self.path} produced NaN or Inf: the weights may be broken; try --precision float32"
            )
        return derained

    def _look(
        self, rainy: Tensor, grid: Grid, begun: float, share: float
    ) -> tuple[Tensor | None, dict[tuple[int, int], Encoded]]:
        """What tiles need of their whole image (3, H, W): its mean, or None; and what is encoded already.

        The encoder's features are kept, so the mean costs nothing. If half of the memory of a tile does not
        hold them, every second tile is looked at, as on a chessboard: on photographs of 7 and 9 megapixels
        that changed the result by 0.3 levels on average. A reduced image has other features: three levels.
        """
        room = memory_to_use(self.device) / 2
        known: dict[tuple[int, int], Encoded] = {}
        total, pixels, size = torch.zeros(()), 0, 0
        for number, place in enumerate(sorted(grid, key=lambda place: sum(place) % 2), 1):
            if size > room and sum(place) % 2:
                break
            tile = rainy[grid[place]]
            if (encoded := self.net.encoded(tile[None].to(self.device))) is None:
                return None, {}
            mean = encoded.deepest.mean((2, 3), keepdim=True)
            total, pixels = total.to(mean) + mean * tile[0].numel(), pixels + tile[0].numel()
            if size <= room:
                known[place] = encoded
                size += sum(each.nbytes for each in (encoded.deepest, *encoded.skips))
            self.progress(begun + share * number / len(grid))
        return total / pixels, known

    def _in_tiles(self, rainy: Tensor, begun: float, share: float) -> Tensor:
        """Cuts a large image into overlapping tiles and blends them by linear ramps.

        Tiles begin on multiples of 32, so that the pyramid pools the same pixels together as in the whole
        image. `progress` goes from `begun` to `begun + share`.
        """
        height, width = rainy.shape[-2:]
        if self.tile is None and max(height, width) > 4 * OVERLAP:
            cpu = self.device.type == "cpu"
            known = getattr(self.net.net, "bytes_a_pixel", None) if cpu else None  # CPU_SIDE is the limit
            pixel = known or bytes_a_pixel(self.net, self.device)
            fitting = tile_that_fits(pixel, memory_to_use(self.device))
            self.tile = min(fitting, CPU_SIDE) if cpu else fitting
        if not self.tile or max(height, width) <= self.tile:
            image = self._network(rainy)
            self.progress(begun + share)
            return image
        spans = enumerate(self._spans(height)), enumerate(self._spans(width))
        grid: Grid = {(i, j): (..., rows, columns) for (i, rows), (j, columns) in itertools.product(*spans)}
        mean, known = self._look(rainy, grid, begun, share / 2)
        if mean is not None:  # half of the work is done
            begun, share = begun + share / 2, share / 2
        total, weights = torch.zeros_like(rainy), torch.zeros_like(rainy[:1])
        for number, (place, spot) in enumerate(grid.items(), 1):
            tile = rainy[spot]
            weight = _ramp(tile.shape[-2])[:, None] * _ramp(tile.shape[-1])
            context = {} if mean is None else {"image_mean": mean, "encoded": known.pop(place, None)}
            total[spot] += weight * self._network(tile, **context)
            weights[spot] += weight
            self.progress(begun + share * number / len(grid))
        return total.div_(weights)

    def _spans(self, side: int) -> list[slice]:
        """The fewest tiles along a side of at most `tile` pixels each, of nearly equal length."""
        assert self.tile
        inner = max(1, side - OVERLAP)
        step = math.ceil(inner / math.ceil(inner / ((self.tile - OVERLAP) // 32 * 32)) / 32) * 32
        return [slice(start, start + step + OVERLAP) for start in range(0, inner, step)]


def _ramp(side: int) -> Tensor:
    """Blending weights (side,), above 0: a rise over the overlap at one edge, a fall at the other."""
    position = torch.arange(1, side + 1, dtype=torch.float32)
    return torch.minimum(position, side + 1 - position).clamp(max=OVERLAP)


# ------------------------------------------------------------------------------------- what a machine can do


def bytes_a_pixel(net: nn.Module, device: torch.device) -> float:
    """Peak size of a network's maps per pixel of the image, in bytes, without its weights.

    Counted on tensors without storage, of 512x512: autocast's copies of the weights hardly count there.
    """
    # importing them takes half a second and 80 MB
    from torch._subclasses import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), MemTracker() as tracker:
        rainy = torch.zeros(1, 3, 512, 512, device=device)
        net(rainy)
    peak = tracker.get_tracker_snapshot("peak")[rainy.device]["Total"]
    return (peak - sum(weight.nbytes for weight in net.parameters())) / rainy[0, 0].numel()


def memory_to_use(device: torch.device) -> float:
    """Half of the free bytes on the GPU, or on the machine or in the container; MOST_MEMORY on a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no such system, or "max": no limit
        limit, used = free, 0
    return min(free / 2, (limit - used) / 2, MOST_MEMORY)


def tile_that_fits(pixel: float, memory: float) -> int:
    """Side of the largest tile within `memory` bytes and MOST_MAPS, at `pixel` bytes of maps per pixel.

    A multiple of 32, at least 256.
    """
    side = math.sqrt(min(max(0, memory) / SLACK, MOST_MAPS) / pixel)
    return max(4 * OVERLAP, int(side) // 32 * 32)


def best_precision(device: torch.device) -> str:
    """bfloat16 on processors that run it faster, else float32.

    On a CPU: with AMX, or AMD with AVX512-BF16. An Intel processor with AVX512-BF16 alone took 1.5 times as
    long as in float32, and emulation is slower still.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    amd = torch.cpu._is_avx512_bf16_supported() and "AMD" in hardware(device)
    return "bfloat16" if amd or torch.cpu._is_amx_tile_supported() else "float32"


def hardware(device: torch.device) -> str:
    """The name of the GPU, or of the CPU with the number of threads: recorded beside each figure."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
