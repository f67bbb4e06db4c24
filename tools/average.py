"""The average of several checkpoints' weights: of runs with one ancestor, it may unite what each learned.

    python tools/average.py 0.65=trained_model/A 0.35=trained_model/B --save_path trained_model/averaged

The share of each stands before it; they add up to 1. The first one's recipe is kept, and how the average was
made stands where a checkpoint says what it began with. tools/export.py makes a small file of it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # found as a script too, whatever folder one is in

from machinery.checkpoints import LATEST, find_checkpoint, load_checkpoint, save_checkpoint
from machinery.options import Options, option, parse
from utils import UserError, run

KEPT = ("network", "step", "recipe", "data", "counts")


@dataclass(frozen=True)
class Average(Options):
    """The options of this script."""

    models: tuple[str, ...] = option((), "SHARE=LOGDIR, two or more", positional=True)
    save_path: Path = option(Path(), "a folder without a checkpoint, for the average", required=True)

    def shares(self) -> dict[Path, float]:
        """Raises ValueError where a model is not SHARE=LOGDIR."""
        parts = [model.partition("=") for model in self.models]
        return {Path(logdir): float(share) for share, _, logdir in parts}

    def contradiction(self) -> str | None:
        try:
            shares = self.shares().values()
        except ValueError:
            return "a model is SHARE=LOGDIR, as 0.5=trained_model/Rain200H"
        if len(shares) < 2 or not abs(sum(shares) - 1) < 1e-6:
            return f"the shares of {len(shares)} models add up to {sum(shares):g}: give two or more, up to 1"
        return super().contradiction()


def main() -> None:
    options = parse(Average(), __doc__)
    target = options.save_path / LATEST
    if target.exists():
        raise UserError(f"{options.save_path} has a {LATEST} already: give another --save_path")
    paths = {find_checkpoint(logdir, "give a run's folder"): x for logdir, x in options.shares().items()}
    contents = {path: load_checkpoint(path) for path in paths}
    first = next(iter(contents.values()))
    shapes = {name: value.shape for name, value in first["net"].items()}
    for path, content in contents.items():
        if {name: value.shape for name, value in content["net"].items()} != shapes:
            raise UserError(f"{path} is another network than the first: their weights have no average")
    net = {
        name: sum(share * contents[path]["net"][name].float() for path, share in paths.items())
        for name in shapes
    }
    made_of = "; ".join(f"{x:g} of {path}, step {contents[path]['step']}" for path, x in paths.items())
    kept = {name: first[name] for name in KEPT if name in first}
    target.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(target, {**kept, "net": net, "began_with": f"the average: {made_of}"})
    print(f"written: {target}, {made_of}")


if __name__ == "__main__":
    run(main)
