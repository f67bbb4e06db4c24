#!/usr/bin/env python3
"""Measures both backbones in one run, side by side: speed and memory of images and of training steps.

    python benchmarks/run.py                         ten minutes on two CPU cores
    python benchmarks/run.py --only 481x321 teacher

What is compared runs in turn, and each ratio is taken within a round: to DerainNet in float32, the paper's
network as this project writes it. 'plain' is the same network word for word as the paper draws it
(tests/plain.py). Peak memory is that of a process of its own which does one such call. Figures are medians
with the least and the greatest. bfloat16 is left out where the processor is no faster at it.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started as a script, from any folder

from backbones import AutocastModel
from benchmarks.measure import Spread, in_turn, peak_memory
from config import STUDENTS, TEACHERS
from engine import optimizer_of, training_step
from inference import Derainer, best_precision, hardware
from lightnet import LightNet
from machinery import distributed
from machinery.options import Machine, option, parse
from networks import DerainNet
from stages import SID, SSIDKD
from tests import plain
from utils import UserError, run, to_tensor

# what is measured: (height, width) of an image, or a stage and its crops a step
WORK: dict[str, tuple[Any, ...]] = {
    "481x321": (321, 481),
    "1920x1080": (1080, 1920),
    "3840x2160": (2160, 3840),
    "teacher": ("SID", 4, 128),
    "student": ("SSID-KD", 2, 128),
}
ONLY_LIGHT = {"1920x1080", "3840x2160"}  # minutes an image by DerainNet: its memory alone would say little
ROUNDS = {"481x321": 5, "1920x1080": 3, "3840x2160": 2, "teacher": 5, "student": 5}


@dataclass(frozen=True)
class Benchmark(Machine):
    """The options of this script."""

    only: tuple[str, ...] = option(tuple(WORK), "which of them", tuple(WORK))
    peak: tuple[str, ...] = option((), "work and network: one such call alone, its peak memory in bytes")


def network(how: str) -> torch.nn.Module:
    """'plain', or a backbone and its arithmetic, as 'LightNet float32'."""
    torch.manual_seed(0)
    if how == "plain":
        return plain.plain(DerainNet())
    name, precision = how.split()
    return AutocastModel({"DerainNet": DerainNet, "LightNet": LightNet}[name](), precision)


def call(work: str, how: str, device: torch.device) -> Callable[[], Any]:
    """The work as a function of no arguments, all it needs already in place."""
    net = network(how).to(device)
    if work[0].isdigit():
        image = cv2.resize(skimage.data.astronaut(), WORK[work][::-1], interpolation=cv2.INTER_AREA)
        rainy = to_tensor(np.ascontiguousarray(image))
        if how == "plain":
            return torch.inference_mode()(lambda: net(rainy[None].to(device)).derained)
        derainer = Derainer(net, device, tile=None)  # large images in tiles, as derain.py has them
        return lambda: derainer.derained(rainy)
    name, count, side = WORK[work]
    light = how.startswith("LightNet")
    recipe = (TEACHERS if name == "SID" else STUDENTS)["Rain200H"]
    recipe = replace(recipe.with_preset("light") if light else recipe, patch_size=side)
    stage = (SID if name == "SID" else SSIDKD)(recipe)
    stage.aux_networks = torch.nn.ModuleDict(stage.make_aux_networks(net))
    batch = {each: torch.rand(count, 3, side, side).to(device) for each in ("rainy", "clean", "real_rainy")}
    net = plain.PlainStudent(net) if how == "plain" and name == "SSID-KD" else net
    optimizer = optimizer_of(recipe, net)
    return lambda: training_step(stage, net, optimizer, [batch])


def peak_of(work: str, how: str, machine: Machine) -> float:
    """Peak memory of one call, from a process of its own, in GB."""
    words = ["--use_GPU", str(machine.use_GPU), "--peak", work, how]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{work}, {how} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.splitlines()[-1]) / 1e9


def main() -> None:
    options = parse(Benchmark(), __doc__)
    device = distributed.device(options)
    if options.peak:
        work, how = options.peak
        call(work, how, device)()
        print(peak_memory(device))
        return
    kinds = ["float32", *["bfloat16"] * (best_precision(device) == "bfloat16")]
    print(f"{hardware(device)}, torch {torch.__version__}, {date.today().isoformat()}\n")
    print("| work | network | seconds | times DerainNet's speed | peak memory, GB |\n" + "|---" * 5 + "|")
    for work in options.only:
        names = ["LightNet"] if work in ONLY_LIGHT else ["DerainNet", "LightNet"]
        hows = [*["plain"] * ("DerainNet" in names), *(f"{name} {kind}" for name in names for kind in kinds)]
        times = in_turn({how: call(work, how, device) for how in hows}, ROUNDS[work], device)
        base = times.get("DerainNet float32", ())
        for how in hows:
            ratios = [a / b for a, b in zip(base, times[how], strict=False)]
            ratio = Spread.of(ratios) if ratios else ""
            print(
                f"| {work} | {how} | {Spread.of(times[how])} | {ratio} | {peak_of(work, how, options):.2f} |"
            )


if __name__ == "__main__":
    run(main)
