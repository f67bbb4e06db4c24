"""The training loop, once, for any stage, any network and every dataset.

A train script names its stage and its recipe, and calls `train`, which reads the command line and exits the
process. The method is in `stages.py`.
"""

import contextlib
import io
import itertools
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import utils
from config import Schedule, Training, preset_words
from datasets.pairs import read_pair, sample
from machinery import distributed
from machinery.backbones import architecture_of, build, for_training
from machinery.checkpoints import (
    BEST,
    LATEST,
    find_checkpoint,
    load_checkpoint,
    load_weights,
    refuse_unless_resumable,
    save_checkpoint,
)
from machinery.evaluation import mean_scores, validation_set
from machinery.inference import CPU, Derainer, best_precision, hardware
from machinery.loading import Batches, ImageCache
from machinery.muon import Muon
from machinery.options import parse, resume_keys, to_dict
from machinery.runlog import RunLog, locked, set_earlier_run_aside
from stages import Stage
from utils import UserError

Batch = Mapping[str, Tensor]  # names to crops (N, 3, P, P), float32 in [0, 1]
PILOT = range(10, 40)  # steps that --minutes times; the first ones are slower
LONG = 10**6  # steps of the schedule during that pilot
PICTURES = 3  # of pairs, and of real photographs, in TensorBoard


def train(stage: type[Stage], recipe: Training) -> None:
    """Runs a train script: trains `recipe` with the command line's changes, and exits the process."""

    def main() -> None:
        options = parse(recipe)
        distributed.launch(options)
        world = distributed.start(options)
        lock = locked(options.save_path) if world.rank == 0 else contextlib.nullcontext()
        with lock:  # before --resume reads a checkpoint
            run = Run(stage, with_steps(stage, options, world), world)
            run.stop.listen()
            finished = run.run()
        del run  # DistributedDataParallel must not outlive the process group
        distributed.stop()
        if not finished:
            sys.exit(130)

    utils.run(main)


# ------------------------------------------------------------------------------------------------ one step


