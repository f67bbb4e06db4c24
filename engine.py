"""The training loop, once, for any stage, any network and every dataset.

A train script names its stage and its recipe, and calls `train`, which reads the command line and exits the
process. The method is in `stages.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import utils
from config import Training
from datasets.catalogue import is_simulated
from datasets.layouts import find_pairs
from datasets.pairs import Found, check_pairs, read_pair
from DerainDataset import Crops
from evaluation import score_pairs
from inference import Derainer, Prepared, build, hardware, network_of
from machinery import distributed
from machinery.checkpoints import (
    BEST,
    LATEST,
    fill,
    find_checkpoint,
    load_checkpoint,
    load_to_resume,
    restore,
    save_checkpoint,
)
from machinery.distributed import World
from machinery.fast import FastGradient
from machinery.loading import BatchStream, ImageCache, loader
from machinery.options import as_plain, parse
from machinery.runlog import RunFolder, RunLog
from metrix_code.scores import mean
from stages import Stage
from utils import UserError

Batch = Mapping[str, Tensor]  # names to crops (N, 3, P, P), float32 in [0, 1]


def train(stage: type[Stage], recipe: Training) -> None:
    """What a train script is: trains `recipe`, with the command line's changes, and exits the process."""

    def main() -> None:
        with distributed.first_alone():
            options = parse(recipe, sys.modules["__main__"].__doc__ or "")
        distributed.launch(options)
        with distributed.one_voice():
            run = Run(stage, options, distributed.start(options))
            for each in (signal.SIGINT, signal.SIGTERM):
                signal.signal(each, run.on_signal)
            run.go()
        distributed.stop()

    utils.run(main)


def training_step(
    stage: Stage,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Batch],
    fast: FastGradient | None = None,
) -> dict[str, Tensor]:
    """Moves the weights once, by a batch that comes in one part or several, and returns terms and `total`.

    `net` is what `Prepared` made of a network, or DistributedDataParallel of that. The gradient is the mean
    over the parts, so that one of twelve crops and three of four give the same. Raises UserError where the
    stage's terms and the recipe's weights do not have the same names.
    """
    if fast:
        logged = fast(parts)
    else:
        optimizer.zero_grad()
        logged = []
        for number, batch in enumerate(parts, 1):
            # gradients travel between processes once a step, with the last part
            alone = isinstance(net, DistributedDataParallel) and number < len(parts)
            with net.no_sync() if alone else contextlib.nullcontext():  # type: ignore[operator]
                logged.append(backward(stage, net, batch, len(parts)))
    optimizer.step()
    stage.after_step(net.module if isinstance(net, DistributedDataParallel) else net)
    return {name: torch.stack([terms[name] for terms in logged]).mean() for name in logged[0]}


def backward(stage: Stage, net: nn.Module, batch: Batch, parts: int) -> dict[str, Tensor]:
    """Adds the gradient of a batch that is one of so many parts; its terms and `total`."""
    terms = stage.terms(net, batch)
    total = weighted_sum(stage, terms)
    (total / parts).backward()
    return {name: value.detach() for name, value in {**terms, "total": total}.items()}


