"""One's own photographs, folders and videos."""

import errno
import itertools
import re
import shutil
import threading
import warnings
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

import derain
import utils
from machinery import inference
from machinery.backbones import AutocastModel
from machinery.inference import CPU, OVERLAP, SLACK, Derainer, bytes_a_pixel, tile_that_fits
from machinery.lightnet import Encoded, LightNet
from networks import Derained, DerainNet
from photographs.pictures import Picture, encoded, read_picture
from tests import layouts
from tests.small import evaluation, teacher, trained
from tests.test_pictures import SRGB, noise, photograph
from utils import UserError, read_image, write_image


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    trained(teacher(folder, steps=1))
    return evaluation(folder).logdir


@pytest.fixture
def call(monkeypatch, tmp_path, model):
    """derain.py with these words: into out/, by the small model."""

    def call(*words) -> None:
        line = ["--logdir", model, "--save_path", tmp_path / "out", "--use_GPU", "0", *words]
        monkeypatch.setattr("sys.argv", ["derain.py", *map(str, line)])
        derain.main()

    return call


def written(tmp_path) -> list[str]:
    files = (path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != derain.RECORD)
    return sorted(path.relative_to(tmp_path / "out").as_posix() for path in files)


class Identity(DerainNet):
    """Stands for a network: what tiles do to an image is then their blending alone."""

    def forward(self, rainy):
        return Derained(rainy, rainy, rainy)


@pytest.mark.parametrize(
    ("size", "tiles"), [((300, 700), 8), ((257, 256), 2), ((64, 900), 5), ((256, 256), 1)]
)
def test_tiles_cover_every_pixel_once_and_each_is_told_in_each_view(size, tiles):
    derainer = Derainer(Identity((4, 6, 8), (1, 1, 1)), tile=256, self_ensemble=True)
    told: list[float] = []
    derainer.progress = told.append
    rainy = torch.rand(3, *size)
    assert torch.allclose(derainer.derained(rainy), rainy, atol=1e-6)
    assert told == pytest.approx([k / tiles / 8 for k in range(1, 8 * tiles + 1)])


@pytest.mark.parametrize("side", [257, 300, 641, 1000, 2160, 3840])
@pytest.mark.parametrize("tile", [256, 300, 640, 1000])
def test_tiles_begin_on_multiples_of_32_overlap_and_are_no_larger_than_asked(side, tile):
    spans = Derainer(Identity((4, 6, 8), (1, 1, 1)), tile=tile)._spans(side)
    assert spans[0].start == 0 and spans[-1].stop >= side and spans[-1].start < side - OVERLAP
    assert all(span.start % 32 == 0 and span.stop - span.start <= tile for span in spans)
    assert all(one.stop - two.start == OVERLAP for one, two in itertools.pairwise(spans))


def test_the_tile_is_as_large_as_the_free_memory_allows(monkeypatch):
    sizes = [tile_that_fits(2000, memory) for memory in (0, 1e6, 1e9, 4e9)]
    assert sizes[:2] == [256, 256] and sizes[3] == pytest.approx(2 * sizes[2], abs=32)
    assert SLACK * 2000 * sizes[2] ** 2 <= 1e9
    net = DerainNet((4, 6, 8), (2, 1, 1))
    smaller, larger = (bytes_a_pixel(DerainNet((c, c, c), (1, 1, 1)), CPU) for c in (4, 8))
    assert 1.5 * smaller < larger < 3 * smaller
    monkeypatch.setattr(
        "machinery.inference.memory_to_use", lambda device: SLACK * 300**2 * bytes_a_pixel(net, CPU)
    )
    derainer, small = Derainer(net, tile=None), torch.rand(3, 40, 200)
    with torch.no_grad():  # and is the network's own
        assert torch.allclose(derainer.derained(small), net(small[None]).derained[0], atol=1e-6)
    assert derainer.tile is None  # small images need not know
    derainer.derained(torch.rand(3, 40, 320))
    assert derainer.tile == 288
    monkeypatch.setattr("machinery.inference.memory_to_use", lambda device: 1e15)
    derainer.tile = None
    derainer.derained(torch.rand(3, 40, 320))
    assert derainer.tile == 800  # on a CPU


