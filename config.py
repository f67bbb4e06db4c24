"""One frozen record a dataset and stage: the paper's numbers, each beside its source.

A record's fields are its script's options (machinery/options.py): `--help` shows that dataset's defaults.
Those that end in _weight are the weights of the stage's terms (stages.py). Sources: [readme] the authors'
README, [script] their released scripts, [paper] the paper, [ours] chosen here, with the reason in
REPRODUCTION.md where it touches the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machinery.options import Machine, option

MOST_IN_A_BATCH, MOST_EPOCHS = 1 << 16, 10**6  # beyond any use: a slip of the finger, told before it is tried


@dataclass(frozen=True)
class Training(Machine):
    """What both stages share."""

    dataset: str = ""

    data_path: Path = option(Path(), "the dataset, as unpacked: see datasets/README.md")
    save_path: Path = option(Path(), "where checkpoints, log.jsonl and the TensorBoard log go")
    resume: bool = option(False, "go on from save_path/net_latest, to the same weights as if never stopped")

    batchSize: int = option(
        12, "pairs a step, over all processes", changes_result=True, least=1, most=MOST_IN_A_BATCH
    )
    accumulate: int = option(
        1,
        "work on a step's batch in so many parts, one after the other: less memory",
        least=1,
        most=MOST_IN_A_BATCH,
    )
    # a resumed run may be given another length: the learning rate then follows the new one
    epochs: int = option(520, "a run is epochs * pairs / batchSize steps", least=1, most=MOST_EPOCHS)
    steps: int = option(
        0, "length of the run in steps, the milestones kept in proportion; 0: by epochs", least=0, most=10**9
    )
    milestone: tuple[int, ...] = option(
        (312, 416), "epochs after which the learning rate drops", changes_result=True, least=1
    )
    lr: float = option(5e-4, "learning rate of Adam", changes_result=True, above=0, most=1)
    lr_factor: float = option(
        0.5, "what a milestone multiplies the learning rate by", changes_result=True, above=0, most=1
    )
    patch_size: int = option(
        120, "side of the square crops, in pixels", changes_result=True, least=16, most=4096
    )
    augment: bool = option(False, "flip and rotate the crops; not in the paper", changes_result=True)
    recombine: bool = option(
        False, "swap streak layers between pairs (Rain200H/L only); not in the paper", changes_result=True
    )
    slant: float = option(
        0.0,
        "with --recombine: turn the streaks by so many degrees at most, for rain that falls aslant; "
        "not in the paper",
        changes_result=True,
        least=0,
        most=90,
    )
    backgrounds: tuple[Path, ...] = option((), "with --recombine: folders of further clean images")
    rainy_side: str = option(
        "auto", "of side-by-side images: which half is rainy", ("auto", "left", "right"), changes_result=True
    )
    backbone: str = option("DerainNet", "the network: a name in networks.BACKBONES", changes_result=True)
    channels: tuple[int, ...] = option(
        (24, 32, 48),
        "channels at full, half and quarter resolution",
        changes_result=True,
        least=1,
        most=512,
        count=3,
    )
    units: tuple[int, ...] = option(
        (10, 4, 2),
        "unit applications a stage at full, half and quarter resolution",
        changes_result=True,
        least=1,
        most=64,
        count=3,
    )
    seed: int = option(
        0, "of the first weights, the order, the crops", changes_result=True, least=0, most=2**63 - 1
    )
    ema: float = option(
        0.0,
        "keep an average of the weights, and validate it: the share of itself that it keeps at each step, as "
        "0.999; 0: no average; not in the paper",
        changes_result=True,
        least=0,
        most=0.99999,
    )

    workers: int = option(2, "loader processes for each training process; 0: none", least=0, most=256)
    cache: str = option("auto", "keep decoded images in memory; auto: where they fit", ("auto", "on", "off"))
    recompute: bool = option(False, "recompute the units in the backward pass: half the memory, slower")
    fast: bool = option(
        False,
        "a step's gradient as one CUDA graph; static crops, not tried on a card yet; not with --recompute",
    )
    deterministic: bool = option(
        False, "on CUDA too, the same numbers in every run, and after --resume; slower"
    )
    compile: bool = option(
        False,
        "compile the units (CUDA): minutes at the start, faster steps; with --fast the whole network",
    )
    log_every: int = option(10, "steps between log lines", least=1)
    save_every: int = option(200, "steps between checkpoints; Ctrl-C saves too", least=1)
    keep_every: int = option(
        0, "steps between checkpoints that are kept for good, as net_STEP; 0: none", least=0
    )
    val_every: float = option(
        10.0, "epochs between validations on the test pairs; 0: never", least=0, most=MOST_EPOCHS
    )
    val_images: int = option(0, "validate on so many of the test pairs, spread evenly; 0: all", least=0)

    def contradiction(self) -> str | None:
        late = [each for each in self.milestone if each >= self.epochs]
        if late:
            return f"--milestone {late[0]}: the run ends after {self.epochs} epochs (--epochs)"
        if self.fast and self.recompute:
            return "--fast records a step once, which --recompute does not allow: give one of them"
        if self.slant and not self.recombine:
            return "--slant turns the streak layers that --recombine swaps: give both"
        weights = {name: value for name, value in vars(self).items() if name.endswith("_weight")}
        if not any(weights.values()):
            return f"--{' and --'.join(weights)}: all are 0, so there is nothing to learn"
        return super().contradiction()


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a run over `pairs` pairs, in steps."""

    steps: int
    drops: tuple[int, ...]
    lr_factor: float
    validations: int  # steps between them; 0: one at the end alone

    @classmethod
    def of(cls, recipe: Training, pairs: int) -> Schedule:
        """By epochs, or `recipe.steps` long with the milestones moved in proportion."""
        by_epochs = max(1, recipe.epochs * pairs // recipe.batchSize)
        steps = recipe.steps or by_epochs
        drops = tuple(m * steps // recipe.epochs for m in sorted(recipe.milestone))
        an_epoch = pairs / recipe.batchSize
        validations = max(1, round(recipe.val_every * an_epoch)) if recipe.val_every else 0
        return cls(steps, drops, recipe.lr_factor, validations)

    def factor(self, step: int) -> float:
        """What the recipe's learning rate is multiplied by at a step."""
        return self.lr_factor ** sum(step >= drop for drop in self.drops)

    def validates(self, step: int) -> bool:
        """Whether a validation follows this step, as it does the last one."""
        return step == self.steps or bool(self.validations and step % self.validations == 0)


@dataclass(frozen=True)
class Teacher(Training):
    """Stage 1, SID: supervised by synthetic pairs."""

    weights: Path = option(Path(), "fine-tune these: a checkpoint, or a folder with net_latest")

    ssim_weight: float = option(1.0, "of minus SSIM to the clean image", changes_result=True, least=0)
    l1_weight: float = option(0.0, "of L1 to the clean image; not in the paper", changes_result=True, least=0)
    psnr_weight: float = option(0.0, "of minus PSNR, in dB; not in the paper", changes_result=True, least=0)


@dataclass(frozen=True)
class Student(Training):
    """Stage 2, SSID-KD: the teacher's weights, trained on with synthetic pairs and real rain."""

    teacher: Path = option(Path(), "checkpoint to start from: a file, or a folder with net_latest")
    real_path: tuple[Path, ...] = option((), "folders of unlabelled real rainy images")

    batchSize: int = option(
        2,
        "synthetic pairs, and as many real images, a step",
        changes_result=True,
        least=1,
        most=MOST_IN_A_BATCH,
    )
    epochs: int = option(10, "a run is epochs * pairs / batchSize steps", least=1, most=MOST_EPOCHS)
    milestone: tuple[int, ...] = option(
        (), "epochs after which the learning rate drops", changes_result=True, least=1
    )
    lr: float = option(1e-4, "learning rate of Adam", changes_result=True, above=0, most=1)
    patch_size: int = option(
        128, "side of the crops and window of the dark channel", changes_result=True, least=16, most=4096
    )
    val_every: float = option(
        1.0, "epochs between validations on the test pairs; 0: never", least=0, most=MOST_EPOCHS
    )

    l1_weight: float = option(20.0, "of L1 to the clean image", changes_result=True, least=0)
    dark_syn_weight: float = option(1e-6, "of the dark channel, synthetic", changes_result=True, least=0)
    dark_real_weight: float = option(1e-6, "of the dark channel, real", changes_result=True, least=0)
    tv_syn_weight: float = option(1e-6, "of the total variation, synthetic", changes_result=True, least=0)
    tv_real_weight: float = option(1e-6, "of the total variation, real", changes_result=True, least=0)
    kl_weight: float = option(1e-6, "of the distillation, KL of the codes", changes_result=True, least=0)


@dataclass(frozen=True)
class Evaluation(Machine):
    """What is scored, and of which model. Labels are not the script's, but of what is run (evaluation.py)."""

    dataset: str = ""  # what the script is called for
    labelled: bool = True  # whether it has clean images
    made_by: str = ""  # the script that trains the model of --logdir's default

    logdir: Path = option(
        Path(), "the model: a checkpoint, ours or the authors', or a folder with net_latest"
    )
    derained: Path = option(
        Path(), "score this folder of derained images, whatever made them, instead of a model"
    )
    data_path: Path = option(Path(), "the dataset, as unpacked: see datasets/README.md")
    save_path: Path = option(
        Path("results/{dataset}/{method}"),
        "where derained images, scores.json and index.html go; {dataset} and {method} stand for what was run",
    )
    rainy_side: str = option("auto", "of side-by-side images: which half is rainy", ("auto", "left", "right"))
    method: str = option("", "what the tables call the method, instead of what the checkpoint tells")
    trained_on: str = option("", "the dataset it was trained on, where the checkpoint does not tell")
    set_name: str = option("", "what the tables call the dataset, instead of what its folder tells")
    tile: int = option(0, "side of the tiles that larger images are cut into, in pixels; 0: never", least=0)
    self_ensemble: bool = option(
        False, "the mean over the eight flips and rotations of each image, at eight times the cost"
    )
    clean_names: bool = option(False, "name results as the clean images, as the released scripts expect")
    niqe: bool = option(False, "score NIQE too, of the derained and the rainy images")
    page: bool = option(True, "write index.html, with a before/after slider for each image")
    workers: int = option(2, "processes that read ahead; 0: none", least=0, most=256)


def _teacher(dataset: str, **numbers: Any) -> Teacher:
    return Teacher(
        dataset=dataset,
        data_path=Path("datasets") / dataset,
        save_path=Path("trained_model") / dataset,
        **numbers,
    )


def _student(dataset: str, **numbers: Any) -> Student:
    return Student(
        dataset=dataset,
        data_path=Path("datasets") / dataset,
        real_path=(Path("datasets/Real"),),  # SPA-Data and Real-275 [paper]; one folder Real/ [script]
        teacher=Path("trained_model") / dataset,
        save_path=Path("trained_model") / f"{dataset}+Real",
        **numbers,
    )


def _evaluation(dataset: str, stage: str, trained_on: str, **numbers: Any) -> Evaluation:
    of_student = stage == "SSID-KD"
    return Evaluation(
        dataset=dataset,
        made_by=f"train_{trained_on}{'_real' * of_student}.py",
        logdir=Path("trained_model") / f"{trained_on}{'+Real' * of_student}",
        data_path=Path("datasets") / dataset,
        **numbers,
    )


# Milestones of Rain200H: 312 and 416 [readme]; the script drops at 312 alone.
TEACHERS = {
    "Rain200H": _teacher("Rain200H", lr=5e-4, epochs=520, milestone=(312, 416), lr_factor=0.5),  # [readme]
    "Rain200L": _teacher("Rain200L", lr=5e-4, epochs=520, milestone=(312, 416), lr_factor=0.5),  # [script]
    "Rain800": _teacher("Rain800"),  # [paper] trains on it; the option table's defaults [readme]
    "Rain1200": _teacher("Rain1200", lr=7e-5, epochs=800, milestone=(480, 640), lr_factor=0.1),  # [script]
    "Rain1400": _teacher("Rain1400", lr=5e-4, epochs=800, milestone=(480, 640), lr_factor=0.1),  # [script]
}

STUDENTS = {
    "Rain200H": _student("Rain200H"),  # the class's numbers [script]
    "Rain200L": _student("Rain200L"),  # likewise [script]
    "Rain800": _student("Rain800"),  # nothing released: as Rain200H [ours]
    "Rain1200": _student("Rain1200", epochs=20, batchSize=4),  # [script]
    "Rain1400": _student("Rain1400", epochs=20),  # [script]
}

EVALUATIONS = {
    **{(name, "SID"): _evaluation(name, "SID", name) for name in TEACHERS},
    **{(name, "SSID-KD"): _evaluation(name, "SSID-KD", name) for name in STUDENTS},
    # SPA by the Rain200L model [script]; Real-275 likewise [ours]
    ("SPA", "SSID-KD"): _evaluation("SPA", "SSID-KD", "Rain200L", niqe=True),
    ("Real275", "SSID-KD"): _evaluation("Real275", "SSID-KD", "Rain200L", niqe=True, labelled=False),
}
