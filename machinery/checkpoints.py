"""Checkpoints: ours, complete or the network alone, and the authors', told apart by their content.

Ours is a dictionary of tensors and plain values, so that it loads with `weights_only=True`:

    net        the weights to use; float32, or float16 where only the network is kept
    network    how to build it: {"backbone": "DerainNet", "arguments": {"channels": [24, 32, 48], ...}}
    step, recipe, data, counts, began_with
               the steps behind it, and what the run was made of
    training   only in a complete one, what `--resume` needs beside: optimizer, scheduler, the stage's own
               state, the best validation and the step of the last one; and `net`, the weights in training,
               where those to use are an average of them
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from machinery.options import Record, as_plain
from machinery.released import from_released, is_released, network_of
from utils import UserError, one_line, write_atomically

LATEST, BEST = "net_latest", "net_best"
LARGEST = 4096  # of any number that a network is built with: more is a broken file, and would take the memory

# what a complete checkpoint must hold to be resumed
KINDS = {"step": int, "recipe": dict, "counts": dict, "began_with": str, "training": dict}
TRAINING_KINDS = {"optimizer": dict, "scheduler": dict, "stage": dict, "best": float, "validated": int}


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Writes to a temporary file and moves it into place: a run killed here leaves the earlier checkpoint.

    Raises UserError, and writes nothing, where a weight is not a finite number.
    """
    _refuse_unless_finite(content["net"], f"{path} is not written")
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
    """Reads a checkpoint onto the CPU: `net` and `network` are there and sound, whoever wrote it.

    Of the authors', told by its keys, the weights come under our names, and `released` is true.
    Raises UserError where the file is no checkpoint, is cut short, or holds anything but plain data.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a file of another kind fails in whatever way its bytes happen to
        raise UserError(f"{path} is no checkpoint, or is cut short: train anew, or fetch it again") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no network under 'net': it is not a checkpoint of SID or SSID-KD")
    if is_released(content):
        _refuse_unless_weights(content.get("net", content), path)
        step = content.get("clock_net", 0)
        step = step if isinstance(step, int) else 0
        content = {"net": from_released(content), "step": step, "released": True}
    weights = content.get("net")
    _refuse_unless_weights(weights, path)
    _refuse_unless_finite(weights, f"{path} cannot be used")
    content = {"step": 0, "recipe": {}, "data": [], **content}
    if "network" not in content:  # the authors', and ours of older days
        content["network"] = network_of(weights)
        if not all(map(all, content["network"]["arguments"].values())):
            raise UserError(f"{path} does not hold the weights of SID or SSID-KD: {one_line(weights)}")
    _refuse_unless_buildable(content["network"], path)
    return content


def _refuse_unless_weights(weights: Any, path: Path) -> None:
    if not isinstance(weights, Mapping) or not weights:
        raise UserError(f"{path} holds no network under 'net': it is not a checkpoint of SID or SSID-KD")
    for key, value in weights.items():
        sound = isinstance(value, Tensor) and value.layout is torch.strided and value.is_floating_point()
        if not (isinstance(key, str) and sound and value.device.type == "cpu"):
            raise UserError(f"{path}: {key!r} of its network is no weight: train anew, or fetch it again")


def _refuse_unless_finite(weights: Mapping[str, Tensor], consequence: str) -> None:
    broken = [key for key, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(
            f"{consequence}: {len(broken)} of its {len(weights)} weights are no finite numbers "
            f"({one_line(broken, most=2)}); try a lower --lr"
        )


def _refuse_unless_buildable(network: Any, path: Path) -> None:
    def sound(value: Any) -> bool:
        if isinstance(value, list | tuple):
            return len(value) < LARGEST and all(map(sound, value))
        return isinstance(value, bool | int | float | str) and not (
            isinstance(value, int | float) and not 0 <= value <= LARGEST
        )

    if not (
        isinstance(network, Mapping)
        and isinstance(network.get("backbone"), str)
        and isinstance(network.get("arguments"), Mapping)
        and all(isinstance(k, str) and sound(v) for k, v in network["arguments"].items())
    ):
        raise UserError(f"{path} does not say how to build its network: train anew, or fetch it again")


def fill(net: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Gives `net` the weights, in its own number format; a network on the meta device comes to life.

    Raises UserError with the keys of `path` that do not fit and the shapes expected.
    """
    expected = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    wrong = [
        f"{key} is {tuple(weights[key].shape) if key in weights else 'missing'}, expected {shape}"
        for key, shape in expected.items()
        if key not in weights or tuple(weights[key].shape) != shape
    ]
    wrong += [f"{key} is not in this network" for key in weights if key not in expected]
    if wrong:
        raise UserError(f"{path} does not fit: {one_line(wrong, most=3)}; see --channels and --units")
    empty = any(value.is_meta for value in net.state_dict().values())
    net.load_state_dict({key: value.float() for key, value in weights.items()}, assign=empty)


