"""The recipes: one frozen record per dataset and stage, each number beside its source.

A record's fields are the options of its script (machinery/options.py), in the groups that `--help` shows.
Fields that end in _weight are the weights of the stage's loss terms (stages.py). Sources: [readme] the
authors' README, [script] their released scripts, [paper] the paper, [ours] chosen here, for the reason in
REPRODUCTION.md.

The defaults are the paper's recipe. `--preset light` selects LightNet's; so does the recipe for photographs,
which is not in the paper.
"""

import math
from collections.abc import Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from machinery.options import Machine, machine, option
from utils import UserError

# A resumed run must keep the options that change its result (changes_result).
data = partial(option, group="data", changes_result=True)
place = partial(option, group="data")
schedule = partial(option, group="schedule", changes_result=True)
length = partial(option, group="schedule")  # the learning rate follows the new length
loss = partial(option, group="weights of the loss", changes_result=True, min=0)
record = partial(option, group="checkpoints and logs")
extra = partial(option, group="beyond the paper's recipe", changes_result=True)
network = partial(extra, architecture=True)
layers = partial(extra, needs="recombine")
probability = partial(extra, min=0, max=1)

COSINE_END = 0.01  # final learning rate of a cosine schedule, as a fraction of the first


@dataclass(frozen=True)
class Training(Machine):
    """Options of both stages."""

    dataset: str = ""
    stage: str = ""

    preset: str = option("paper", "recipe: the paper's or LightNet's", ("paper", "light"))

    data_path: tuple[Path, ...] = place((), "one or more datasets, as unpacked: see datasets/README.md")
    shares: tuple[float, ...] = extra((), "weight per dataset, streaks last; default: by size", min=1e-6)
    patch_size: int = data(120, "side of the square crops, in pixels", min=16, max=4096)
    rainy_side: str = data("auto", "rainy half of side-by-side images", ("auto", "left", "right"))
    seed: int = data(0, "seed of initial weights, order and crops", min=0, max=2**63 - 1)

    batchSize: int = schedule(12, "pairs per step, over all processes", min=1, max=1 << 16)
    late_start: float = extra(1.0, "fraction of the run after which crops are larger; 1: off", min=0, max=1)
    late_patch_size: int = extra(256, "side of the larger crops, in pixels", min=16, max=4096)
    late_batchSize: int = extra(2, "pairs per step of larger crops", min=1, max=1 << 16)
    epochs: int = length(520, "length: epochs * pairs / batchSize steps, unless --steps is given", min=1)
    steps: int = length(0, "length in steps, milestones scaled to it; 0: by epochs", min=0)
    minutes: float = length(0.0, "length in minutes: a pilot run sets --steps by its pace; 0: off", min=0)
    lr: float = schedule(5e-4, "learning rate of Adam", min=1e-9, max=1)
    optimizer: str = extra("adam", "Adam, or Muon for the hidden convolutions", ("adam", "muon"))
    muon_lr: float = extra(0.0, "learning rate of Muon; 0: --lr", min=0, max=1)
    milestone: tuple[int, ...] = schedule(
        (312, 416), "epochs after which the rate drops; not with --cosine", min=1
    )
    lr_factor: float = schedule(0.5, "factor of a drop", min=0, max=1)

    backbone: str = extra("DerainNet", "network: a name in machinery.backbones.BACKBONES")
    channels: tuple[int, ...] = network((24, 32, 48), "channels at each resolution, from full down", min=1)
    units: tuple[int, ...] = network((10, 4, 2), "units per stage at each resolution", min=1)
    context: bool = network(False, "LightNet: add the mean of the deepest features over the image")
    augment: bool = extra(False, "flip and rotate crops; with --recombine, backgrounds only")
    mirror: bool = extra(False, "mirror crops left to right")
    recombine: bool = extra(False, "swap streak layers between images, if rain is an exact grey addition")
    recombine_prob: float = probability(1.0, "fraction of crops that --recombine applies to")
    max_streak_rotation: float = layers(0.0, "largest rotation, in degrees", min=0, max=90, also="slant")
    streak_zoom: float = layers(1.0, "largest zoom of a layer, or its inverse", min=1, max=4)
    streak_strength: float = layers(1.0, "largest gain of a layer, or its inverse", min=1, max=4)
    streak_blur: float = layers(0.0, "largest blur of a layer: sigma in pixels", min=0, max=20)
    streak_layers: int = layers(1, "largest number of layers on a crop", min=1, max=8)
    streaks: tuple[Path, ...] = layers((), "folders of more layers, grey on black", changes_result=False)
    backgrounds: tuple[Path, ...] = layers((), "folders of more clean images", changes_result=False)
    unvaried_prob: float = probability(0.0, "fraction of crops left as their set has them, but for flips")
    clear_prob: float = probability(0.0, "fraction of crops without rain", also="clear_share")
    haze_prob: float = probability(0.0, "fraction of crops with haze, both sides", also="veil_share")
    downscale: float = extra(1.0, "largest random downscaling of a pair", min=1, max=4, also="shrink")
    sharpen_prob: float = probability(0.0, "fraction of crops sharpened, both sides", also="sharpen_share")
    jpeg_prob: float = probability(0.0, "fraction of crops JPEG-compressed, both sides", also="jpeg_share")
    hold_back: int = extra(0, "hold out this many pairs per set, with their scenes, for validation", min=0)
    cosine: bool = extra(False, "cosine schedule to a hundredth of the rate, without milestones")
    psnr_cap: float = extra(60.0, "upper limit of the PSNR term, in dB", min=1, max=100, also="psnr_most")
    warmup: int = extra(0, "steps of linear warm-up", min=0, max=10**6)
    beta2: float = extra(0.999, "second-moment decay of Adam", min=0, max=0.99999)
    weight_decay: float = extra(0.0, "decoupled weight decay", min=0, max=1)
    clip: float = extra(0.0, "largest norm of the gradient; 0: off", min=0, max=10**6)
    ema: float = extra(0.0, "EMA decay; the average is validated and saved (0: off)", min=0, max=0.99999)

    workers: int = machine(2, "loader processes per training process; 0: none", min=0, max=256)
    accumulate: int = machine(1, "gradient-accumulation steps: less memory", min=1, max=1 << 16)
    cache: str = machine("auto", "keep decoded images in memory; auto: if they fit", ("auto", "on", "off"))
    recompute: bool = machine(False, "activation checkpointing of the units: less memory, slower")
    compile: bool = machine(False, "torch.compile the units: minutes at the start, faster steps on CUDA")
    deterministic: bool = machine(False, "reproduce runs bit for bit on CUDA too; slower")

    save_path: Path = record(Path(), "folder for checkpoints, log.jsonl and TensorBoard")
    resume: bool = record(False, "continue from net_latest, bit for bit (on CUDA with --deterministic)")
    log_every: int = record(10, "steps between log lines", min=1)
    save_every: int = record(200, "steps between checkpoints; Ctrl-C saves too", min=1)
    keep_every: int = record(0, "steps between checkpoints that are kept, as net_STEP; 0: none", min=0)
    val_every: float = record(10.0, "epochs between validations; 0: never", min=0)
    val_images: int = record(0, "number of test pairs to validate on if none are held back; 0: all", min=0)

    def with_preset(self, name: str) -> Self:
        """The record of the same dataset and stage in another preset. Raises UserError if there is none."""
        if name == self.preset:
            return self
        numbers = PRESETS.get(name, {}).get((self.dataset, self.stage))
        if numbers is None:
            raise UserError(f"--preset {name}: config.PRESETS has no such recipe for {self.dataset}")
        places = {key: path for key, path in vars(self).items() if key in ("save_path", "teacher")}
        moved: dict[str, Any] = {key: in_preset(path, self.dataset, name) for key, path in places.items()}
        return replace(self, preset=name, **moved, **numbers)

    def with_typed(self, names: Set[str]) -> Self:
        """--epochs alone replaces a preset's --steps. Raises UserError for --milestone with --cosine."""
        if "milestone" in names and self.cosine:
            raise UserError("--milestone does not apply with --cosine: give --cosine False")
        return replace(self, steps=0) if "epochs" in names and "steps" not in names else self

    def validate(self) -> str | None:
        if not self.data_path:
            return "--data_path is empty: give the folder of a dataset"
        sets = len(self.data_path) + bool(self.streaks)
        if self.shares and len(self.shares) != sets:
            return f"--shares needs one number per dataset, streaks included: {sets}, not {len(self.shares)}"
        weights = {f"--{name}": value for name, value in vars(self).items() if name.endswith("_weight")}
        if not any(weights.values()):
            return f"{', '.join(weights)} are all 0: give one of them another value"
        return super().validate()


