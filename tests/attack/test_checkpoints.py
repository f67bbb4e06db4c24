"""Checkpoints with anything done to their bytes or contents: weights, or a line that names the file."""

import contextlib
import copy
import dataclasses
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from config import Training
from inference import Derainer
from machinery.checkpoints import load_checkpoint
from networks import DerainNet
from tests.attack.conftest import Budget
from tests.attack.scripts import TINY
from tests.attack.test_inputs import CHANGES, changed
from tests.small import a_run, student, teacher, trained
from utils import UserError

UNCACHED: dict[str, Any] = {**TINY, "cache": "off"}
LEFT = 6 << 30  # bytes of address space beyond what the process has: more is no answer to a small file
numbers = st.integers(0, 1 << 20)

# torch warns of what is done to them here
pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("bounded")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, which keeps an average of its weights, and its student."""
    folder = tmp_path_factory.mktemp("made")
    trained(teacher(folder, ema=0.5, **UNCACHED))
    trained(student(folder, **UNCACHED))
    return folder


@pytest.fixture
def bounded() -> Iterator[None]:
    """A file that asks for more memory than that fails, instead of taking the machine's."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + LEFT, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# --------------------------------------------------------------------------------------- what is done to them

LOOP: list[Any] = []
LOOP.append(LOOP)
# in the place of anything: a value of another kind, and numbers that are none
OTHERS: list[Any] = [
    None, True, 0, -1, 1 << 40, 10**5000, 0.5, float("nan"), float("inf"), "", "x", "7", "\udce9\n", b"x",
    (), [], [1], ["x"], [None], [[1]], LOOP, {}, {"x": 1}, {1: 2}, {"net": {}}, {"step": []}, 1j,
    {0: {"step": 1}}, torch.zeros(()), torch.zeros(0), torch.ones(3), torch.ones(3, dtype=torch.int64),
    torch.ones(2, dtype=torch.bool),
    torch.full((2,), torch.nan), torch.ones(3).to_sparse(), torch.ones(1).expand(10**6, 10**6), torch.float16,
    torch.ones(2, dtype=torch.complex64), torch.empty(3, device="meta"), torch.Size([2]),
]  # fmt: skip

# of a tensor: another type of number, another shape, another layout, numbers that are none
TENSORS: list[Callable[[Tensor], Any]] = [
    Tensor.half, Tensor.bfloat16, Tensor.double, Tensor.int, Tensor.bool, Tensor.to_sparse, Tensor.flatten,
    Tensor.sum,
    lambda t: t.to(torch.complex64), lambda t: t[None], lambda t: t[..., :0],
    lambda t: t.expand(1000, *t.shape),
    lambda t: t.flatten()[:1].expand(t.numel()).reshape(t.shape) if t.numel() else t,
    lambda t: t.flatten()[:1].as_strided(t.shape, (0,) * t.dim()) if t.numel() else t,
    lambda t: t.flip(0) if t.dim() else -t - 1, lambda t: t * torch.nan, lambda t: t / 0, lambda t: t * 1e38,
    lambda t: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t, lambda t: t.movedim(0, -1),
    lambda t: torch.nn.Parameter(t.float()), lambda t: t.numpy().tolist(),
    lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8), lambda t: t.to("meta"),
]  # fmt: skip


