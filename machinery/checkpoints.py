"""Checkpoints: ours, complete or the network alone, and the authors', recognised by their keys.

Ours is a dictionary of tensors and plain values, so that it loads with `weights_only=True`:

    net        the weights to use; float32, or float16 where only the network is kept
    network    how to build it: {"backbone": "DerainNet", "arguments": {"channels": [24, 32, 48], ...}}
    step, steps                 the steps done, and those of the whole schedule
    recipe, data, counts, initialized_from
               the run's options, its sources and number of images, and where its first weights come from
    training   only in a complete one, what `--resume` needs besides: the optimizer, the auxiliary networks,
               the best validation and the step of the last one; and `net`, the weights in training, where
               those to use are an average of them
"""

import io
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from machinery.released import from_released, is_released, network_of
from utils import UserError, file_errors, is_out_of_memory, join_names, write_atomically

ROOT = Path(__file__).resolve().parents[1]
LATEST, BEST = "net_latest", "net_best"
SHIPPED = "pretrained"  # the subfolder of a model's folder with the checkpoint that comes with the project
TRIAL = 0.1  # a run of fewer steps than this fraction of the shipped model's does not replace it
Content = Mapping[str, Any]  # of a checkpoint, or of a record in it
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def save_checkpoint(path: Path, content: Content) -> None:
    """Writes atomically: a run killed here leaves the earlier checkpoint.

    Raises UserError, and writes nothing, where a weight is NaN or Inf.
    """
    weights: Mapping[str, Tensor] = content["net"]
    if broken := [key for key, value in weights.items() if not value.isfinite().all()]:
        raise UserError(
            f"{path} is not written: {len(broken)} of {len(weights)} weights are NaN or Inf "
            f"({join_names(broken, 2)}); try a lower --lr"
        )
    buffer = io.BytesIO()  # torch.save reports a full disk as a RuntimeError of several lines
    torch.save(dict(content), buffer)
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def find_checkpoint(logdir: Path, remedy: str) -> Path:
    """`logdir` itself if it is a file, or the net_latest in it, or the shipped one below it.

    If both exist, the trained one is used if its run is finished and not a mere trial; a line says which. A
    folder that does not exist is looked up in the project's folder, then in its trained_model/. Raises
    UserError, ending in `remedy`, where there is none.
    """
    if logdir.is_file():
        return logdir
    for folder in (logdir, ROOT / logdir, ROOT / "trained_model" / logdir):
        found = [path for path in (folder / LATEST, folder / SHIPPED / LATEST) if path.exists()]
        if len(found) == 2:
            return _trained_or_shipped(*found)
        if found:
            return found[0]
    raise UserError(f"{logdir / LATEST if logdir.is_dir() else logdir} does not exist: {remedy}")


def _trained_or_shipped(trained: Path, shipped: Path) -> Path:
    ours, theirs = (load_checkpoint(path) for path in (trained, shipped))
    finished = ours["step"] >= ours["steps"] and ours["step"] >= TRIAL * theirs["step"]
    used, other = (trained, shipped) if finished else (shipped, trained)
    length = f"{ours['step']:,} of {ours['steps'] or ours['step']:,} steps"
    print(f"using {used}, not {other}: the run here has done {length}; to choose, give the file itself")
    return used


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU: `net`, `network`, `step`, `steps`, `recipe` and `data` are there.

    The authors' weights come under our names, with `released` true. Raises UserError where the file is not a
    checkpoint, is truncated, or holds anything but tensors and plain values.
    """
    with file_errors(path, "download it again", kinds=(Exception,)), warnings.catch_warnings(action="ignore"):
        content = _read(path)
        net = content.get("net", content) if isinstance(content, Mapping) else None
        if not (net and isinstance(net, Mapping) and all(map(_is_weight, net.values()))):
            raise UserError(f"{path} is not a checkpoint of SID or SSID-KD: no weights under 'net'")
        rest = content if "net" in content else {}
        # what DataParallel and torch.compile put before the names
        net = {re.sub(r"^((module|_orig_mod)\.)+", "", key): value for key, value in net.items()}
        if is_released(net):
            rest = {"step": rest.get("clock_net", 0), "released": True}
            net = from_released(net, path)
        content = {"step": 0, "steps": 0, "recipe": {}, "data": [], **rest, "net": net}
        if not all(isinstance(line, str) for line in content["data"]):
            raise UserError(f"{path}: 'data' is not a list of texts: download it again")
        if "network" not in content:  # the authors', and ours of older days
            content["network"] = network_of(net)
            if not all(map(all, content["network"]["arguments"].values())):
                raise UserError(f"{path} does not hold the weights of SID or SSID-KD: {join_names(net)}")
    return content


def _read(path: Path) -> Any:
    file = io.BytesIO(path.read_bytes())
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > path.stat().st_size:  # torch does not compress
                raise UserError(f"{path} is a zip bomb: its entries are larger than the file")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # other kinds of files fail in any way
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        if unsafe := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} contains {unsafe[1]}, and loading it could run code: "
                "save tensors and plain values only, such as net.state_dict()"
            ) from None
        raise UserError(f"{path} is not a checkpoint or is truncated; retrain or download it again") from None


def _is_weight(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in DTYPES and not value.is_nested and not value.is_sparse


def load_weights(net: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Gives `net` the weights, as float32; a network on the meta device gets its storage.

    Raises UserError, in torch's words, where names or shapes do not fit.
    """
    on_meta = any(value.is_meta for value in net.state_dict().values())
    floats = {key: value.float() for key, value in weights.items()}
    remedy = "see --backbone, --channels, --units and --context"
    with file_errors(path, remedy, done="used here", kinds=(RuntimeError,)):
        net.load_state_dict(floats, assign=on_meta)


def refuse_unless_resumable(
    content: Content, path: Path, given: Content, resume_keys: Sequence[str], counts: Content
) -> None:
    """Raises UserError, naming the first difference, unless `content` is a complete checkpoint of this run.

    `given` is the recipe as plain values; the options named in `resume_keys` must be unchanged, and so must
    `counts`, the number of images of each kind. Where the data lies may have changed.
    """
    if "training" not in content:
        start = "--teacher" if "teacher" in given else "--weights"
        raise UserError(f"{path} holds only the network: start from it with {start} instead")
    saved = content["recipe"]
    was, here = (f"{recipe.get('stage')} on {recipe.get('dataset')}" for recipe in (saved, given))
    if was != here:
        raise UserError(f"{path} is a run of {was}, and this script trains {here}: give another --save_path")
    if new := [name for name in resume_keys if name not in saved]:
        raise UserError(f"{path} is of an earlier version, without --{new[0]}: start again without --resume")
    compared = {f"with --{name}": (saved[name], given[name]) for name in resume_keys}
    for kind, count in counts.items():
        compared[f"on {kind}, number and checksum"] = content["counts"].get(kind), count
    for what, (before, now) in compared.items():
        if before != now:
            raise UserError(
                f"{path} was started {what} {before}, not {now}: give the same to resume it, or start again "
                "without --resume"
            )
