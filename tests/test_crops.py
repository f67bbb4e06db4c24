"""Crops, their order, the cache, recombination."""

import itertools
import pickle
import zlib
from pathlib import Path
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
from datasets.pairs import PairSet, read_pair, why_not_recombined
from DerainDataset import Crops, PairCrops, RealCrops, _random_warp, _warped, random_crop
from machinery import loading
from machinery.loading import Batches, BatchStream, ImageCache, loader
from tests import layouts
from tests.small import ALONE, student
from utils import UserError, to_tensor, write_image

# ------------------------------------------------------------------------------------------------------ crops


def batches(crops: Crops, *, size: int = 4, steps: int, workers: int = 0) -> list[dict[str, torch.Tensor]]:
    stream = BatchStream(len(crops), size, tag=crops.tag, steps=range(steps))
    return list(loader(crops, stream, workers=workers))


@pytest.fixture
def pairs(tmp_path: Path) -> PairSet:
    return find_pairs(layouts.plain(tmp_path / "set", "rain", "norain", count=5), "train")


def pair_crops(found: PairSet, size: int, cache: str = "off", **changes: Any) -> PairCrops:
    """Crops of one set by a recipe with `changes`, or with other `backgrounds`."""
    backgrounds, swapped = changes.pop("backgrounds", ()), changes.get("recombine", False)
    recipe = Training(patch_size=size, **changes)
    return PairCrops(found, recipe, ImageCache(cache), recombine=swapped, backgrounds=backgrounds)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("recombine", [False, True])
@pytest.mark.parametrize("augment", [False, True])
def test_crops_are_a_function_of_seed_epoch_index(pairs: PairSet, augment: bool, recombine: bool) -> None:
    def crops(seed: int) -> PairCrops:
        return pair_crops(pairs, 16, seed=seed, augment=augment, recombine=recombine)

    keys = list(itertools.product(range(3), range(5)))
    one, again = crops(7), crops(7)
    forwards = [one[key] for key in keys]
    assert all(map(same, forwards, [again[key] for key in reversed(keys)][::-1]))
    assert all(item[side].shape == (3, 16, 16) for item in forwards for side in ("rainy", "clean"))
    for others in (forwards[5:10], [crops(8)[key] for key in keys[:5]]):  # the next epoch's, another seed's
        assert not all(map(same, forwards[:5], others))


def test_no_two_draws_of_a_crop_have_the_same_random_numbers(
    pairs: PairSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Mock(wraps=DerainDataset._generator)
    monkeypatch.setattr(DerainDataset, "_generator", generator)
    real = RealCrops(pairs, Training(patch_size=16), ImageCache("off"))
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
def test_crops_are_the_same_in_every_version(tmp_path: Path, options: dict[str, Any], checksum: int) -> None:
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


def test_batches_are_those_bytes_as_float32(pairs: PairSet) -> None:
    crops = pair_crops(pairs, 32)
    crop = crops[0, 0]["rainy"]
    assert crop.dtype == torch.uint8 and crop.shape == (3, 32, 32)
    batches = Batches([crops], ALONE, range(2), batch_size=5, accumulate=1, seed=0, workers=0)
    (batch,) = next(iter(batches))
    keys = next(iter(batches.streams[0]))
    expected = torch.stack([to_tensor(as_uint8(crops[key]["rainy"])) for key in keys])
    assert torch.equal(batch["rainy"], expected) and batch["rainy"].dtype == torch.float32


@pytest.mark.parametrize("augment", [False, True])
def test_crops_are_windows_of_both_sides_at_one_place(pairs: PairSet, augment: bool) -> None:
    crops, turned = pair_crops(pairs, 20, seed=3, augment=augment), 0
    for key in itertools.product(range(4), range(5)):
        both = np.dstack([image for image in read_pair(pairs.pairs[key[1]]) if image is not None])
        windows = {
            both[top : top + 20, left : left + 20].tobytes()
            for top in range(both.shape[0] - 19)
            for left in range(both.shape[1] - 19)
        }
        crop = np.dstack([as_uint8(crops[key][side]) for side in ("rainy", "clean")])
        eight = [np.rot90(crop, k)[:, ::flip] for k in range(4) for flip in (1, -1)]
        matches = [view.tobytes() in windows for view in (eight if augment else eight[:1])]
        assert any(matches)
        turned += not matches[0]
    assert (turned > 10) == augment


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (5, 3), (40, 9)])
def test_small_images_are_reflected(tmp_path: Path, size: tuple[int, int]) -> None:
    image = layouts.clean_image(1, size)
    write_image(tmp_path / "real/1.png", image)
    crops = RealCrops(find_images([tmp_path / "real"]), Training(patch_size=24), ImageCache("off"))
    crop = as_uint8(crops[(0, 0)]["real_rainy"])
    expected = cv2.copyMakeBorder(image, 0, 100, 0, 100, cv2.BORDER_REFLECT_101)
    places = itertools.product(*(range(max(1, side - 23)) for side in size))
    windows = [expected[top : top + 24, left : left + 24] for top, left in places]
    assert any(np.array_equal(crop, window) for window in windows)