def places(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to whatever a checkpoint holds. Of many siblings the first three stand for all."""
    if at:
        yield at
    if isinstance(content, dict):
        for key in [*content][:3] if len(content) > 20 else content:
            yield from places(content[key], (*at, key))
    elif isinstance(content, list):
        for index in range(min(3, len(content))):
            yield from places(content[index], (*at, index))


def mutated(content: dict[str, Any], at: tuple[Any, ...], what: int, key: Any = None) -> Any:
    """`content` with one place removed, replaced, its tensor changed, or, where there is one, with `key`."""
    content = holder = copy.deepcopy(content)
    for each in at[:-1]:
        holder = holder[each]
    there = holder[at[-1]]
    if key is not None and isinstance(holder, dict):
        holder[key] = holder.pop(at[-1])
        return content
    changes = TENSORS if isinstance(there, Tensor) else []
    choice = what % (len(OTHERS) + len(changes) + 1)
    if choice == len(OTHERS) + len(changes):
        del holder[at[-1]]
    elif choice < len(OTHERS):
        holder[at[-1]] = OTHERS[choice]
    else:
        with contextlib.suppress(RuntimeError, TypeError, IndexError):  # not every tensor can be changed so
            holder[at[-1]] = changes[choice - len(OTHERS)](there)
    return content


# ------------------------------------------------------------------------------------ what must come of it


def tried(act: Callable[[], Any], path: Path) -> None:
    """A line that names the file, or nothing at all."""
    try:
        act()
    except UserError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error), error


def opened(path: Path) -> None:
    derainer = Derainer.open(path)
    assert all(torch.isfinite(weight).all() for weight in derainer.net.parameters())


def resumed(recipe: Training) -> None:
    """And gone on with, for a step: what Adam was given must be what it can compute with."""
    recipe = dataclasses.replace(recipe, resume=True)
    run = a_run(recipe)  # type: ignore[arg-type]
    if 0 <= run.state.step < 50:
        run = a_run(dataclasses.replace(recipe, steps=run.state.step + 1))  # type: ignore[arg-type]
    run.run()


def test_whatever_is_done_to_a_checkpoints_bytes(budget: Budget, made: Path, tmp_path: Path) -> None:
    whole = (made / "student/net_latest").read_bytes()
    path = tmp_path / "net_latest"

    def check(changes: list[tuple[str, int, int]], seed: int, far: int) -> None:
        content = whole
        for what, where, much in changes:
            # the archive's own list is at its end, what it holds is anywhere
            where = where if far % 3 else far * 997 % max(1, len(content))
            content = changed(content, (what, where, much), seed)
        path.write_bytes(content)
        tried(lambda: opened(path), path)

    some = st.lists(CHANGES, min_size=1, max_size=3)
    budget.draw(15, check, changes=some, seed=st.integers(0, 1000), far=numbers)


def test_whatever_a_checkpoint_holds_it_opens_and_a_student_begins_or_it_is_named(
    budget: Budget, made: Path, tmp_path: Path
) -> None:
    whole = load_checkpoint(made / "student/net_latest")
    light = {key: value for key, value in whole.items() if key != "training"}
    path = tmp_path / "net_latest"
    net = DerainNet(channels=(2, 3, 4), units=(1, 1, 1)).state_dict()
    theirs = {key.replace("full_branch.", "encoder_decoder_1."): value for key, value in net.items()}
    recipe: Any = student(made, teacher=path, save_path=tmp_path / "begun", **UNCACHED)
    wholes: list[dict[str, Any]] = [light, light, {"net": net}, {"net": theirs, "clock_net": 7}, theirs]

    def check(which: int, at: int, what: int, begins: bool) -> None:
        there = [*places(wholes[which])]
        torch.save(mutated(wholes[which], there[at % len(there)], what), path)
        tried(lambda: a_run(recipe) if begins else opened(path), path)

    begins = st.sampled_from([False, False, False, True])  # which takes longer
    budget.draw(33, check, which=st.integers(0, 4), at=numbers, what=numbers, begins=begins)


@pytest.mark.parametrize("stage", [teacher, student])
def test_whatever_a_checkpoint_holds_it_resumes_or_is_named(
    budget: Budget, made: Path, tmp_path: Path, stage: Callable[..., Training]
) -> None:
    ema = 0.5 if stage is teacher else 0.0
    recipe = stage(made, save_path=tmp_path / "run", ema=ema, **UNCACHED)
    recipe.save_path.mkdir()
    path = recipe.save_path / "net_latest"
    whole = load_checkpoint(made / stage.__name__ / "net_latest")
    where = [*places(whole)]
    inner = [at for at in where if at[0] in ("training", "counts", "recipe", "step", "initialized_from")]

    def check(often: bool, at: int, what: int, key: Any) -> None:
        there = inner if often else where
        torch.save(mutated(whole, there[at % len(there)], what, key), path)
        tried(lambda: resumed(recipe), path)

    names = st.sampled_from([None, None, None, 7, "x", "\udce9", ("a", "b"), 2.5])
    budget.draw(12, check, often=st.sampled_from([True, True, False]), at=numbers, what=numbers, key=names)