def training_step(
    stage: Stage, net: nn.Module, optimizer: torch.optim.Optimizer, micro_batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """One optimizer step, with gradient accumulation over `micro_batches`; returns the terms and `total`.

    `net` is an AutocastModel, or DistributedDataParallel of one. Gradients are averaged over micro-batches:
    one of 12 crops and three of 4 give the same. Raises UserError where terms and weights do not match.
    """
    optimizer.zero_grad()
    logged = []
    for number, batch in enumerate(micro_batches, 1):
        # all-reduce gradients on the last micro-batch only
        alone = isinstance(net, DistributedDataParallel) and number < len(micro_batches)
        with net.no_sync() if alone else contextlib.nullcontext():  # type: ignore[operator]
            terms = stage.terms(net, batch)
            total = stage.total(terms)
            (total / len(micro_batches)).backward()
        logged.append({name: value.detach() for name, value in {**terms, "total": total}.items()})
    if stage.recipe.clip:
        nn.utils.clip_grad_norm_(net.parameters(), stage.recipe.clip)
    optimizer.step()
    stage.after_step(net.module if isinstance(net, DistributedDataParallel) else net)
    return {name: torch.stack([terms[name] for terms in logged]).mean() for name in logged[0]}


def optimizer_of(recipe: Training, net: nn.Module) -> torch.optim.Adam:
    """Adam, or Muon beside it; weight decay is decoupled. `initial_lr` is a group's rate by the recipe."""
    settings: dict[str, Any] = {
        "betas": (0.9, recipe.beta2),
        "weight_decay": recipe.weight_decay,
        "decoupled_weight_decay": True,
        "fused": True,  # one pass over the weights: on a CPU a quarter of the time
    }
    optimizer: torch.optim.Adam
    if recipe.optimizer == "muon":
        optimizer = Muon(net, recipe.lr, recipe.muon_lr or recipe.lr, **settings)
    else:
        optimizer = torch.optim.Adam(net.parameters(), recipe.lr, **settings)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


# ------------------------------------------------------------------------------------------------- one run


def first_checkpoint(recipe: Training, stage: Stage) -> Path | None:
    """The checkpoint to resume or start from; None: random weights. Raises UserError where it is missing."""
    if recipe.resume:
        path = recipe.save_path / LATEST
        if not path.exists():  # the shipped model does not replace it
            raise UserError(f"{path} does not exist: start without --resume")
        return path
    if logdir := stage.first_weights():
        script = f"train_{recipe.dataset}.py{preset_words(recipe.preset)}"
        option = "--teacher" if hasattr(recipe, "teacher") else "--weights"
        return find_checkpoint(logdir, f"python {script} makes a teacher; or give another {option}")
    return None


def with_steps(stage: type[Stage], recipe: Training, world: distributed.World) -> Training:
    """`recipe` with --steps set from --minutes: a pilot run measures the pace.

    A resumed run keeps its steps, so it ends like one that was never stopped. Validations take extra time.
    """
    if not recipe.minutes:
        return recipe
    if recipe.resume and (path := first_checkpoint(recipe, stage(recipe))):
        return replace(recipe, steps=load_checkpoint(path)["steps"])
    with contextlib.redirect_stdout(io.StringIO()):  # the run itself prints the same lines
        pilot = Run(stage, replace(recipe, minutes=0.0, steps=LONG), world)
    seconds = 0.0  # per step, averaged over the phases
    for phase in pilot.phases:
        for number, micro_batches in zip(range(PILOT.stop), phase, strict=False):
            if number == PILOT.start:
                began = time.perf_counter()
            terms = training_step(pilot.stage, pilot.model, pilot.optimizer, micro_batches)
            distributed.all_reduce_mean(terms, world)  # waits for the card
        share = len(phase.steps) / LONG
        seconds += share * (time.perf_counter() - began) / len(PILOT)
    seconds = distributed.all_reduce_mean({"": torch.tensor(seconds)}, world)[""]
    steps = max(1, int(60 * recipe.minutes / seconds))
    pilot.log_line(f"--minutes {recipe.minutes:g}: {steps:,} steps of {seconds:.3f} s")
    return replace(recipe, steps=steps)


class Run:
    """One training run: its data, its network, its loop, its checkpoints.

    `step`: steps done. `best`: the best PSNR so far, in dB. `log`: the main process's.
    """

    step, best, initialized_from = 0, -math.inf, ""
    log: RunLog | None = None

    def __init__(self, stage: type[Stage], recipe: Training, world: distributed.World) -> None:
        self.recipe, self.world, self.stop = recipe, world, distributed.Stop()
        self.stage = stage(recipe, micro_batches=world.size * recipe.accumulate)
        self.log_line(f"on {world.device}: {hardware(world.device)}, {recipe.precision}")
        if (world.device, recipe.precision, best_precision(CPU)) == (CPU, "float32", "bfloat16"):
            self.log_line("note: this processor trains faster with --precision bfloat16")
        path = first_checkpoint(recipe, self.stage)  # before the data, which takes longer
        self.crops = self.stage.crops(ImageCache(recipe.cache))
        self.data = [line for each in self.crops for line in each.summary]
        self.counts = {what: count for each in self.crops for what, count in each.counts.items()}
        self.test, notes = validation_set(recipe, self.crops[0])
        for line in (*(note for crops in self.crops for note in crops.messages), *notes):
            self.log_line(line)
        self.schedule = Schedule(recipe, len(self.crops[0]))
        self._build(path)
        self.phases = self._phases()
        self.batches = itertools.chain.from_iterable(self.phases)

    def log_line(self, text: str) -> None:
        """Prints above the progress bar, once for all processes."""
        if self.world.rank == 0:
            with contextlib.suppress(OSError):  # after a hang-up there is no terminal
                tqdm.write(text)

    def _build(self, path: Path | None) -> None:
        """Network, optimizer and auxiliary networks: new, from the weights at `path`, or resumed from it.

        Raises UserError where `path` belongs to another run or another network.
        """
        recipe, device = self.recipe, self.world.device
        torch.manual_seed(recipe.seed)
        torch.backends.cudnn.benchmark = device.type == "cuda" and not recipe.deterministic
        self.network = architecture_of(recipe)
        content = load_checkpoint(path) if path else {}
        self.net = for_training(build(self.network), recipe).to(device)
        self.optimizer = optimizer_of(recipe, self.net)
        saved = {}
        if path and recipe.resume:
            given = {**to_dict(recipe), "stage": self.stage.name}
            refuse_unless_resumable(content, path, given, resume_keys(recipe), self.counts)
            saved = content["training"]
        if path:
            load_weights(self.net.net, saved.get("net", content["net"]), path)
            self.initialized_from = f"{path}, step {content['step']}"
        self.stage.aux_networks = nn.ModuleDict(self.stage.make_aux_networks(self.net)).requires_grad_(False)
        self.stage.aux_networks.to(device)
        if saved:
            self.optimizer.load_state_dict(saved["optimizer"])
            self.stage.aux_networks.load_state_dict(saved["aux_networks"])
            self.step, self.best = content["step"], saved["best"]
            self.initialized_from = content["initialized_from"]
            self.log_line(f"resuming at step {self.step}")
            if recipe.cosine and 0 < content["steps"] < self.schedule.steps:  # 0: not recorded
                self.log_line(
                    f"note: now {self.schedule.steps:,} steps, not {content['steps']:,}: the learning rate "
                    "rises again, since its cosine schedule follows the new length"
                )
        elif path:
            self.log_line(f"starts from: {self.initialized_from}")
        self.model: nn.Module = self.net
        if self.world.size > 1:
            cards = [device] if device.type == "cuda" else None
            self.model = DistributedDataParallel(self.net, device_ids=cards, gradient_as_bucket_view=True)

    def _phases(self) -> list[Batches]:
        """The batches of the steps that are left: of the recipe's crops, then of larger ones."""
        recipe, late = self.recipe, self.schedule.late
        larger = [each.larger(recipe.late_patch_size) for each in self.crops]
        rest = range(max(self.step, late), self.schedule.steps)
        offset = late * (recipe.batchSize - recipe.late_batchSize)  # goes on where the smaller crops end
        phases = (
            (self.crops, range(self.step, late), recipe.batchSize, 0),
            (larger, rest, recipe.late_batchSize, offset),
        )
        how = {"accumulate": recipe.accumulate, "seed": recipe.seed, "workers": recipe.workers}
        return [
            Batches(crops, self.world, steps, batch_size=batch_size, offset=offset, **how)
            for crops, steps, batch_size, offset in phases
            if steps
        ]

    def run(self) -> bool:
        """Trains to the end of the schedule or until a signal asks to stop; returns whether it finished."""
        recipe, schedule, main = self.recipe, self.schedule, self.world.rank == 0
        if main and not recipe.resume and (line := set_earlier_run_aside(recipe.save_path)):
            self.log_line(line)
        how = {"total": schedule.steps, "initial": self.step, "disable": not main, **utils.BAR}
        log = contextlib.closing(RunLog(recipe.save_path, self.step)) if main else contextlib.nullcontext()
        with log as self.log, tqdm(unit="step", smoothing=0.1, **how) as bar:
            if self.log:
                used = to_dict(replace(recipe, steps=schedule.steps))
                self.log.recipe(self.step, distributed.command(), used, self.data)
            for micro_batches in self.batches:
                factor = schedule.factor(self.step)  # a function of the step: nothing to restore
                for group in self.optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * factor
                terms = training_step(self.stage, self.model, self.optimizer, micro_batches)
                self.step += 1
                bar.update()
                stopped = distributed.any_rank(self.stop.asked, self.world)
                validating = schedule.validates(self.step)
                saving = validating or stopped or self.step % recipe.save_every == 0
                if saving or self.step % recipe.log_every == 0:
                    shared = distributed.all_reduce_mean(terms, self.world)
                    if not math.isfinite(shared["total"]):
                        raise UserError(
                            f"the loss is {shared['total']} at step {self.step}: {recipe.save_path / LATEST} "
                            "keeps an earlier step, if one was saved; try a lower --lr"
                        )
                    if self.log:
                        groups = zip(("lr", "muon_lr"), self.optimizer.param_groups, strict=False)
                        rates = {f"optimizer/{name}": group["lr"] for name, group in groups}
                        self.log.terms(self.step, shared, rates, schedule.batch_size(self.step))
                    bar.set_postfix(loss=f"{shared['total']:.4f}", refresh=False)
                # before net_latest: a run resumed from it never revisits this step
                if recipe.keep_every and self.step % recipe.keep_every == 0:
                    self._save(f"net_{self.step}")
                if validating:
                    if stopped:  # a launcher may not wait for the validation
                        self._save(LATEST)
                    self._validate()
                if saving:
                    self._save(LATEST)
                if stopped:
                    break
        if finished := self.step >= schedule.steps:
            self.log_line(f"done: {recipe.save_path / LATEST}")
        else:
            self.log_line(f"stopped at step {self.step} and saved; to continue, add --resume to the command")
        return finished

    def _save(self, name: str) -> None:
        """Writes the complete checkpoint. Raises UserError where a weight is NaN or Inf."""
        if self.world.rank:
            return
        result: Any = self.stage.result(self.net)
        training: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "aux_networks": self.stage.aux_networks.state_dict(),
            "best": self.best,
        }
        if result is not self.net:
            training["net"] = self.net.net.state_dict()
        content = {
            "net": result.net.state_dict(),
            "network": self.network,
            "step": self.step,
            "steps": self.schedule.steps,
            "recipe": {**to_dict(self.recipe), "stage": self.stage.name},
            "data": self.data,
            "counts": self.counts,
            "initialized_from": self.initialized_from,
            "training": training,
        }
        save_checkpoint(self.recipe.save_path / name, content)

    def _validate(self) -> None:
        """TensorBoard's images, PSNR and SSIM of the validation pairs, and net_best at the best PSNR."""
        derainer = Derainer(self.stage.result(self.net), self.world.device)
        with distributed.many_sizes(compiled=self.recipe.compile):
            if self.log:
                self._show(self.log, derainer)
            if self.test and self.recipe.val_every:
                scores, line = mean_scores(derainer, self.test, self.recipe, self.world)
                self.log_line(f"step {self.step}: validation {line}")
                if self.log:
                    self.log.scalars(self.step, {f"validation/{key}": scores[key] for key in scores})
                if scores["psnr"] > self.best:
                    self.best = scores["psnr"]
                    self._save(BEST)
        if self.log:
            self.log.watch(self.step)

    def _show(self, log: RunLog, derainer: Derainer) -> None:
        """Writes images of some validation pairs, or training pairs, and of some real photographs."""
        first, *others = self.crops
        shown = [("pairs", self.test.pairs if self.test else first.pairs)]
        shown += [("photographs", each.pairs) for each in others]
        for group, pairs in shown:
            for index in sample(len(pairs), PICTURES):
                name = f"{group}/{pairs[index].name}"
                log.strip(self.step, name, derainer.derained, *read_pair(pairs[index]))
