"""The training loop, once, for both stages and every dataset.

A train script names its recipe and calls `train`, which reads the command line and exits the process.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

import utils
from config import Student, Teacher, Training
from datasets.catalogue import is_simulated
from datasets.layouts import find_images, find_pairs
from datasets.pairs import Found, check_pairs, read_pair
from DerainDataset import PairCrops, RealCrops, loader
from inference import autocast, derain, place
from losses import StudentCriterion, TeacherCriterion
from machinery import distributed
from machinery.checkpoints import (
    BEST,
    LATEST,
    find_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from machinery.distributed import World
from machinery.options import Machine, parse
from machinery.runlog import FILE as LOG
from machinery.runlog import RunLog
from metrix_code.psnr import psnr
from metrix_code.scores import mean
from metrix_code.ssim import ssim
from networks import Derained, DerainNet
from utils import UserError, to_tensor, to_uint8

# -------------------------------------------------------------------------------------------- training


def train(recipe: Teacher | Student) -> None:
    """What a train script is: trains `recipe`, with the command line's changes, and exits the process."""

    def main() -> None:
        with distributed.first_alone():
            options = parse(recipe, sys.modules["__main__"].__doc__ or "")
        distributed.launch(options)
        with distributed.one_voice():
            training = Run(options, distributed.start(options))
            for each in (signal.SIGINT, signal.SIGTERM):
                signal.signal(each, training.on_signal)
            training.go()
        distributed.stop()

    utils.run(main)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a run over `pairs` pairs, in steps."""

    steps: int
    steps_an_epoch: float
    drops: tuple[int, ...]

    @classmethod
    def of(cls, recipe: Teacher | Student, pairs: int) -> Schedule:
        """By epochs, or `recipe.steps` long with the milestones moved in proportion."""
        by_epochs = max(1, recipe.epochs * pairs // recipe.batchSize)
        steps = recipe.steps or by_epochs
        drops = tuple(m * steps // recipe.epochs for m in sorted(recipe.milestone))
        return cls(steps, pairs / recipe.batchSize, drops)


class Run:
    """One training run of either stage: its data, its network, its loop, its files."""

    def __init__(self, recipe: Teacher | Student, world: World) -> None:
        self.recipe, self.world = recipe, world
        self.stop_signal = 0
        self._find_data()
        self.schedule = Schedule.of(recipe, len(self.pairs))
        self._build()
        self.loaders = self._loaders()  # before anything is written: an uneven batchSize is refused here

    def say(self, text: str) -> None:
        """Prints above the progress bar, once for all processes."""
        if self.world.is_first:
            tqdm.write(text)

    # ------------------------------------------------------------------------------------- what it is made of

    def _find_data(self) -> None:
        recipe = self.recipe
        found = find_pairs(recipe.data_path, "train", recipe.dataset, recipe.rainy_side)
        self.root = found.root
        self.data = [found.describe()]
        self.say(found.describe())
        for warning in check_pairs(found):
            self.say(f"warning: {warning}")
        backgrounds = find_images(recipe.backgrounds) if recipe.backgrounds else None
        self.pairs = PairCrops(
            found, recipe.patch_size, recipe.seed, recipe.augment, recipe.recombine, backgrounds, recipe.cache
        )
        self.say(self.pairs.note)
        self.real: RealCrops | None = None
        if isinstance(recipe, Student):
            real = find_images(recipe.real_path)
            self.data.append(real.describe())
            self.say(real.describe())
            self.real = RealCrops(
                real, recipe.patch_size, recipe.seed, recipe.augment, recipe.cache, self.pairs.read.size
            )
            self.say(f"real {self.real.note}")
        self.counts = {
            "pairs": len(self.pairs),
            "backgrounds": len(self.pairs.backgrounds),
            "real images": len(self.real) if self.real else 0,
        }
        self.test = self._test_pairs()

    def _test_pairs(self) -> Found | None:
        recipe = self.recipe
        try:
            found = find_pairs(recipe.data_path, "test", recipe.dataset, recipe.rainy_side)
        except UserError as error:
            self.say(f"no validation: {error}")
            return None
        if found.root == self.root:
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
            torch.backends.cudnn.benchmark = True
        self.net = DerainNet(recipe.channels, recipe.units, recipe.recompute)
        self.step, self.best, self.teacher = 0, -float("inf"), ""
        self.latest = recipe.save_path / LATEST
        resumed = self._resumed() if recipe.resume else None
        if not resumed and isinstance(recipe, Student):
            self._start_from_teacher(recipe)
        place(self.net, device)
        if recipe.compile:
            self.net.compile_units()
        self.optimizer = torch.optim.Adam(self.net.parameters(), recipe.lr, fused=device.type == "cuda")
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: recipe.lr_factor ** sum(step >= drop for drop in self.schedule.drops)
        )
        if resumed:
            self.optimizer.load_state_dict(resumed["optimizer"])
            self.scheduler.load_state_dict(resumed["scheduler"])
        if isinstance(recipe, Student):
            self.criterion: TeacherCriterion | StudentCriterion = StudentCriterion(
                weights_of(recipe, StudentCriterion.TERMS), recipe.patch_size, self.world.size
            )
        else:
            self.criterion = TeacherCriterion(weights_of(recipe, TeacherCriterion.TERMS))
        self.model: nn.Module = self.net
        if self.world.size > 1:
            cards = [device] if device.type == "cuda" else None
            self.model = DistributedDataParallel(self.net, device_ids=cards, gradient_as_bucket_view=True)

    def _start_from_teacher(self, recipe: Student) -> None:
        remedy = (
            f"a student starts from a teacher: python train_{recipe.dataset}.py makes one, or give --teacher"
        )
        path = find_checkpoint(recipe.teacher, remedy)
        content = load_checkpoint(path)
        load_weights(self.net, content["net"], path)
        self.teacher = f"{path}, step {content.get('step', 0)}"
        self.say(f"teacher: {self.teacher}")

    def _resumed(self) -> dict[str, Any]:
        content = load_checkpoint(find_checkpoint(self.latest, "start without --resume"))
        if "optimizer" not in content:
            raise UserError(
                f"{self.latest} holds the network alone: use it as --teacher, or train without --resume"
            )
        made_of, given = content["recipe"], as_plain(self.recipe)
        for name in ("dataset", "stage"):
            if made_of[name] != given[name]:
                raise UserError(
                    f"{self.latest} is a run of {made_of['stage']} on {made_of['dataset']}, and this script "
                    f"trains {given['stage']} on {given['dataset']}: give another --save_path"
                )
        if changed := changed_option(made_of, self.recipe):
            raise UserError(
                f"{self.latest} was begun with --{changed} {_shown(made_of.get(changed))}, not "
                f"{_shown(given[changed])}: give the same to resume it, or start anew without --resume"
            )
        for what, count in self.counts.items():
            if content["counts"][what] != count:
                raise UserError(
                    f"{self.latest} was begun on {content['counts'][what]} {what}, and here are {count}: "
                    "give the same data to resume it, or start anew without --resume"
                )
        load_weights(self.net, content["net"], self.latest)
        self.step, self.best, self.teacher = content["step"], content["best"], content["teacher"]
        self.say(f"resuming at step {self.step}")
        return content

    # -------------------------------------------------------------------------------------------- the loop

    def go(self) -> None:
        """Trains to the end of the schedule, or until a signal asks to stop; either way it saves."""
        recipe, world = self.recipe, self.world
        if world.is_first and not recipe.resume:
            set_earlier_run_aside(recipe.save_path, self.say)
        first, steps = world.is_first, self.schedule.steps
        with (
            RunLog(recipe.save_path, self.step, silent=not first) as self.log,
            tqdm(
                total=steps, initial=self.step, unit="step", disable=not first, smoothing=0.1, **utils.BAR
            ) as self.bar,
        ):
            self._start_watch()
            for batch in self._batches():
                terms = self._step(batch)
                self.step += 1
                self.bar.update()
                last = self.step == steps
                stopped = distributed.anywhere(bool(self.stop_signal), world)
                validating = last or self._is_validation_step()
                # before a validation too: it may take long, and be cut short
                saving = validating or stopped or self.step % recipe.save_every == 0
                if saving or self.step % recipe.log_every == 0:
                    self._tell(distributed.averaged(terms, world))
                if saving:
                    self._save(LATEST)
                if stopped and not last:
                    break
                if validating:
                    self._validate()
                    self._start_watch()
        if self.step < steps:
            self._leave()
        self.say(f"done: {self.latest}")

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

    def _loaders(self) -> list[DataLoader]:
        sets: list[PairCrops | RealCrops] = [self.pairs, self.real] if self.real else [self.pairs]
        return [
            loader(
                each,
                self.recipe.batchSize,
                self.recipe.seed,
                self.step,
                self.schedule.steps,
                self.recipe.workers,
                self.world.rank,
                self.world.size,
                pin_memory=self.world.device.type == "cuda",
            )
            for each in sets
        ]

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        for parts in zip(*self.loaders, strict=True):
            merged = {name: images for part in parts for name, images in part.items()}
            yield {name: images.to(self.world.device, non_blocking=True) for name, images in merged.items()}

    def _step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        rainy = batch["rainy"]
        if self.real:
            rainy = torch.cat([rainy, batch["real_rainy"]])
        with autocast(self.recipe, self.world.device):
            output = self.model(rainy.contiguous(memory_format=torch.channels_last))
        terms = self.criterion(output, batch["clean"])
        self.optimizer.zero_grad()
        terms["total"].backward()
        self.optimizer.step()
        self.scheduler.step()
        return terms

    def _save(self, name: str) -> None:
        if not self.world.is_first:
            return
        content = {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "step": self.step,
            "recipe": as_plain(self.recipe),
            "counts": self.counts,
            "data": self.data,
            "best": self.best,
            "teacher": self.teacher,
        }
        save_checkpoint(self.recipe.save_path / name, content)

    # ------------------------------------------------------------------------------------------ validation

    def _is_validation_step(self) -> bool:
        every = max(1, round(self.recipe.val_every * self.schedule.steps_an_epoch))
        return self.recipe.val_every > 0 and self.step % every == 0

    def _validate(self) -> None:
        """PSNR and SSIM of the test pairs, each scored by one process, and the fixed strips."""
        if self.world.is_first:
            self._draw()
        if not self.test or not self.recipe.val_every:
            return
        rank, size = self.world.rank, self.world.size
        mine = {}
        for i in range(rank, len(self.test.pairs), size):
            rainy, clean = read_pair(self.test.pairs[i])
            assert clean is not None
            derained = to_uint8(self._derain(to_tensor(rainy)).derained[0])
            mine[i] = (psnr(derained, clean), ssim(derained, clean))
        columns = zip(*distributed.gathered(mine, self.world), strict=True)
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
            self._save(LATEST)  # what resumes from it must know what there is to beat

    def _derain(self, rainy: Tensor) -> Derained:
        return derain(self.net, rainy, self.recipe, self.world.device)

    def _draw(self) -> None:
        shown = self.test.pairs[0] if self.test else self.pairs.pairs[0]
        rainy, clean = (to_tensor(_middle(image)) for image in read_pair(shown) if image is not None)
        output = self._derain(rainy)
        images = [rainy, output.derained[0], output.streaks[0], clean]
        self.log.strip(self.step, "rainy|derained|streaks|clean", images)
        if self.real:
            real_rainy = to_tensor(_middle(read_pair(self.real.images[0])[0]))
            images = [real_rainy, self._derain(real_rainy).derained[0]]
            self.log.strip(self.step, "real rainy|derained", images)

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


def weights_of(recipe: Teacher | Student, terms: Sequence[str]) -> dict[str, float]:
    """The losses' weights, which are the recipe's fields l1_weight and so on."""
    return {term: getattr(recipe, f"{term}_weight") for term in terms}


def changed_option(made_of: Mapping[str, Any], recipe: Training) -> str | None:
    """The first option that changes the result and differs from a checkpoint's recipe."""
    given = as_plain(recipe)
    names = (each.name for each in dataclasses.fields(recipe) if each.metadata.get("changes_result"))
    return next((name for name in names if made_of.get(name) != given[name]), None)


def set_earlier_run_aside(folder: Path, say: Callable[[str], None]) -> None:
    """Moves what an earlier run left in `folder` to its first free earlier-N: nothing written is lost."""
    files = [path for name in (LATEST, BEST, LOG, "events.out.tfevents.*") for path in folder.glob(name)]
    if not files:
        return
    aside = next(p for n in range(1, 10**6) if not (p := folder / f"earlier-{n}").exists())
    aside.mkdir()
    for path in files:
        path.rename(aside / path.name)
    say(f"the earlier run in {folder} is now in {aside}")


def as_plain(record: Machine) -> dict[str, Any]:
    """A recipe as numbers, texts and lists, which a checkpoint can hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(each) for each in value]
        return str(value) if isinstance(value, Path) else value

    return {key: plain(value) for key, value in vars(record).items()}


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _middle(image: np.ndarray, most: int = 256) -> np.ndarray:
    top, left = (max(0, (side - most) // 2) for side in image.shape[:2])
    return image[top : top + most, left : left + most]