def test_cache_and_workers_change_nothing(pairs: PairSet, tmp_path: Path) -> None:
    real = find_images([layouts.real_images(tmp_path / "real")])
    for make in (
        lambda cache: pair_crops(pairs, 16, cache, recombine=True, backgrounds=[real]),
        lambda cache: RealCrops(real, Training(patch_size=16), ImageCache(cache)),
    ):
        plain = batches(make("off"), steps=6)
        assert len(plain) == 6
        for cache, workers in (("on", 0), ("on", 2), ("off", 2)):
            for batch, expected in zip(batches(make(cache), steps=6, workers=workers), plain, strict=True):
                assert same(batch, expected)


def test_the_cache_decodes_once_and_says_so(pairs: PairSet, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = pair_crops(pairs, 16, "auto")
    assert "images are cached in memory: 0.00 GB" in crops.messages[-1]
    assert "as asked" in pair_crops(pairs, 16).messages[-1]
    monkeypatch.setattr(loading, "read_image", lambda path: pytest.fail(f"{path} was decoded again"))
    assert crops[(0, 0)]["rainy"].shape == (3, 16, 16)


def test_one_cache_decides_for_each_set_whether_it_fits(
    pairs: PairSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_crops_survive_pickling_without_their_cache(pairs: PairSet) -> None:
    crops = pair_crops(pairs, 16, "on")
    packed = pickle.dumps(crops)
    assert len(packed) < 10_000
    assert same(pickle.loads(packed)[(1, 2)], crops[(1, 2)])


def test_a_real_folder_beside_the_pairs_is_found_where_none_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts.rain200(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    recipe = student(tmp_path, real_path=REAL)
    with pytest.raises(UserError, match=r"datasets/Real is not a folder: --real_path takes"):
        RealCrops.of(recipe, ImageCache("off"))
    layouts.real_images(tmp_path / "data/Real")
    with pytest.raises(UserError, match=r"nowhere is not a folder"):  # given: nothing stands in for it
        RealCrops.of(student(tmp_path, real_path=(tmp_path / "nowhere",)), ImageCache("off"))
    assert RealCrops.of(recipe, ImageCache("off")).roots == [tmp_path / "data/Real"]


# ------------------------------------------------------------------------------------------------------ order


def stream(count: int, batch: int, start: int, stop: int, rank: int = 0, world: int = 1) -> list:
    steps, mine = range(start, stop), range(rank, rank + 1)
    return list(BatchStream(count, batch, seed=5, steps=steps, parts=world, mine=mine))


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (5, 8)])  # a batch may be of several epochs
def test_every_epoch_has_each_entry_once_in_another_order(count: int, batch: int) -> None:
    drawn = [key for keys in stream(count, batch, 0, 4 * count // batch + 1) for key in keys]
    orders = [tuple(index for e, index in drawn if e == epoch) for epoch in range(4)]
    assert all(sorted(order) == list(range(count)) for order in orders) and len(set(orders)) == 4


@pytest.mark.parametrize("count", [3, 10, 50])
def test_order_does_not_depend_on_start_processes_or_parts(count: int) -> None:
    whole = stream(count, 8, 0, 9)
    assert stream(count, 8, 4, 9) == whole[4:]
    for world in (2, 4):
        shares = [stream(count, 8, 2, 9, rank, world) for rank in range(world)]
        assert [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == whole[2:]
    two = list(BatchStream(count, 8, seed=5, steps=range(2, 9), parts=4, mine=range(2, 4)))  # accumulated
    assert two == [part for step in zip(*shares[2:], strict=True) for part in step]


def test_uneven_split_is_refused_with_what_works() -> None:
    for batch, world in ((12, 5), (3, 2), (2, 4)):
        refusal = f"a batch of {batch} does not split over {world} processes .*: give multiples of {world} as"
        with pytest.raises(UserError, match=refusal):
            stream(10, batch, 0, 1, 0, world)


def test_pairs_and_real_images_are_shuffled_apart(pairs: PairSet) -> None:
    orders = [list(BatchStream(50, 50, tag=each.tag, steps=range(1))) for each in (PairCrops, RealCrops)]
    assert orders[0] != orders[1]


# ---------------------------------------------------------------------------------------------- recombination


def test_recombined_crops_are_a_layer_on_another_background(pairs: PairSet, tmp_path: Path) -> None:
    backgrounds = tmp_path / "backgrounds"
    for n in range(5):
        write_image(backgrounds / f"{n}.png", layouts.clean_image(100 + n))
    assert "holds real images" in why_not_recombined(find_images([backgrounds]))
    usual = pair_crops(pairs, 24)
    crops = pair_crops(pairs, 24, recombine=True, backgrounds=[find_images([backgrounds])])
    other_background = 0
    for key in itertools.product(range(6), range(5)):
        true, made = ({side: as_uint8(c).astype(int) for side, c in of[key].items()} for of in (usual, crops))
        # of the channel that is clipped the least
        layer = (true["rainy"] - true["clean"]).max(axis=2, keepdims=True)
        assert np.array_equal(made["rainy"], np.minimum(255, made["clean"] + layer))
        other_background += not np.array_equal(made["clean"], true["clean"])
    assert other_background > 20


@pytest.mark.parametrize("zoom", [1.001, 1.5, 0.8])
def test_an_enlarged_window_lies_within_its_layer_and_reaches_all_of_it(zoom: float) -> None:
    across, down = np.meshgrid(np.arange(100), np.arange(70))
    for ramp, axis, length in ((across, 1, 100), (down, 0, 70)):
        rngs = map(np.random.default_rng, range(200))
        warps = [_random_warp(ramp.shape, 32, 0.0, zoom, rng) for rng in rngs]
        windows = [_warped(100 * ramp[part], warp, 32) / 100 for warp, part in warps]
        for each in windows:  # beyond its edge, by half a pixel at most, a layer is mirrored
            assert np.allclose(np.diff(each[:-1, :-1], axis=axis), 1 / zoom, atol=0.05)
        assert np.min(windows) < 3 and np.max(windows) > length - 4


@pytest.mark.parametrize("size", [16, 60, 300])
@pytest.mark.parametrize("angle", [0.0, 45.0, -80.0])
def test_a_warp_reads_no_pixel_outside_its_part_of_the_layer(size: int, angle: float) -> None:
    layer = np.random.default_rng(0).integers(0, 256, (70, 100)).astype(np.uint8)
    for seed, zoom in enumerate((0.5, 1.0, 1.3, 2.0) * 3):
        warp, part = _random_warp(layer.shape, size, angle, zoom, np.random.default_rng(seed))
        whole = warp.copy()
        whole[:, 2] -= warp[:, :2] @ [part[1].start, part[0].start]
        assert np.array_equal(_warped(layer[part], warp, size), _warped(layer, whole, size))
        if size == 16:
            assert layer[part].size < layer.size / 2


def test_every_pixel_can_be_in_a_crop():
    image = np.arange(18 * 19).reshape(18, 19, 1)
    rng = np.random.default_rng(0)
    corners = {int(random_crop((image,), 16, rng)[0][0, 0, 0]) for _ in range(300)}
    assert corners == {19 * top + left for top in range(3) for left in range(4)}
