"""Crops as a function of seed, epoch and index; their windows, their order, the cache."""

import itertools
import pickle
import zlib
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch

import DerainDataset
from config import REAL, Training
from datasets.layouts import find_images, find_pairs
from datasets.pairs import PairSet, read_pair
from DerainDataset import PairCrops, RealCrops, random_crop
from machinery import loading
from machinery.distributed import World
from machinery.loading import Batches, ImageCache
from tests import layouts
from tests.small import ALONE, CPU, student
from utils import UserError, to_tensor, write_image

OFF = ImageCache("off")

# ------------------------------------------------------------------------------------------------------ crops


@pytest.fixture
def pairs(tmp_path) -> PairSet:
    return find_pairs(layouts.plain(tmp_path / "set", "rain", "norain", count=5), "train")


def pair_crops(found, size, cache="off", backgrounds=(), **changes) -> PairCrops:
    """Crops of one set by a recipe with `changes`."""
    recipe = Training(patch_size=size, **changes)
    return PairCrops(found, recipe, ImageCache(cache), recombine=recipe.recombine, backgrounds=backgrounds)


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("recombine", [False, True])
@pytest.mark.parametrize("augment", [False, True])
def test_crops_are_a_function_of_seed_epoch_index(pairs, augment, recombine):
    def crops(seed: int) -> PairCrops:
        return pair_crops(pairs, 16, seed=seed, augment=augment, recombine=recombine)

    keys = list(itertools.product(range(3), range(5)))
    one, again = crops(7), crops(7)
    forwards = [one[key] for key in keys]
    assert all(map(same, forwards, [again[key] for key in reversed(keys)][::-1]))
    assert all(item[side].shape == (3, 16, 16) for item in forwards for side in ("rainy", "clean"))
    for others in (forwards[5:10], [crops(8)[key] for key in keys[:5]]):  # the next epoch's, another seed's
        assert not all(map(same, forwards[:5], others))


def test_no_two_draws_of_a_crop_have_the_same_random_numbers(pairs, monkeypatch):
    generator = Mock(wraps=DerainDataset._generator)
    monkeypatch.setattr(DerainDataset, "_generator", generator)
    real = RealCrops(pairs, Training(patch_size=16), OFF)
    for crops in (pair_crops(pairs, 16, recombine=True), real):
        assert crops[3, 1]
    drawn = [each.args for each in generator.call_args_list]
    assert len(set(drawn)) == len(drawn) > 6


def as_uint8(crop: torch.Tensor) -> np.ndarray:
    return crop.permute(1, 2, 0).numpy()


LAYERED = {"streak_strength": 1.5, "streak_layers": 3, "mirror": True, "clear_prob": 0.2, "haze_prob": 0.5}


@pytest.mark.parametrize(
    ("options", "checksum"),
    [
        ({}, 4258596987),
        ({"augment": True}, 59012548),
        ({"recombine": True, "augment": True}, 4195208716),
        ({"recombine": True, **LAYERED}, 2165089628),
    ],
)
def test_crops_are_the_same_in_every_version(tmp_path, options, checksum):
    ramp = np.arange(40 * 50 * 3).reshape(40, 50, 3)
    for n in (1, 2, 3):
        clean = ramp * (7 + n) % 150
        write_image(tmp_path / f"set/norain/{n}.png", clean.astype(np.uint8))
        rainy = clean + (ramp[..., :1] * (3 + n) % 160).clip(min=90) - 90
        write_image(tmp_path / f"set/rain/{n}.png", rainy.astype(np.uint8))
    crops = pair_crops(find_pairs(tmp_path / "set", "train"), 24, seed=3, **options)
    items = [crops[key] for key in itertools.product(range(8), range(3))]
    pixels = b"".join(as_uint8(crop).tobytes() for item in items for crop in item.values())
    assert zlib.crc32(pixels) == checksum