def test_folders_keep_places_names_and_formats_that_lose_nothing(tmp_path, call):
    for name in ("a.jpg", "b.png", "c.tif", "d.bmp", "e.webp", "day two/1.jpg", ".hidden/x.png"):
        write_image(tmp_path / "holiday" / name, layouts.pair(1)[0])
    write_image(tmp_path / "1.jpg", layouts.pair(5, (40, 300))[0])
    call(tmp_path / "1.jpg", tmp_path / "holiday")
    inner = ["a.png", "b.png", "c.tif", "d.bmp", "day two/1.png", "e.png"]
    assert written(tmp_path) == ["1.png", *(f"holiday/{name}" for name in inner)]
    assert read_image(tmp_path / "out/1.png").shape == (40, 300, 3)
    call(tmp_path / "1.jpg", "--format", "jpg")
    assert "1.jpg" in written(tmp_path)


def test_what_a_picture_is_stays(tmp_path, call, model):
    deep = Picture(noise((20, 30, 3), np.uint16), noise((20, 30), np.uint16, 1), icc=SRGB)
    (tmp_path / "deep.png").write_bytes(encoded(deep, ".png")[0])
    call(tmp_path / "deep.png", "--precision", "float32")
    made = read_picture(tmp_path / "out/deep.png")
    assert np.array_equal(made.pixels, Derainer.open(model).photograph(deep).pixels)
    assert made.icc == SRGB and made.alpha is not None
    assert np.array_equal(made.alpha, noise((20, 30), np.uint16, 1))


def test_what_is_there_is_skipped_until_it_is_asked_for_again(tmp_path, call, capsys):
    folder = layouts.real_images(tmp_path / "in")

    def outcome(*words) -> str:
        call(folder, *words)
        return capsys.readouterr().out.splitlines()[-1]

    assert outcome() == "derained 3; skipped 0; failed 0"
    (tmp_path / "out/in/1.png").write_bytes(b"somebody's own")
    (tmp_path / "out/in/2.png").unlink()
    assert outcome().startswith("derained 1; skipped 2")
    assert (tmp_path / "out/in/1.png").read_bytes() == b"somebody's own"
    assert outcome("--again").startswith("derained 3; skipped 0")
    assert read_image(tmp_path / "out/in/1.png").shape[2] == 3


def test_two_inputs_never_become_one_result(tmp_path, call):
    for number, name in enumerate(("10.jpg", "10.webp", "11.jpg")):
        write_image(tmp_path / "in" / name, layouts.pair(number)[0])
    call(tmp_path / "in")
    assert written(tmp_path) == ["in/10.jpg.png", "in/10.webp.png", "in/11.png"]
    write_image(tmp_path / "other/in/11.jpg", layouts.pair(1)[0])
    with pytest.raises(UserError, match="several inputs would become"):
        call(tmp_path / "in", tmp_path / "other/in")


def test_results_never_lie_among_the_inputs_however_they_are_spelt(tmp_path, call, monkeypatch):
    out = tmp_path / "out"
    write_image(out / "1.png", layouts.pair(1)[0])
    before = (out / "1.png").read_bytes()
    monkeypatch.chdir(out)
    for name, there in ((out, out), (out / "1.png", out), (".", ".."), ("1.png", "."), (".", "../out")):
        with pytest.raises(UserError, match=r"contains the input .*: give another"):
            call(name, "--save_path", there, "--again")
    assert (out / "1.png").read_bytes() == before and list(tmp_path.iterdir()) == [out]
    write_image(tmp_path / "2.jpg", layouts.pair(2)[0])
    for _ in range(2):  # a folder around them is read without them
        call(tmp_path)
    assert written(tmp_path) == ["1.png", f"{tmp_path.name}/2.png"]
    for folder in (tmp_path, out):  # of two inputs one would lie over the other
        write_image(folder / "a/b/1.png", layouts.pair(1)[0])
    with pytest.raises(UserError, match="is an input and would be overwritten: give another"):
        call(tmp_path / "a", out / "a/b")


def test_the_page_shows_what_was_skipped_too(tmp_path, call):
    folder = layouts.real_images(tmp_path / "in", 2)
    call(folder)
    layouts.real_images(tmp_path / "in", 3)
    call(folder, "--compare")
    assert (tmp_path / "out/index.html").read_text().count("<article") == 3


def test_an_array_of_another_kind_is_refused_and_one_that_may_not_be_written_is_not(model):
    derainer, image = Derainer.open(model), np.zeros((8, 9, 3), np.uint8)
    for other in (image[..., 0], image[..., :2], image.astype(np.float32)):
        with pytest.raises(UserError, match=r"an image is uint8 RGB, \(H, W, 3\), not "):
            derainer(other)
    image.flags.writeable = False  # as Pillow's are
    with warnings.catch_warnings(action="error"):
        assert derainer(image).shape == image.shape


