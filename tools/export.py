"""Makes a checkpoint fit to publish: the network alone, in float16, with its recipe and its log.

    python tools/export.py --logdir trained_model/Rain200H --save_path published/Rain200H

It loads like any other (`--logdir`, `--teacher`), into float32; only `--resume` needs the whole one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # found as a script too, whatever folder one is in

from machinery.checkpoints import LATEST, find_checkpoint, load_checkpoint, save_checkpoint
from machinery.options import Options, option, parse
from machinery.runlog import FILE, RunLog, logged
from utils import UserError, about, run

KEPT = ("network", "step", "recipe", "data", "counts", "began_with", "released")


@dataclass(frozen=True)
class Export(Options):
    """The options of this script."""

    logdir: Path = option(Path(), "the run's folder, or its checkpoint", required=True)
    save_path: Path = option(Path(), "another folder, for the small one", required=True)


def main() -> None:
    options = parse(Export(), __doc__)
    path = find_checkpoint(options.logdir, "give the folder of a training run")
    with about(options.save_path, done="made"):
        options.save_path.mkdir(
            parents=True, exist_ok=True
        )  # of new/../old nothing is seen before new is there
    if (options.save_path / LATEST).exists():
        raise UserError(f"{options.save_path} has a {LATEST} already: give another --save_path")
    content = load_checkpoint(path)
    small = {name: content[name] for name in KEPT if name in content}
    small["net"] = {name: value.half() for name, value in content["net"].items()}
    save_checkpoint(options.save_path / LATEST, small)
    log = path.parent / FILE
    if log.exists():
        _copy_log(log, options.save_path)
    print(
        f"written: {options.save_path / LATEST}, {(options.save_path / LATEST).stat().st_size / 1e6:.1f} MB"
    )


def _copy_log(log: Path, folder: Path) -> None:
    """The run's numbers, without its pictures, as log.jsonl and for TensorBoard."""
    with RunLog(folder, 0, 0) as copy:
        for values in logged(log):
            copy.scalars(int(values.pop("step")), values)


if __name__ == "__main__":
    run(main)
