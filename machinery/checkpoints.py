"""Checkpoints: ours, complete or the network alone, and the authors', told apart by their content.

Ours is a dictionary of tensors and plain values, so that it loads with `weights_only=True`: `net` (float32,
or float16 where only the network is kept), `recipe` and `step`; and, to go on training, `optimizer` and
`scheduler`, the best validation PSNR and what the run was made of.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from machinery.released import from_released, is_released
from networks import DerainNet
from utils import UserError, one_line, write_atomically

LATEST, BEST = "net_latest", "net_best"


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Writes to a temporary file and moves it into place: a run killed here leaves the earlier checkpoint."""
    buffer = io.BytesIO()  # torch.save itself tells a full disk by a RuntimeError of several lines
    torch.save(dict(content), buffer)
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def find_checkpoint(logdir: Path, remedy: str) -> Path:
    """`logdir` itself, or the net_latest in it. Raises UserError, ending in `remedy`, where there is none."""
    path = logdir / LATEST if logdir.is_dir() else logdir
    if not path.is_file():
        raise UserError(f"{path} does not exist: {remedy}")
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU; a released one comes as {'net': ..., 'step': ...}, ours as is.

    Raises UserError where the file is no checkpoint, is cut short, or holds anything but plain data.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError):
        raise UserError(f"{path} is no checkpoint, or is cut short: train anew, or fetch it again") from None
    if isinstance(content, Mapping) and is_released(content):
        return {"net": from_released(content), "step": int(content.get("clock_net", 0)), "released": True}
    if not isinstance(content, Mapping) or not isinstance(content.get("net"), Mapping):
        raise UserError(f"{path} holds no network under 'net': it is not a checkpoint of SID or SSID-KD")
    return dict(content)


def size_of(weights: Mapping[str, Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(channels, units) of the network that `weights` belong to, at full, half and quarter resolution."""
    channels = tuple(len(weights.get(f"head{scale}.bias", ())) for scale in (1, 2, 4))
    stages = ("full_branch.decode1", "half_branch.decode2", "quarter_branch")
    fusions = [re.compile(rf"{re.escape(stage)}\.fusions\.\d+\.bias") for stage in stages]
    return channels, tuple(sum(bool(each.fullmatch(key)) for key in weights) for each in fusions)


def load_weights(net: DerainNet, weights: Mapping[str, Tensor], path: Path) -> None:
    """Fills `net`, or raises UserError with the keys of `path` that do not fit and the shapes expected."""
    expected = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    wrong = [
        f"{key} is {tuple(weights[key].shape) if key in weights else 'missing'}, expected {shape}"
        for key, shape in expected.items()
        if key not in weights or tuple(weights[key].shape) != shape
    ]
    wrong += [f"{key} is not in this network" for key in weights if key not in expected]
    if wrong:
        raise UserError(f"{path} does not fit: {one_line(wrong, most=3)}; see --channels and --units")
    net.load_state_dict(weights)


def open_network(logdir: Path, remedy: str) -> tuple[DerainNet, dict[str, Any]]:
    """The network in a checkpoint, of the size that its weights tell, in float32, and the checkpoint.

    Raises UserError where there is none (`remedy` says how to make one) or where it does not fit.
    """
    path = find_checkpoint(logdir, remedy)
    content = load_checkpoint(path)
    channels, units = size_of(content["net"])
    if not all(channels + units):
        raise UserError(f"{path} does not hold the weights of SID or SSID-KD: {one_line(content['net'])}")
    net = DerainNet(channels, units)
    load_weights(net, content["net"], path)
    return net, {**content, "path": path}