def test_strength_blends_with_the_input(tmp_path, call):
    write_image(tmp_path / "x.png", layouts.pair(1)[0])
    made = {}
    for strength in ("0", "0.5", "1"):
        call(tmp_path / "x.png", "--again", "--strength", strength)
        made[strength] = read_image(tmp_path / "out/x.png").astype(int)
    assert np.array_equal(made["0"], layouts.pair(1)[0])
    inside = (made["1"] > 0) & (made["1"] < 255)  # what is clamped lies elsewhere
    assert np.abs(made["0"] + made["1"] - 2 * made["0.5"])[inside].max() <= 2
    assert not np.array_equal(made["0"], made["1"])


def test_the_page_names_files_that_a_browser_shows(tmp_path, call, model):
    folder = layouts.real_images(tmp_path / "in", 2)
    photograph(folder / "wide.tif")
    call(folder, "--compare", "--precision", "float32")
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("<article") == 3 and "--strength 1" in page
    shown = re.findall(r'data-(?:derained|rainy)="([^"]+)"', page)
    assert len(shown) == 6 and all((tmp_path / "out" / name).is_file() for name in shown)
    assert not any(name.endswith(".tif") for name in shown)
    after = Derainer.open(str(model))(read_image(folder / "2.jpg"))
    assert np.array_equal(read_image(tmp_path / "out/in/2.png"), after)


def test_what_cannot_be_derained_stops_nothing_else(tmp_path, call, monkeypatch, capsys):
    """Broken, a link to itself, out of memory."""
    folder = layouts.real_images(tmp_path / "in", 4)
    (folder / "2.jpg").write_bytes(b"broken")
    (folder / "2b.png").symlink_to("2b.png")
    whole = Derainer.derained

    def derained(self, rainy):
        if rainy.shape[-1] == 22:
            raise MemoryError
        return whole(self, rainy)

    monkeypatch.setattr(Derainer, "derained", derained)
    names = r".*2\.jpg, .*2b\.png, .*4\.jpg"
    with pytest.raises(UserError, match=f"3 of 5 could not be derained: {names}"):
        call(folder)
    assert written(tmp_path) == ["in/1.png", "in/3.png"]
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == "derained 2; skipped 0; failed 3"
    assert [line for line in told if "4.jpg cannot be derained: " in line and "memory" in line]


def test_a_photograph_is_written_while_the_next_is_computed_and_ctrl_c_loses_none(
    tmp_path, call, monkeypatch, capsys
):
    folder = layouts.real_images(tmp_path / "in", 4)
    derain_one, write, second = Derainer.derained, utils.write_atomically, threading.Event()
    computed: list[str] = []

    def derained(self, rainy):
        computed.append("")
        if len(computed) == 2:
            second.set()
        if len(computed) == 4:
            raise KeyboardInterrupt
        return derain_one(self, rainy)

    def written_late(path, fill):
        assert second.wait(60)
        if path.name == "2.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, fill)

    monkeypatch.setattr(Derainer, "derained", derained)
    monkeypatch.setattr(utils, "write_atomically", written_late)
    with pytest.raises(KeyboardInterrupt):
        call(folder)
    assert written(tmp_path) == ["in/1.png", "in/3.png"]
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 1 and "2.jpg cannot be derained: No space left on device" in failed[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["good.png", "nothing.jpg"], "nothing.jpg does not exist"),
        (["good.png", "IMG_1.HEIC"], r"IMG_1\.HEIC is of an unsupported format: save it as JPEG"),
        (["good.png", "empty"], "has no photographs"),
        ([], "or --serve"),
        (["good.png", "--serve"], "leave out good.png"),
        (["good.png", "--tile", "100"], "--tile 100 is too small: 256 at least, or 0"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is(tmp_path, call, monkeypatch, words, says):
    (tmp_path / "IMG_1.HEIC").touch()
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / "good.png", layouts.pair(1)[0])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        call(*words)
    assert not (tmp_path / "out").exists()


def test_what_a_folder_walk_leaves_out_is_named(tmp_path, call, capsys):
    folder = layouts.real_images(tmp_path / "phone", 1)
    for name in ("IMG_1.HEIC", "clip.mp4", "p.ppm", ".hidden"):
        (folder / name).write_bytes(b"")
    layouts.real_images(tmp_path / "elsewhere", 1)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    call(folder)
    told = capsys.readouterr().out.splitlines()
    left_out = "left out IMG_1.HEIC, clip.mp4, linked, p.ppm: name videos and linked folders"
    assert left_out in told[0]


