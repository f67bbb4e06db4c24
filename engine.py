"""The training loop, once, for any stage, any network and every dataset.

A train script names its stage and its recipe, and calls `train`, which reads the command line and exits the
process. The method is in `stages.py`.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import utils
from config import Schedule, Training
from datasets.pairs import read_pair
from evaluation import mean_scores, validation_set
from inference import Derainer, build, for_training, hardware, network_of
from machinery import distributed
from machinery.arithmetic import many_sizes
from machinery.checkpoints import BEST, LATEST, fill, load_first, load_to_resume, restore, save_checkpoint
from machinery.distributed import World
from machinery.fast import FastGradient
from machinery.loading import Batches, ImageCache
from machinery.options import as_plain, parse
from machinery.runlog import RunFolder, RunLog
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


# ------------------------------------------------------------------------------------------------ one step


def training_step(
    stage: Stage,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[Batch],
    *,
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
    total = stage.total(terms)
    (total / parts).backward()
    return {name: value.detach() for name, value in {**terms, "total": total}.items()}


# ------------------------------------------------------------------------------------------------- one run


class Run:
    """One training run: its data, its network, its loop."""

    def __init__(self, stage: type[Stage], recipe: Training, world: World) -> None:
        self.recipe, self.world, self.stop_signal = recipe, world, 0
        self.stage = stage(recipe, parts=world.size * recipe.accumulate)
        self.say(f"on {world.device}: {hardware(world.device)}, {recipe.precision}")
        self.crops = self.stage.crops(ImageCache(recipe.cache))
        self.data = [line for crops in self.crops for line in crops.notes]
        self.counts = {what: count for crops in self.crops for what, count in crops.counts.items()}
        self.test, notes = validation_set(recipe, self.crops[0].root)
        for line in (*self.data, *notes):
            self.say(line)
        self.schedule = Schedule.of(recipe, len(self.crops[0]))
        self._build()
        self.batches = Batches(
            self.crops,
            world,
            range(self.step, self.schedule.steps),
            batch_size=recipe.batchSize,
            accumulate=recipe.accumulate,
            seed=recipe.seed,
            workers=recipe.workers,
        )

    def say(self, text: str) -> None:
        """Prints above the progress bar, once for all processes."""
        if self.world.is_main_process:
            tqdm.write(text)

    def _build(self) -> None:
        """Network, optimizer and stage, as a fresh run or the one that goes on has them."""
        recipe, device = self.recipe, self.world.device
        torch.manual_seed(recipe.seed)
        torch.backends.cudnn.benchmark = device.type == "cuda" and not recipe.deterministic
        self.network = network_of(recipe)
        self.net = for_training(build(self.network), recipe)
        self.step, self.validated, self.best, self.began_with = 0, 0, -float("inf"), ""
        self.latest = recipe.save_path / LATEST
        resumed: dict[str, Any] = {}
        if recipe.resume:
            resumed = load_to_resume(self.latest, recipe, self.stage.name, self.counts)
            fill(self.net.net, resumed["training"].get("net", resumed["net"]), self.latest)
            self.step, self.began_with = resumed["step"], resumed["began_with"]
            self.best, self.validated = resumed["training"]["best"], resumed["training"]["validated"]
            self.say(f"resuming at step {self.step}")
        elif logdir := self.stage.first_weights():
            self.began_with = load_first(self.net.net, logdir, recipe.dataset)
            self.say(f"starts from: {self.began_with}")
        self.net.to(device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), recipe.lr, fused=device.type == "cuda")
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.schedule.factor)
        self.stage.start(self.net)
        if resumed:
            state = resumed["training"]
            restore(self.optimizer, self.scheduler, self.stage, training=state, path=self.latest)
        self.model: nn.Module = self.net
        self.fast: FastGradient | None = None
        if recipe.fast:
            self.fast = FastGradient(
                lambda batch: backward(self.stage, self.net, batch, recipe.accumulate), self.net.parameters()
            )
        elif self.world.size > 1:
            cards = [device] if device.type == "cuda" else None
            self.model = DistributedDataParallel(self.net, device_ids=cards, gradient_as_bucket_view=True)

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
            for parts in self.batches:
                terms = training_step(self.stage, self.model, self.optimizer, parts, fast=self.fast)
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
            self.say(f"stopped at step {self.step}, saved; go on with:\n  {distributed.command_to_resume()}")
            distributed.stop()
            sys.exit(130)
        self.say(f"done: {self.latest}")

    def on_signal(self, number: int, frame: object) -> None:
        """Ctrl-C or SIGTERM: the step under way is finished and saved first; a second one does not wait."""
        if self.stop_signal and not distributed.launched():  # a launcher hands on what we got from the group
            raise KeyboardInterrupt  # asked twice: now
        self.stop_signal = number

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
        """Writes the complete checkpoint: see machinery/checkpoints.py for what is in it."""
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

    def _validation_is_due(self) -> bool:
        every = max(1, round(self.recipe.val_every * self.schedule.steps_an_epoch))
        due = self.step == self.schedule.steps or (self.recipe.val_every > 0 and self.step % every == 0)
        return due and self.step > self.validated

    def _validate(self) -> None:
        """TensorBoard's strips, and PSNR and SSIM of the test pairs, each scored by one process."""
        derainer = Derainer(self.stage.result(self.net), self.world.device)
        with many_sizes(compiled=self.recipe.compile):
            if self.world.is_main_process:  # the first test pair, and the first image of real rain
                for number, crops in enumerate(self.crops):
                    pair = self.test.pairs[0] if self.test and not number else crops.pairs[0]
                    self.log.strip(self.step, derainer.derained, *read_pair(pair))
            self.validated = self.step
            if self.test and self.recipe.val_every:
                self._score(derainer)
        self._save(LATEST)  # what resumes from it must know that this is done, and what there is to beat

    def _score(self, derainer: Derainer) -> None:
        assert self.test
        scores, line = mean_scores(derainer, self.test, self.recipe, self.world)
        self.say(f"step {self.step}: validation {line}")
        self.log.scalars(self.step, {f"validation/{key}": score for key, score in scores.items()})
        if scores["psnr"] > self.best:
            self.best = scores["psnr"]
            self._save(BEST)