def test_batches_are_those_bytes_as_float32(pairs):
    crops = pair_crops(pairs, 32)
    crop = crops[0, 0]["rainy"]
    assert crop.dtype == torch.uint8 and crop.shape == (3, 32, 32)
    batches = Batches([crops], ALONE, range(2), batch_size=5)
    (batch,) = next(iter(batches))
    keys = next(batches.keys(5, crops.tag))
    expected = torch.stack([to_tensor(as_uint8(crops[key]["rainy"])) for key in keys])
    assert torch.equal(batch["rainy"], expected) and batch["rainy"].dtype == torch.float32


TURNS = {"": [(0, 1)], "augment": [(k, f) for f in (1, -1) for k in range(4)], "mirror": [(0, 1), (0, -1)]}


@pytest.mark.parametrize("option", TURNS)
def test_crops_are_windows_of_both_sides_at_one_place_turned_as_asked(pairs, tmp_path, option):
    how: Any = {option: True} if option else {}
    images = find_images([tmp_path / "set/rain"])
    for crops in (pair_crops(pairs, 20, **how), RealCrops(images, Training(patch_size=20, **how), OFF)):
        seen = set()
        for index, pair in enumerate(crops.pairs):
            image = np.dstack([side for side in read_pair(pair) if side is not None])
            corners = itertools.product(*(range(side - 19) for side in layouts.SIZE))
            windows = {image[top : top + 20, left : left + 20].tobytes() for top, left in corners}
            for epoch in range(12):
                crop = np.dstack([as_uint8(side) for side in crops[epoch, index].values()])
                straight = [np.rot90(crop[:, ::flip], -k).tobytes() for k, flip in TURNS[option]]
                found = [n for n, each in enumerate(straight) if each in windows]
                assert found, "no window, however it is turned"
                seen.add(found[0])
        assert len(seen) == len(TURNS[option])


def test_every_pixel_can_be_in_a_crop():
    image = np.arange(18 * 19).reshape(18, 19, 1)
    rng = np.random.default_rng(0)
    corners = {int(random_crop((image,), 16, rng)[0][0, 0, 0]) for _ in range(300)}
    assert corners == {19 * top + left for top in range(3) for left in range(4)}


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (5, 3), (40, 9)])
def test_small_images_are_reflected(tmp_path, size):
    image = layouts.clean_image(1, size)
    write_image(tmp_path / "real/1.png", image)
    crops = RealCrops(find_images([tmp_path / "real"]), Training(patch_size=24), OFF)
    crop = as_uint8(crops[(0, 0)]["real_rainy"])
    expected = cv2.copyMakeBorder(image, 0, 100, 0, 100, cv2.BORDER_REFLECT_101)
    places = itertools.product(*(range(max(1, side - 23)) for side in size))
    windows = [expected[top : top + 24, left : left + 24] for top, left in places]
    assert any(np.array_equal(crop, window) for window in windows)


def test_cache_and_workers_change_nothing(pairs, tmp_path):
    real = find_images([layouts.real_images(tmp_path / "real")])

    def batches(crops, workers=0):
        return [batch for (batch,) in Batches([crops], ALONE, range(6), batch_size=4, workers=workers)]

    for make in (
        lambda cache: pair_crops(pairs, 16, cache, recombine=True, backgrounds=[real]),
        lambda cache: RealCrops(real, Training(patch_size=16), ImageCache(cache)),
    ):
        plain = batches(make("off"))
        assert len(plain) == 6
        for cache, workers in (("on", 0), ("on", 2), ("off", 2)):
            for batch, expected in zip(batches(make(cache), workers), plain, strict=True):
                assert same(batch, expected)


def test_the_cache_decodes_once_and_says_so(pairs, monkeypatch):
    crops = pair_crops(pairs, 16, "auto")
    assert "images are cached in memory: 0.00 GB" in crops.messages[-1]
    assert "as asked" in pair_crops(pairs, 16).messages[-1]
    monkeypatch.setattr(loading, "read_image", lambda path: pytest.fail(f"{path} was decoded again"))
    assert crops[(0, 0)]["rainy"].shape == (3, 16, 16)


