"""Export a trained model: the network alone in float16, with its recipe, log and curves.

    python export.py --logdir trained_model/Rain200H          trained_model/Rain200H/pretrained/

The checkpoint loads like any other (`--logdir`, `--teacher`), in float32; it lacks what `--resume` needs.
TensorBoard's curves are copied; its images and texts, which show a dataset and name folders of a machine, are
left out.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from machinery.checkpoints import LATEST, SHIPPED, find_checkpoint, load_checkpoint, save_checkpoint
from machinery.options import Options, option, parse
from machinery.runlog import LOG, files_of_run
from utils import UserError, file_errors, run

KEPT = ("network", "step", "recipe", "data", "counts", "initialized_from", "released")


@dataclass(frozen=True)
class Export(Options):
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
    with file_errors(save_path, done="written to"):
        if (path.parent / LOG).exists():
            shutil.copy(path.parent / LOG, save_path)
        for file in path.parent.glob("events.out.tfevents.*"):
            copy_curves(file, save_path / file.name)
    print(f"written: {target}, {target.stat().st_size / 1e6:.1f} MB")


def copy_curves(events: Path, target: Path) -> None:
    """Copies TensorBoard's scalars, with the times of the run."""
    with target.open("wb") as file:
        writer = RecordWriter(file)
        for record in RawEventFileLoader(str(events)).Load():
            if all(value.HasField("simple_value") for value in Event.FromString(record).summary.value):
                writer.write(record)


if __name__ == "__main__":
    run(main)