def weighted_sum(stage: Stage, terms: Mapping[str, Tensor]) -> Tensor:
    if terms.keys() != stage.weights.keys():
        alone = sorted(terms.keys() ^ stage.weights.keys())
        raise UserError(
            f"{stage.name}: a term without a weight, or a weight without a term: {', '.join(alone)}; "
            "each term of the stage needs a field <term>_weight in its recipe"
        )
    # a term weighted 0 is logged, and not followed back
    return torch.stack([weight * terms[name] for name, weight in stage.weights.items() if weight]).sum()


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a run over `pairs` pairs, in steps."""

    steps: int
    steps_an_epoch: float
    drops: tuple[int, ...]

    @classmethod
    def of(cls, recipe: Training, pairs: int) -> Schedule:
        """By epochs, or `recipe.steps` long with the milestones moved in proportion."""
        by_epochs = max(1, recipe.epochs * pairs // recipe.batchSize)
        steps = recipe.steps or by_epochs
        drops = tuple(m * steps // recipe.epochs for m in sorted(recipe.milestone))
        return cls(steps, pairs / recipe.batchSize, drops)


class Run:
    """One training run: its data, its network, its loop."""

    def __init__(self, stage: type[Stage], recipe: Training, world: World) -> None:
        self.recipe, self.world = recipe, world
        self.stop_signal = 0
        self.stage = stage(recipe, parts=world.size * recipe.accumulate)
        self.say(f"on {hardware(world.device)}, {recipe.precision}")
        cache = ImageCache(recipe.cache)
        self.crops = self.stage.crops(cache)
        self.data = [line for crops in self.crops for line in crops.notes]
        for line in self.data:
            self.say(line)
        self.counts = {what: count for crops in self.crops for what, count in crops.counts.items()}
        self.schedule = Schedule.of(recipe, len(self.crops[0]))
        self.test = self._test_pairs()
        self._build()
        self.streams = [self._stream(crops) for crops in self.crops]  # an uneven batchSize is refused here

    def say(self, text: str) -> None:
        """Prints above the progress bar, once for all processes."""
        if self.world.is_main_process:
            tqdm.write(text)

    def _stream(self, crops: Crops) -> BatchStream:
        each = self.recipe.accumulate
        return BatchStream(
            len(crops),
            self.recipe.batchSize,
            seed=self.recipe.seed,
            tag=crops.tag,
            steps=range(self.step, self.schedule.steps),
            parts=self.stage.parts,
            mine=range(self.world.rank * each, (self.world.rank + 1) * each),
        )

    def _test_pairs(self) -> Found | None:
        recipe = self.recipe
        try:
            found = find_pairs(recipe.data_path, "test", recipe.dataset, recipe.rainy_side)
        except UserError as error:
            self.say(f"no validation: {error}")
            return None
        if found.root == self.crops[0].root:
            self.say(f"no validation: {found.root} is not divided into training and test pairs")
            return None
        if not recipe.val_every:
            return found  # one of them is shown in TensorBoard, and none is scored
        self.say(f"validation: {found.describe()}")
        for warning in check_pairs(found):
            self.say(f"warning: {warning}")
        if 0 < recipe.val_images < len(found.pairs):
            chosen = np.linspace(0, len(found.pairs) - 1, recipe.val_images).round().astype(int)
            found = dataclasses.replace(found, pairs=[found.pairs[i] for i in chosen])
        return found

    def _build(self) -> None:
        recipe, device = self.recipe, self.world.device
        torch.manual_seed(recipe.seed)
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = not recipe.deterministic
        self.network = network_of(recipe)
        self.net = Prepared(build(self.network), recipe.precision)
        self.step, self.validated, self.best, self.began_with = 0, 0, -float("inf"), ""
        self.latest = recipe.save_path / LATEST
        resumed = self._resumed() if recipe.resume else None
        if not resumed:
            self._first_weights()
        self.net.to(device)
        for wanted in ("recompute", "compile"):
            if getattr(recipe, wanted):
                if not hasattr(self.net.net, f"{wanted}_units"):
                    raise UserError(f"--{wanted}: the backbone {recipe.backbone} does not offer it")
                getattr(self.net.net, f"{wanted}_units")()
        self.optimizer = torch.optim.Adam(self.net.parameters(), recipe.lr, fused=device.type == "cuda")
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: recipe.lr_factor ** sum(step >= drop for drop in self.schedule.drops)
        )
        self.stage.start(self.net)
        if resumed:
            restore(self.optimizer, self.scheduler, self.stage, resumed["training"], self.latest)
        self.model: nn.Module = self.net
        self.fast: FastGradient | None = None
        if recipe.fast:
            self.fast = FastGradient(
                lambda batch: backward(self.stage, self.net, batch, recipe.accumulate), self.net.parameters()
            )
        elif self.world.size > 1:
            cards = [device] if device.type == "cuda" else None
            self.model = DistributedDataParallel(self.net, device_ids=cards, gradient_as_bucket_view=True)

    def _first_weights(self) -> None:
        logdir = self.stage.first_weights()
        if logdir is None:
            return
        remedy = f"python train_{self.recipe.dataset}.py makes a teacher, or give --teacher"
        path = find_checkpoint(logdir, remedy if self.stage.name == "SSID-KD" else "see --weights")
        content = load_checkpoint(path)
        fill(self.net.net, content["net"], path)
        self.began_with = f"{path}, step {content['step']}"
        self.say(f"starts from: {self.began_with}")

    def _resumed(self) -> dict[str, Any]:
        path = find_checkpoint(self.latest, "start without --resume")
        content = load_to_resume(path, self.recipe, self.stage.name, self.counts)
        fill(self.net.net, content["training"].get("net", content["net"]), path)
        self.step, self.began_with = content["step"], content["began_with"]
        self.best, self.validated = content["training"]["best"], content["training"]["validated"]
        self.say(f"resuming at step {self.step}")
        return content

    # -------------------------------------------------------------------------------------------- the loop

    def go(self) -> None:
        """Trains to the end of the schedule, or until a signal asks to stop; either way it saves."""
        recipe, main, steps = self.recipe, self.world.is_main_process, self.schedule.steps
        folder = RunFolder(recipe.save_path).held(anew=not recipe.resume, say=self.say)
        how = {"total": steps, "initial": self.step, "disable": not main, **utils.BAR}
        with (
            folder if main else contextlib.nullcontext(),
            RunLog(recipe.save_path, self.step, self.validated, silent=not main) as self.log,
            tqdm(unit="step", smoothing=0.1, **how) as self.bar,
        ):
            if self._validation_is_due():  # a kill cut it short
                self._validate()
            self._start_watch()
            for parts in self._batches():
                terms = training_step(self.stage, self.model, self.optimizer, parts, self.fast)
                self.scheduler.step()
                self.step += 1
                self.bar.update()
                stopped = distributed.anywhere(bool(self.stop_signal), self.world)
                validating = self._validation_is_due()
                # before a validation too: it may take long, and be cut short
                saving = validating or stopped or self.step % recipe.save_every == 0 or self.step == steps
                if saving or self.step % recipe.log_every == 0:
                    self._tell(distributed.all_reduce_mean(terms, self.world))
                if saving:
                    self._save(LATEST)
                if recipe.keep_every and self.step % recipe.keep_every == 0:
                    self._save(f"net_{self.step}")
                if stopped and self.step < steps:
                    break
                if validating:
                    self._validate()
                    self._start_watch()
        if self.step < steps:
            self._leave()
        self.say(f"done: {self.latest}")

    def _batches(self) -> Iterator[list[dict[str, Tensor]]]:
        """What a step works on, `accumulate` parts of it, each with every source's crops by name."""
        device, each = self.world.device, self.recipe.accumulate
        loaders = [
            loader(crops, stream, workers=self.recipe.workers, pin_memory=device.type == "cuda")
            for crops, stream in zip(self.crops, self.streams, strict=True)
        ]
        parts: list[dict[str, Tensor]] = []
        for sources in zip(*loaders, strict=True):
            merged = {name: images for source in sources for name, images in source.items()}
            parts.append({name: images.to(device, non_blocking=True) for name, images in merged.items()})
            if len(parts) == each:
                yield parts
                parts = []

    def _start_watch(self) -> None:
        self.watched_since, self.watched_from = time.perf_counter(), self.step

    def _tell(self, terms: dict[str, float]) -> None:
        """Logs the step's terms. Raises UserError where the loss is no number: such weights are not kept."""
        if not np.isfinite(terms["total"]):
            raise UserError(
                f"the loss is {terms['total']} at step {self.step}: {self.latest} keeps an earlier step, "
                "if one was saved; try a lower --lr"
            )
        images = (self.step - self.watched_from) * self.recipe.batchSize
        pace = images / (time.perf_counter() - self.watched_since)
        self._start_watch()
        self.bar.set_postfix(loss=f"{terms['total']:.4f}", refresh=False)
        rate = float(self.scheduler.get_last_lr()[0])
        self.log.scalars(self.step, {**terms, "lr": rate, "images_per_second": pace})

    def _save(self, name: str) -> None:
        if not self.world.is_main_process:
            return
        result: Any = self.stage.result(self.net)
        training: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "stage": self.stage.state_dict(),
            "best": self.best,
            "validated": self.validated,
        }
        if result is not self.net:
            training["net"] = self.net.net.state_dict()
        content = {
            "net": result.net.state_dict(),
            "network": self.network,
            "step": self.step,
            "recipe": {**as_plain(self.recipe), "stage": self.stage.name},
            "data": self.data,
            "counts": self.counts,
            "began_with": self.began_with,
            "training": training,
        }
        save_checkpoint(self.recipe.save_path / name, content)

    # ------------------------------------------------------------------------------------------ validation

    def _validation_is_due(self) -> bool:
        every = max(1, round(self.recipe.val_every * self.schedule.steps_an_epoch))
        due = self.step == self.schedule.steps or (self.recipe.val_every > 0 and self.step % every == 0)
        return due and self.step > self.validated

    def _validate(self) -> None:
        """PSNR and SSIM of the test pairs, each scored by one process, and the fixed strips."""
        derainer = Derainer(self.stage.result(self.net), self.world.device)
        # images of many sizes: nothing is compiled for each, and no algorithm sought
        eager = torch.compiler.set_stance("force_eager") if self.recipe.compile else contextlib.nullcontext()
        sought, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
        with eager:
            self._validated_by(derainer)
        torch.backends.cudnn.benchmark = sought

    def _validated_by(self, derainer: Derainer) -> None:
        if self.world.is_main_process:
            self._draw(derainer)
        self.validated = self.step
        if self.test and self.recipe.val_every:
            self._score(derainer, self.test)
        self._save(LATEST)  # what resumes from it must know that this is done, and what there is to beat

    def _score(self, derainer: Derainer, test: Found) -> None:
        mine = range(self.world.rank, len(test.pairs), self.world.size)
        scored = score_pairs(derainer, [test.pairs[i] for i in mine], ("psnr", "ssim"))
        scores = {i: (each.scores["psnr"], each.scores["ssim"]) for i, each in zip(mine, scored, strict=True)}
        columns = zip(*distributed.gathered(scores, self.world), strict=True)
        (mean_psnr, infinite), (mean_ssim, _) = map(mean, columns)
        assert mean_psnr is not None and mean_ssim is not None
        of = ", simulated rain" if is_simulated(self.recipe.data_path) else ""
        besides = f"; {infinite} images without any error are left out" if infinite else ""
        self.say(
            f"step {self.step}: validation PSNR {mean_psnr:.3f} dB, SSIM {mean_ssim:.4f} (RGB{of}{besides})"
        )
        self.log.scalars(self.step, {"validation/psnr": mean_psnr, "validation/ssim": mean_ssim})
        if mean_psnr > self.best:
            self.best = mean_psnr
            self._save(BEST)

    def _draw(self, derainer: Derainer) -> None:
        """What TensorBoard shows beside the curves: the first test pair, and the first image of real rain."""
        for number, crops in enumerate(self.crops):
            pair = self.test.pairs[0] if self.test and not number else crops.pairs[0]
            self.log.strip(self.step, derainer.derained, *read_pair(pair))

    # --------------------------------------------------------------------------------------------- leaving

    def on_signal(self, number: int, frame: object) -> None:
        """Ctrl-C or SIGTERM: the step under way is finished and saved first; a second one does not wait."""
        if self.stop_signal and not distributed.launched():  # a launcher hands on what we got from the group
            raise KeyboardInterrupt  # asked twice: now
        self.stop_signal = number

    def _leave(self) -> None:
        go_on = distributed.command_to_resume()
        self.say(f"stopped at step {self.step}, saved; go on with:\n  {go_on}")
        distributed.stop()
        sys.exit(130)
