"""Checkpoints: ours, complete or the network alone, and the authors', told apart by their content.

Ours is a dictionary of tensors and plain values, so that it loads with `weights_only=True`:

    net        the weights to use; float32, or float16 where only the network is kept
    network    how to build it: {"backbone": "DerainNet", "arguments": {"channels": [24, 32, 48], ...}}
    step, recipe, data, counts, initialized_from
               the steps behind it, and what the run was made of
    training   only in a complete one, what `--resume` needs beside: the optimizer, the networks held
               beside the one in training, the best validation and the step of the last one; and `net`, the
               weights in training, where those to use are an average of them
"""

import errno
import io
import math
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from machinery.released import from_released, is_released, network_of
from utils import UserError, file_errors, join_names, refuse_unless_file, write_atomically

ROOT = Path(__file__).resolve().parents[1]
LATEST, BEST = "net_latest", "net_best"
SHIPPED = "pretrained"  # the folder, in a model's, of what comes with the project
LARGEST = 4096  # of any number that a network is built with: more is a broken file, and would take the memory

# what every checkpoint holds beside the network, and what a complete one must hold to be resumed: plain
# values, but for what is a Mapping here
ALWAYS: dict[str, type] = {"step": int, "recipe": dict, "data": list}
KINDS: dict[str, type] = {"counts": dict, "initialized_from": str, "training": Mapping}
TRAINING_KINDS: dict[str, type] = {"best": float, "validated": int, "moments": int}
TRAINING_KINDS |= dict.fromkeys(("optimizer", "beside"), Mapping)


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Writes to a temporary file and moves it into place: a run killed here leaves the earlier checkpoint.

    Raises UserError, and writes nothing, where a weight is not a finite number.
    """
    _refuse_unless_finite(content["net"], f"{path} is not written")
    buffer = io.BytesIO()  # torch.save itself tells a full disk by a RuntimeError of several lines
    torch.save(dict(content), buffer)
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def find_checkpoint(logdir: Path, remedy: str) -> Path:
    """`logdir` itself, or the net_latest in it, or the shipped one below it.

    Raises UserError, ending in `remedy`, where there is none.

    What is not in the folder that one is in may lie in the project's: the models that come with it do.
    """
    if not logdir.exists() and (ROOT / logdir).exists():
        logdir = ROOT / logdir
    path = logdir
    if logdir.is_dir():  # a model that comes with the project gives way to one that was trained here
        trained, shipped = logdir / LATEST, logdir / SHIPPED / LATEST
        path = shipped if shipped.exists() and not trained.exists() else trained
    if not path.exists():
        raise UserError(f"{path} does not exist: {remedy}")
    refuse_unless_file(path, "a checkpoint")
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU: `net` and `network` are there and sound, whoever wrote it.

    Of the authors', told by its keys, the weights come under our names, and `released` is true.
    Raises UserError where the file is no checkpoint, is cut short, or holds anything but plain data.
    """
    # what torch warns of in strangers' files is not for the user to mend
    with file_errors(path), warnings.catch_warnings(action="ignore"):
        try:
            _refuse_unless_as_large_as_it_says(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            if error.errno not in (None, errno.EINVAL):  # the disk's, or the rights'
                raise
            raise _no_checkpoint(path) from None
        except Exception:  # a file of another kind fails in whatever way its bytes happen to
            raise _no_checkpoint(path) from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no network under 'net': it is not a checkpoint of SID or SSID-KD")
    if is_released(content):
        _refuse_unless_weights(content.get("net", content), path)
        step = content.get("clock_net", 0)
        step = step if isinstance(step, int) else 0
        with file_errors(path, "fetch it again", kinds=(Exception,)):  # its names and shapes are a stranger's
            content = {"net": from_released(content, path), "step": step, "released": True}
    weights = content.get("net")
    _refuse_unless_weights(weights, path)
    _refuse_unless_finite(weights, f"{path} cannot be used")
    if "training" not in content:
        content = {"step": 0, "recipe": {}, "data": [], **content}
    _refuse_unless_of_kinds(content, ALWAYS, path, "fetch it again")
    if content["step"] < 0:
        raise UserError(f"{path} says it has step {content['step']}: fetch it again")
    if "network" not in content:  # the authors', and ours of older days
        content["network"] = network_of(weights)
        if not all(map(all, content["network"]["arguments"].values())):
            raise UserError(f"{path} does not hold the weights of SID or SSID-KD: {join_names(weights)}")
    refuse_unless_buildable(content["network"], path)
    return content


def _no_checkpoint(path: Path) -> UserError:
    return UserError(f"{path} is no checkpoint, or is cut short: train anew, or fetch it again")


def _refuse_unless_as_large_as_it_says(path: Path) -> None:
    """A checkpoint is an archive that nothing compresses: one that holds more than it weighs is a bomb."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(each.file_size for each in archive.infolist()) > path.stat().st_size:
                raise _no_checkpoint(path)


def _refuse_unless_weights(weights: Any, path: Path) -> None:
    if not isinstance(weights, Mapping) or not weights:
        raise UserError(f"{path} holds no network under 'net': it is not a checkpoint of SID or SSID-KD")
    for key, value in weights.items():
        sound = isinstance(value, Tensor) and value.layout is torch.strided and value.is_floating_point()
        # a view may show one number a million times
        sound = sound and value.device.type == "cpu" and value.nbytes <= value.untyped_storage().nbytes()
        if not (isinstance(key, str) and sound):
            raise UserError(f"{path}: {key!r} of its network is no weight: train anew, or fetch it again")


def _refuse_unless_finite(weights: Mapping[str, Tensor], consequence: str) -> None:
    broken = [key for key, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(
            f"{consequence}: {len(broken)} of its {len(weights)} weights are no finite numbers "
            f"({join_names(broken, most=2)}); try a lower --lr"
        )


def refuse_unless_buildable(network: Any, path: Path | str) -> None:
    def sound(value: Any) -> bool:
        if isinstance(value, list | tuple):
            return len(value) < LARGEST and not any(
                isinstance(v, list | tuple) or not sound(v) for v in value
            )
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


def load_weights(net: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
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
        raise UserError(f"{path} does not fit: {join_names(wrong, most=3)}; see --channels and --units")
    empty = any(value.is_meta for value in net.state_dict().values())
    net.load_state_dict({key: value.float() for key, value in weights.items()}, assign=empty)


def refuse_unless_resumable(
    content: Mapping[str, Any],
    path: Path,
    given: Mapping[str, Any],
    binding: Sequence[str],
    counts: Mapping[str, Any],
) -> None:
    """That a checkpoint is complete, and of the run that is `given` as plain values.

    `binding` names the options that must not have changed. `counts` is what there is of each kind of data,
    which must be what the run began with; where it lies may have changed. Raises UserError that names the
    first difference.
    """
    remedy = "start anew without --resume"
    if "training" not in content:
        raise UserError(f"{path} holds the network alone: start from it by --weights or --teacher instead")
    _refuse_unless_of_kinds(content, KINDS, path, remedy)
    _refuse_unless_of_kinds(content["training"], TRAINING_KINDS, path, remedy)
    if "net" in content["training"]:
        _refuse_unless_weights(content["training"]["net"], path)
        _refuse_unless_finite(content["training"]["net"], f"{path} cannot be used")
    made_of = content["recipe"]
    was, here = (f"{of.get('stage')} on {of.get('dataset')}" for of in (made_of, given))
    if was != here:
        raise UserError(f"{path} is a run of {was}, and this script trains {here}: give another --save_path")
    for name in binding:
        if made_of.get(name) != given[name]:
            raise UserError(
                f"{path} was begun with --{name} {_shown(made_of.get(name))}, not {_shown(given[name])}: "
                f"give the same to resume it, or {remedy}"
            )
    for what, count in counts.items():
        if content["counts"].get(what) != count:
            raise UserError(
                f"{path} was begun on {_shown(content['counts'].get(what))} {what}, and here are "
                f"{_shown(count)}: give the same data to resume it, or {remedy}"
            )


def _refuse_unless_of_kinds(
    content: Mapping[str, Any], kinds: Mapping[str, type], path: Path, remedy: str
) -> None:
    for key, kind in kinds.items():
        value = content.get(key)
        if not isinstance(value, kind) or not (kind is Mapping or _is_plain(value)):
            raise UserError(f"{path} has no sound {key!r}: {remedy}")


def _is_plain(value: Any, depth: int = 2) -> bool:
    """Texts and numbers, and lists and dictionaries of them: what can be compared, printed and kept."""
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and _is_plain([*value.values()], depth)
    if isinstance(value, list | tuple):
        return depth > 0 and all(_is_plain(each, depth - 1) for each in value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, str) or (isinstance(value, float) and not math.isnan(value))


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