def load_first(net: nn.Module, logdir: Path, dataset: str) -> str:
    """Gives `net` its first weights, those of a teacher or of --weights; says which they are.

    Raises UserError where there are none or where they do not fit.
    """
    remedy = f"python train_{dataset}.py makes a teacher; see --teacher, or --weights"
    path = find_checkpoint(logdir, remedy)
    content = load_checkpoint(path)
    fill(net, content["net"], path)
    return f"{path}, step {content['step']}"


# ------------------------------------------------------------------------------------------------- resuming


def load_to_resume(path: Path, recipe: Record, stage: str, counts: Mapping[str, Any]) -> dict[str, Any]:
    """The complete checkpoint of a run that `recipe` goes on with.

    `counts` is what there is of each kind of data, which must be what the run began with; where it lies may
    have changed. Raises UserError that names the first difference that would change the result.
    """
    content = load_checkpoint(find_checkpoint(path, "start without --resume"))
    if "training" not in content:
        raise UserError(f"{path} holds the network alone: start from it by --weights or --teacher instead")
    _refuse_unless_of_kinds(content, KINDS, path)
    _refuse_unless_of_kinds(content["training"], TRAINING_KINDS, path)
    made_of, given = content["recipe"], as_plain(recipe)
    was = f"{made_of.get('stage')} on {made_of.get('dataset')}"
    if was != (here := f"{stage} on {given['dataset']}"):
        raise UserError(f"{path} is a run of {was}, and this script trains {here}: give another --save_path")
    for each in dataclasses.fields(recipe):
        name = each.name
        if each.metadata.get("changes_result") and made_of.get(name) != given[name]:
            raise UserError(
                f"{path} was begun with --{name} {_shown(made_of.get(name))}, not {_shown(given[name])}: "
                "give the same to resume it, or start anew without --resume"
            )
    for what, count in counts.items():
        if content["counts"].get(what) != count:
            raise UserError(
                f"{path} was begun on {_shown(content['counts'].get(what))} {what}, and here are "
                f"{_shown(count)}: give the same data to resume it, or start anew without --resume"
            )
    return content


def restore(
    optimizer: torch.optim.Optimizer, scheduler: Any, training: Mapping[str, Any], path: Path
) -> None:
    """Both as they were when `training` was saved. The optimizer keeps its own way of computing (fused).

    Raises UserError where they belong to other weights.
    """
    ways = [{key: group[key] for key in ("fused", "foreach")} for group in optimizer.param_groups]
    try:
        saved = training["optimizer"]
        # before loading: a fused optimizer's count of steps must come to the card, by what it is told here
        groups = [group | way for group, way in zip(saved["param_groups"], ways, strict=True)]
        optimizer.load_state_dict({**saved, "param_groups": groups})
        scheduler.load_state_dict(training["scheduler"])
        for group in optimizer.param_groups:
            for weight in group["params"]:
                moments = optimizer.state[weight]
                fits = all(moments[key].shape == weight.shape for key in ("exp_avg", "exp_avg_sq"))
                if not fits or not float(moments["step"]) >= 0:
                    raise ValueError
    except Exception:  # what a foreign dictionary makes torch raise is anybody's guess
        raise UserError(
            f"{path}: its optimizer does not belong to its network: start anew without --resume"
        ) from None


def _refuse_unless_of_kinds(content: Mapping[str, Any], kinds: Mapping[str, type], path: Path) -> None:
    for key, kind in kinds.items():
        value = content.get(key)
        if not isinstance(value, kind) or (isinstance(value, float) and math.isnan(value)):
            raise UserError(f"{path} has no sound {key!r} to resume from: start anew without --resume")


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