class Schedule:
    """Length, learning rate, batch size and validations of a run, in steps.

    By epochs over `pairs`, or `recipe.steps` long with milestones in proportion. `drops`: of the learning
    rate. `validations`: steps between two, or 0: only at the end. `late`: the first step of larger crops.
    """

    def __init__(self, recipe: Training, pairs: int) -> None:
        start, self.recipe = recipe.late_start, recipe
        batch = start * recipe.batchSize + (1 - start) * recipe.late_batchSize  # on average
        self.steps = recipe.steps or max(1, int(recipe.epochs * pairs // batch))
        self.drops = tuple(m * self.steps // recipe.epochs for m in sorted(recipe.milestone))
        every = self.steps / 10 if recipe.minutes else recipe.val_every * pairs / batch
        self.validations = max(1, round(every)) if recipe.val_every else 0
        self.late = round(start * self.steps)

    def batch_size(self, step: int) -> int:
        """Crops of a step, counted from 1."""
        return self.recipe.late_batchSize if step > self.late else self.recipe.batchSize

    def factor(self, step: int) -> float:
        """Factor on the recipe's learning rate at a step, counted from 0."""
        rise = min(1, (step + 1) / self.recipe.warmup) if self.recipe.warmup else 1
        if self.recipe.cosine:
            share = min(1, step / self.steps)
            return rise * (COSINE_END + (1 - COSINE_END) * (1 + math.cos(math.pi * share)) / 2)
        return rise * self.recipe.lr_factor ** sum(step >= drop for drop in self.drops)

    def validates(self, step: int) -> bool:
        """Whether a validation follows this step; one follows the last step."""
        return step == self.steps or bool(self.validations and step % self.validations == 0)


@dataclass(frozen=True)
class Teacher(Training):
    """Stage 1, SID: supervised by synthetic pairs."""

    stage: str = "SID"

    weights: Path = place(Path(), "checkpoint, or its folder, to fine-tune; not in the paper")

    ssim_weight: float = loss(1.0, "weight of minus SSIM to the clean image")
    l1_weight: float = loss(0.0, "weight of L1 to the clean image; not in the paper")
    psnr_weight: float = loss(0.0, "weight of minus PSNR, in dB; not in the paper")


@dataclass(frozen=True)
class Student(Training):
    """Stage 2, SSID-KD: the teacher's weights, trained on with synthetic pairs and real rain."""

    stage: str = "SSID-KD"

    teacher: Path = place(Path(), "checkpoint to start from: a file or its folder")
    real_path: tuple[Path, ...] = place((), "folders of unlabelled real rainy images")
    patch_size: int = data(128, "side of the crops and window of the dark channel", min=16, max=4096)

    batchSize: int = schedule(2, "pairs, and as many real images, per step", min=1, max=1 << 16)
    epochs: int = length(10, "length: epochs * pairs / batchSize steps, unless --steps is given", min=1)
    lr: float = schedule(1e-4, "learning rate of Adam", min=1e-9, max=1)
    milestone: tuple[int, ...] = schedule((), "epochs after which the learning rate drops", min=1)
    val_every: float = record(1.0, "epochs between validations; 0: never", min=0)

    l1_weight: float = loss(20.0, "weight of L1 to the clean image")
    dark_syn_weight: float = loss(1e-6, "weight of the dark channel, synthetic")
    dark_real_weight: float = loss(1e-6, "weight of the dark channel, real")
    tv_syn_weight: float = loss(1e-6, "weight of the total variation, synthetic")
    tv_real_weight: float = loss(1e-6, "weight of the total variation, real")
    kl_weight: float = loss(1e-6, "weight of the distillation, KL of the codes")
    ssim_weight: float = loss(0.0, "weight of minus SSIM to the clean image; not in the paper")
    psnr_weight: float = loss(0.0, "weight of minus PSNR, in dB; not in the paper")


@dataclass(frozen=True)
class Evaluation(Machine):
    """Options of an evaluation. Labels in tables come from the checkpoint and the data (evaluation.py)."""

    dataset: str = ""  # the one in the script's name
    labelled: bool = True  # whether it has clean images
    trained_for: str = ""  # training set of the default model
    made_by: str = ""  # the script that trains the default model

    preset: str = option("paper", "the default model: the paper's or LightNet's", ("paper", "light"))

    logdir: Path = option(Path(), "model: a checkpoint, ours or the authors', or its folder")
    derained: Path = option(Path(), "score this folder of derained images instead of a model")
    data_path: Path = option(Path(), "dataset, as unpacked: see datasets/README.md")
    save_path: Path = option(Path("results/{dataset}/{method}"), "folder for images, scores and page")
    rainy_side: str = option("auto", "rainy half of side-by-side images", ("auto", "left", "right"))
    method: str = option("", "name of the method in tables; default: from the checkpoint")
    trained_on: str = option("", "training set, if the checkpoint does not record it")
    set_name: str = option("", "name of the dataset in tables; default: from its folder")
    tile: int = option(0, "side of the tiles that larger images are cut into, in pixels; 0: no tiles", min=0)
    self_ensemble: bool = option(False, "average over eight flips and rotations, at eight times the cost")
    niqe: bool = option(False, "score NIQE too, of the derained and the rainy images")
    page: bool = option(True, "write index.html with a before/after slider per image")

    def with_preset(self, name: str) -> Self:
        if name == "paper":
            return self
        return replace(self, preset=name, logdir=in_preset(self.logdir, self.trained_for, name))


def in_preset(folder: Path, dataset: str, preset: str) -> Path:
    """A model's folder in another preset: Rain200H+Real becomes Rain200H-light+Real."""
    return folder.parent / folder.name.replace(dataset, f"{dataset}-{preset}")


def preset_words(preset: str) -> str:
    """The option that selects a preset, for a command line."""
    return "" if preset == "paper" else f" --preset {preset}"


# ---------------------------------------------------------------------------------------- the paper's recipes


REAL = (Path("datasets/Real"),)  # SPA-Data and Real-275 [paper]; one folder Real/, beside the pairs [script]


def _recipe(kind: type[Training], dataset: str, **numbers: Any) -> Any:
    pairs, model = Path("datasets") / dataset, Path("trained_model") / dataset
    places: dict[str, Any] = {"data_path": (pairs,), "save_path": model}
    if kind is Student:
        places |= {"save_path": Path(f"{model}+Real"), "teacher": model, "real_path": REAL}
    return kind(dataset=dataset, **places, **numbers)


_teacher, _student = partial(_recipe, Teacher), partial(_recipe, Student)


def _evaluation(dataset: str, stage: str, trained_on: str, **numbers: Any) -> Evaluation:
    of_student = stage == "SSID-KD"
    return Evaluation(
        dataset=dataset,
        trained_for=trained_on,
        made_by=f"train_{trained_on}{'_real' * of_student}.py",
        logdir=Path("trained_model") / f"{trained_on}{'+Real' * of_student}",
        data_path=Path("datasets") / dataset,
        **numbers,
    )


# Milestones of Rain200H: 312 and 416 [readme]; the script drops at 312 alone.
TEACHERS: dict[str, Teacher] = {
    "Rain200H": _teacher("Rain200H", lr=5e-4, epochs=520, milestone=(312, 416), lr_factor=0.5),  # [readme]
    "Rain200L": _teacher("Rain200L", lr=5e-4, epochs=520, milestone=(312, 416), lr_factor=0.5),  # [script]
    "Rain800": _teacher("Rain800"),  # [paper] trains on it; the option table's defaults [readme]
    "Rain1200": _teacher("Rain1200", lr=7e-5, epochs=800, milestone=(480, 640), lr_factor=0.1),  # [script]
    "Rain1400": _teacher("Rain1400", lr=5e-4, epochs=800, milestone=(480, 640), lr_factor=0.1),  # [script]
}

STUDENTS: dict[str, Student] = {
    "Rain200H": _student("Rain200H"),  # the class's numbers [script]
    "Rain200L": _student("Rain200L"),  # likewise [script]
    "Rain800": _student("Rain800"),  # nothing released: as Rain200H [ours]
    "Rain1200": _student("Rain1200", epochs=20, batchSize=4),  # [script]
    "Rain1400": _student("Rain1400", epochs=20),  # [script]
}

EVALUATIONS = {
    **{(name, of): _evaluation(name, of, name) for name in TEACHERS for of in ("SID", "SSID-KD")},
    # SPA by the Rain200L model [script]; Real-275 likewise [ours]
    ("SPA", "SSID-KD"): _evaluation("SPA", "SSID-KD", "Rain200L", niqe=True),
    ("Real275", "SSID-KD"): _evaluation("Real275", "SSID-KD", "Rain200L", niqe=True, labelled=False),
}


# --------------------------------------------------------------------------- LightNet's recipes, all [ours]

LIGHT: dict[str, Any] = {
    "backbone": "LightNet",
    "channels": (24, 48, 96, 144, 192),
    "units": (1, 2, 2, 2, 2),
    "patch_size": 128,
    "batchSize": 4,  # at equal time, four crops per step beat sixteen
    "milestone": (),
    "cosine": True,
    "context": True,
    "optimizer": "muon",
    "beta2": 0.99,
    "weight_decay": 1e-4,
    "clip": 1.0,
    "ema": 0.999,
    "mirror": True,
    "hold_back": 20,
    "l1_weight": 2.0,
    "psnr_weight": 0.1,
    "ssim_weight": 2.0,
    "val_every": 5.0,
}
# Larger crops show more of an image's tone, and train more pixels a second.
LIGHT_TEACHER: dict[str, Any] = LIGHT | {
    "lr": 6e-4,
    "muon_lr": 1.2e-3,  # of one, two and five times Adam's, two was best
    "warmup": 200,
    "steps": 9_000,
    "late_start": 0.5,
}
LIGHT_STUDENT: dict[str, Any] = LIGHT | {
    "lr": 1e-4,
    "muon_lr": 2e-4,
    "warmup": 100,
    "steps": 400,
    "patch_size": 256,
    "batchSize": 2,
}
# For additive rain: streak layers on other backgrounds, rotated, zoomed, of other strength.
LAYERS: dict[str, Any] = {
    "augment": True,
    "mirror": False,
    "recombine": True,
    "recombine_prob": 0.5,  # a set's own pairs have no varied layers, and none that another image clipped
    "max_streak_rotation": 12.0,
    "streak_zoom": 1.3,
    "streak_strength": 1.1,
}

# One model for photographs: every kind of rain in the datasets, much of it light; all else must be kept.
MANY_RAINS: dict[str, Any] = {
    "preset": "light",
    "data_path": tuple(Path("datasets") / name for name in ("Rain800", "Rain200H", "Rain200L")),
    "streaks": (Path("datasets/Streaks"),),  # rendered light streaks, as Garg's
    "shares": (0.25, 0.3, 0.25, 0.2),
    "recombine_prob": 1.0,
    "max_streak_rotation": 45.0,
    "streak_zoom": 2.0,
    "streak_strength": 1.5,
    "streak_blur": 1.5,
    "streak_layers": 3,
    "unvaried_prob": 0.5,  # varied rain alone left the sets' own dense rain in place
    "clear_prob": 0.1,
    "haze_prob": 0.15,
    "downscale": 2.5,  # photographs mostly show short, thin streaks; the datasets' are near
    "sharpen_prob": 0.3,
    "jpeg_prob": 0.3,
    "hold_back": 6,
    "psnr_cap": 40.0,  # unbounded on crops without rain, which would outweigh all others
}
PHOTOGRAPHS = {
    "SID": Teacher(
        dataset="photographs",
        save_path=Path("trained_model/photographs"),
        weights=Path("trained_model/Rain800-light"),  # a model that removes rain already
        **LIGHT_TEACHER | LAYERS | MANY_RAINS | {"steps": 8_000},
    ),
    "SSID-KD": Student(
        dataset="photographs",
        real_path=REAL,
        teacher=Path("trained_model/photographs"),
        save_path=Path("trained_model/photographs+Real"),
        **LIGHT_STUDENT | LAYERS | MANY_RAINS | {"steps": 300},
    ),
}

# What `--preset` changes, by dataset and stage.
PRESETS: dict[str, dict[tuple[str, str], dict[str, Any]]] = {
    "light": {
        (name, stage): numbers | (LAYERS if name.startswith("Rain200") else {})
        for name in TEACHERS
        for stage, numbers in (("SID", LIGHT_TEACHER), ("SSID-KD", LIGHT_STUDENT))
    }
}