def test_another_photograph_of_the_same_name_is_not_skipped_nor_overwritten(tmp_path, call, capsys):
    for day in (1, 2):
        write_image(tmp_path / f"day{day}/IMG_1.png", layouts.pair(day)[0])
    call(tmp_path / "day1/IMG_1.png")
    first = (tmp_path / "out/IMG_1.png").read_bytes()
    with pytest.raises(UserError, match="1 of 1 could not be derained"):
        call(tmp_path / "day2/IMG_1.png", "--compare")
    assert "IMG_1.png was made from another file: give another --save_path" in capsys.readouterr().out
    assert written(tmp_path) == ["IMG_1.png"] and (tmp_path / "out/IMG_1.png").read_bytes() == first
    call(tmp_path / "day2/IMG_1.png", "--again")
    assert (tmp_path / "out/IMG_1.png").read_bytes() != first
    shutil.copy(tmp_path / "day2/IMG_1.png", tmp_path / "IMG_1.png")
    capsys.readouterr()
    call(tmp_path / "IMG_1.png", "--compare", "--again")
    call(tmp_path / "IMG_1.png", "--compare")  # the same photograph elsewhere is the same
    assert "derained 0; skipped 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "avx", "amx", "best"),
    [
        ("Intel Xeon", True, False, "float32"),
        ("AMD EPYC", True, False, "bfloat16"),
        ("Intel Xeon", True, True, "bfloat16"),
        ("AMD EPYC", False, False, "float32"),
    ],
)
def test_bfloat16_is_used_on_processors_that_run_it_faster(monkeypatch, name, avx, amx, best):
    monkeypatch.setattr(inference, "hardware", lambda device: name)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert inference.best_precision(CPU) == best


def test_half_of_the_memory_left_to_a_container_is_used(monkeypatch):
    monkeypatch.setattr(inference.psutil, "virtual_memory", lambda: SimpleNamespace(available=8e9))
    limits = {"memory.max": "1000000000", "memory.current": "200000000"}
    monkeypatch.setattr(inference.Path, "read_text", lambda path, *_: limits[path.name])
    assert inference.memory_to_use(CPU) == 4e8
    limits["memory.max"] = "max"
    assert inference.memory_to_use(CPU) == inference.MOST_MEMORY


def test_bytes_a_pixel_do_not_count_autocast_copies_of_the_weights():
    single, half = (bytes_a_pixel(AutocastModel(LightNet(), each), CPU) for each in ("float32", "bfloat16"))
    assert 0.5 * single < half < 0.65 * single


@pytest.mark.parametrize("channels", [(24, 48, 96, 144, 192), (8, 16, 24), (16, 128, 256)])
def test_lightnet_states_an_upper_bound_of_its_bytes_a_pixel(channels):
    net = LightNet(channels, [2] * len(channels), context=True)
    assert 0.6 * net.bytes_a_pixel < bytes_a_pixel(AutocastModel(net), CPU) < net.bytes_a_pixel
    if len(channels) == 5:
        assert tile_that_fits(net.bytes_a_pixel, inference.MOST_MEMORY) >= inference.CPU_SIDE


def test_no_map_of_a_tile_has_more_than_2_to_the_31_elements():
    assert tile_that_fits(bytes_a_pixel(Identity((4, 6, 8), (1, 1, 1)), CPU), 1e15) > 4096
    for pixel in (200, 2300):  # no map can have more elements than half of the bytes
        assert 2**30 < tile_that_fits(pixel, 1e15) ** 2 * pixel / 2 <= 2**31


class AsBrightAsTheImage(torch.nn.Module):
    """A network that needs the mean of the whole image."""

    context = True

    def encoded(self, rainy):
        return Encoded(rainy, ())

    def forward(self, rainy, image_mean=None, encoded=None):
        mean = rainy.mean() if image_mean is None else image_mean
        assert encoded is None or torch.equal(encoded.deepest, rainy)
        return Derained(mean.expand_as(rainy), rainy, rainy)


@pytest.mark.parametrize("kept, looked_at", [(1e9, 30), (1e6, 15), (0, 15)])
def test_tiles_know_the_mean_of_the_whole_image(monkeypatch, kept, looked_at):
    monkeypatch.setattr(inference, "memory_to_use", lambda device: 2 * kept)
    net = AsBrightAsTheImage()
    rainy = torch.linspace(0, 1, 6 * 256).expand(3, 6 * 192, -1)
    with mock.patch.object(net, "encoded", wraps=net.encoded) as measured:
        derainer, told = Derainer(net, tile=320), list[float]()
        derainer.progress = told.append
        made = derainer.derained(rainy)
    assert measured.call_count == looked_at == len(told) - 30
    assert told == sorted(told) and told[-1] == pytest.approx(1)
    assert torch.allclose(made, rainy.mean().expand_as(made), atol=0.03)