def test_one_cache_decides_for_each_set_whether_it_fits(pairs, tmp_path, monkeypatch):
    decoded = 10 * 3 * layouts.SIZE[0] * layouts.SIZE[1]
    real = find_images([layouts.real_images(tmp_path / "real")])

    def kept(mode: str = "auto", processes: str = "1") -> list[bool]:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        cache = ImageCache(mode)
        both = (PairCrops(pairs, Training(), cache), RealCrops(real, Training(), cache))
        return ["are cached in memory" in each.messages[-1] for each in both]

    memory = SimpleNamespace(available=2 * decoded)
    monkeypatch.setattr(loading.psutil, "virtual_memory", lambda: memory)
    assert kept() == [True, False] and kept("on") == [True, True]
    assert kept(processes="2") == [False, True]  # which share this machine: half is enough for few images


def test_crops_survive_pickling_without_their_cache(pairs):
    crops = pair_crops(pairs, 16, "on")
    packed = pickle.dumps(crops)
    assert len(packed) < 10_000
    assert same(pickle.loads(packed)[(1, 2)], crops[(1, 2)])


def test_a_real_folder_beside_the_pairs_is_found_where_none_is_given(tmp_path, monkeypatch):
    layouts.rain200(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    recipe = student(tmp_path, real_path=REAL)
    with pytest.raises(UserError, match=r"datasets/Real is not a folder: --real_path takes"):
        RealCrops.of(recipe, OFF)
    layouts.real_images(tmp_path / "data/Real")
    with pytest.raises(UserError, match=r"nowhere is not a folder"):  # given: nothing stands in for it
        RealCrops.of(student(tmp_path, real_path=(tmp_path / "nowhere",)), OFF)
    assert RealCrops.of(recipe, OFF).roots == [tmp_path / "data/Real"]


# ------------------------------------------------------------------------------------------------------ order


def stream(
    count: int, batch: int, start: int, stop: int, rank: int = 0, world: int = 1, accumulate: int = 1
) -> list:
    how = {"batch_size": batch, "accumulate": accumulate, "seed": 5}
    return list(Batches([], World(rank, world, CPU), range(start, stop), **how).keys(count, 0))


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (5, 8)])  # a batch may be of several epochs
def test_every_epoch_has_each_entry_once_in_another_order(count, batch):
    drawn = [key for keys in stream(count, batch, 0, 4 * count // batch + 1) for key in keys]
    orders = [tuple(index for e, index in drawn if e == epoch) for epoch in range(4)]
    assert all(sorted(order) == list(range(count)) for order in orders) and len(set(orders)) == 4


@pytest.mark.parametrize("count", [3, 10, 50])
def test_order_does_not_depend_on_start_processes_or_parts(count):
    whole = stream(count, 8, 0, 9)
    assert stream(count, 8, 4, 9) == whole[4:]
    for world in (2, 4):
        shares = [stream(count, 8, 2, 9, rank, world) for rank in range(world)]
        assert [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == whole[2:]
    two = stream(count, 8, 2, 9, rank=1, world=2, accumulate=2)
    assert two == [part for step in zip(*shares[2:], strict=True) for part in step]


def test_uneven_split_is_refused_with_what_works():
    for batch, world in ((12, 5), (3, 2), (2, 4)):
        refusal = f"a batch of {batch} does not split over {world} processes .*: give multiples of {world} as"
        with pytest.raises(UserError, match=refusal):
            stream(10, batch, 0, 1, 0, world)


def test_pairs_and_real_images_are_shuffled_apart(pairs):
    batches = Batches([], ALONE, range(1), batch_size=50)
    assert [*batches.keys(50, PairCrops.tag)] != [*batches.keys(50, RealCrops.tag)]
