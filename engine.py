"""The training loop, once, for any stage, any network and every dataset.

A train script names its stage and its recipe, and calls `train`, which reads the command line and exits the
process. The method is in `stages.py`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial

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
from machinery.checkpoints import BEST, LATEST, TrainState
from machinery.distributed import World
from machinery.fast import FastGradient
from machinery.loading import Batches, ImageCache
from machinery.options import parse
from machinery.runlog import RunFolder, RunLog
from stages import Stage

Batch = Mapping[str, Tensor]  # names to crops (N, 3, P, P), float32 in [0, 1]


def train(stage: type[Stage], recipe: Training) -> None:
    """What a train script is: trains `recipe`, with the command line's changes, and exits the process."""

    def main() -> None:
        with distributed.first_alone():
            options = parse(recipe, sys.modules["__main__"].__doc__ or "")
        distributed.launch(options)
        with distributed.one_voice():
            run = Run(stage, options, distributed.start(options))
            run.stop.listen()
            finished = run.go()
        del run  # its DistributedDataParallel must be gone before the group is left
        distributed.stop()
        if not finished:
            sys.exit(130)

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
        self.recipe, self.world, self.stop = recipe, world, distributed.Stop()
        self.stage = stage(recipe, parts=world.size * recipe.accumulate)
        self.say(f"on {world.device}: {hardware(world.device)}, {recipe.precision}")
        self.crops = self.stage.crops(ImageCache(recipe.cache))
        self.test, notes = validation_set(recipe, self.crops[0].root)
        for line in (*(note for crops in self.crops for note in crops.notes), *notes):
            self.say(line)
        self.schedule = Schedule.of(recipe, len(self.crops[0]))
        self.state = self._build()
        self.batches = Batches(
            self.crops,
            world,
            range(self.state.step, self.schedule.steps),
            batch_size=recipe.batchSize,
            accumulate=recipe.accumulate,
            seed=recipe.seed,
            workers=recipe.workers,
        )

    def say(self, text: str) -> None:
        """Prints above the progress bar, once for all processes."""
        if self.world.is_main_process:
            tqdm.write(text)

    def _build(self) -> TrainState:
        """Network, optimizer and stage, as a fresh run or the one that goes on has them."""
        recipe, device = self.recipe, self.world.device
        torch.manual_seed(recipe.seed)
        torch.backends.cudnn.benchmark = device.type == "cuda" and not recipe.deterministic
        network = network_of(recipe)
        net = for_training(build(network), recipe).to(device)
        optimizer = torch.optim.Adam(net.parameters(), recipe.lr, fused=device.type == "cuda")
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule.factor)
        state = TrainState(
            recipe=recipe,
            stage=self.stage,
            crops=self.crops,
            network=network,
            net=net,
            optimizer=optimizer,
            scheduler=scheduler,
        )
        for line in state.begin():
            self.say(line)
        self.model: nn.Module = net
        self.fast: FastGradient | None = None
        if recipe.fast:
            work = partial(backward, self.stage, net, parts=recipe.accumulate)
            self.fast = FastGradient(work, net.parameters())
        elif self.world.size > 1:
            cards = [device] if device.type == "cuda" else None
            self.model = DistributedDataParallel(net, device_ids=cards, gradient_as_bucket_view=True)
        return state

    def go(self) -> bool:
        """Trains to the end of the schedule, or until a signal asks to stop; either way it saves.

        Returns whether it has come to the end.
        """
        recipe, state, schedule, main = self.recipe, self.state, self.schedule, self.world.is_main_process
        folder = RunFolder(recipe.save_path).held(anew=not recipe.resume, say=self.say)
        how = {"total": schedule.steps, "initial": state.step, "disable": not main, **utils.BAR}
        with (
            folder if main else contextlib.nullcontext(),
            RunLog(recipe.save_path, state.step, state.validated, silent=not main) as self.log,
            tqdm(unit="step", smoothing=0.1, **how) as bar,
        ):
            if schedule.validates(state.step) and state.step > state.validated:  # a kill cut it short
                self._validate()
            for parts in self.batches:
                terms = training_step(self.stage, self.model, state.optimizer, parts, fast=self.fast)
                state.scheduler.step()
                state.step += 1
                bar.update()
                stopped = distributed.anywhere(self.stop.asked, self.world)
                validating = schedule.validates(state.step)
                # before a validation too: it may take long, and be cut short
                saving = validating or stopped or state.step % recipe.save_every == 0
                if saving or state.step % recipe.log_every == 0:
                    shared = distributed.all_reduce_mean(terms, self.world)
                    rate = float(state.scheduler.get_last_lr()[0])
                    self.log.terms(state.step, shared, lr=rate, batch_size=recipe.batchSize)
                    bar.set_postfix(loss=f"{shared['total']:.4f}", refresh=False)
                if saving:
                    self._save(LATEST)
                if recipe.keep_every and state.step % recipe.keep_every == 0:
                    self._save(f"net_{state.step}")
                if stopped and state.step < schedule.steps:
                    break
                if validating:
                    self._validate()
        if finished := state.step >= schedule.steps:
            self.say(f"done: {recipe.save_path / LATEST}")
        else:
            self.say(f"stopped at step {state.step}, saved; go on with:\n  {distributed.command_to_resume()}")
        return finished

    def _save(self, name: str) -> None:
        if self.world.is_main_process:
            self.state.save(self.recipe.save_path / name)

    def _validate(self) -> None:
        """TensorBoard's strips, and PSNR and SSIM of the test pairs, each scored by one process."""
        state = self.state
        derainer = Derainer(self.stage.result(state.net), self.world.device)
        with many_sizes(compiled=self.recipe.compile):
            if self.world.is_main_process:  # the first test pair, and the first image of real rain
                for number, crops in enumerate(self.crops):
                    pair = self.test.pairs[0] if self.test and not number else crops.pairs[0]
                    self.log.strip(state.step, derainer.derained, *read_pair(pair))
            state.validated = state.step
            if self.test and self.recipe.val_every:
                scores, line = mean_scores(derainer, self.test, self.recipe, self.world)
                self.say(f"step {state.step}: validation {line}")
                self.log.scalars(state.step, {f"validation/{key}": score for key, score in scores.items()})
                if scores["psnr"] > state.best:
                    state.best = scores["psnr"]
                    self._save(BEST)
        self._save(LATEST)  # what resumes from it must know that this is done, and what there is to beat
        self.log.watch(state.step)
