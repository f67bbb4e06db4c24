"""Export a trained model: the network alone in float16, with its recipe, log and curves.

    python export.py --logdir trained_model/Rain200H          trained_model/Rain200H/pretrained/

The checkpoint loads like any other (`--logdir`, `--teacher`), in float32; it lacks what `--resume` needs.
TensorBoard's curves are written from the log; its images and texts, which show a dataset and name folders of
a machine, are left out.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from machinery.checkpoints import LATEST, SHIPPED, find_checkpoint, load_checkpoint, save_checkpoint
from machinery.options import Options, option, parse
from machinery.runlog import LOG, add_points, files_of_run, logged
from utils import UserError, file_errors, run

KEPT = ("network", "step", "recipe", "data", "counts", "initialized_from", "released")


@dataclass(frozen=True)
class Export(Options):
    """The options of this script."""

    logdir: Path = option(Path(), "folder of the run, or its checkpoint", required=True)
    save_path: Path = option(Path(), "a new folder; default: pretrained/ in --logdir")


def main() -> None:
    options = parse(Export(), __doc__)
    path = find_checkpoint(options.logdir, "give the folder of a training run")
    save_path = options.save_path if options.save_path != Path() else path.parent / SHIPPED
    target = Path(os.path.realpath(save_path)) / LATEST
    if taken := files_of_run(target.parent):
        raise UserError(f"{target.parent} already has a {taken[0].name}: give another --save_path")
    content = load_checkpoint(path)
    small = {name: content[name] for name in KEPT if name in content}
    small["net"] = {name: value.half() for name, value in content["net"].items()}
    save_checkpoint(target, small)
    log = path.parent / LOG
    if log.exists():
        with file_errors(save_path, done="written to"), SummaryWriter(str(save_path)) as board:
            shutil.copy(log, save_path)
            for line in logged(log):
                add_points(board, line)
    print(f"written: {target}, {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
