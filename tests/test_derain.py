"""One's own photographs, folders and videos."""

import itertools
import re
import shutil
import warnings

import numpy as np
import pytest
import torch

import derain
from inference import CPU, LIGHT, OVERLAP, SLACK, Derainer, bytes_a_pixel, tile_that_fits
from networks import Derained, DerainNet
from photographs.pictures import Picture, encoded, read_picture
from tests import layouts
from tests.small import evaluation, teacher, trained
from tests.test_networks import small_network
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
    files = (path for path in (tmp_path / "out").rglob("*") if path.is_file())
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
    net = small_network()
    smaller, larger = (bytes_a_pixel(DerainNet((c, c, c), (1, 1, 1)), CPU) for c in (4, 8))
    assert 1.5 * smaller < larger < 3 * smaller
    monkeypatch.setattr("inference.memory_to_use", lambda device: SLACK * 300**2 * bytes_a_pixel(net, CPU))
    derainer, small = Derainer(net, tile=None), torch.rand(3, 40, 200)
    with torch.no_grad():  # and is the network's own
        assert torch.allclose(derainer.derained(small), net(small[None]).derained[0], atol=1e-6)
    assert derainer.tile is None  # small images need not know
    derainer.derained(torch.rand(3, 40, 320))
    assert derainer.tile == 288


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
    path = photograph(tmp_path / "x.jpg", orientation=6)
    deep = Picture(noise((20, 30, 3), np.uint16), noise((20, 30), np.uint16, 1))
    (tmp_path / "deep.png").write_bytes(encoded(deep, ".png")[0])
    call(path, tmp_path / "deep.png", "--precision", "float32", "--darker", "255")
    picture = read_picture(tmp_path / "out/x.png")
    assert picture.pixels.shape == (64, 40, 3) and picture.icc == SRGB and len(picture.exif)
    again = read_picture(tmp_path / "out/deep.png")
    derained = Derainer.open(model).derained(deep.tensor())
    assert np.array_equal(again.pixels, deep.with_pixels(derained).pixels)
    assert again.alpha is not None and np.array_equal(again.alpha, noise((20, 30), np.uint16, 1))


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
        with pytest.raises(UserError, match="which is read: give another"):
            call(name, "--save_path", there, "--again")
    assert (out / "1.png").read_bytes() == before and list(tmp_path.iterdir()) == [out]
    write_image(tmp_path / "2.jpg", layouts.pair(2)[0])
    for _ in range(2):  # a folder around them is read without them
        call(tmp_path)
    assert written(tmp_path) == ["1.png", f"{tmp_path.name}/2.png"]
    for folder in (tmp_path, out):  # of two inputs one would lie over the other
        write_image(folder / "a/b/1.png", layouts.pair(1)[0])
    with pytest.raises(UserError, match="is read, and would be written: give another"):
        call(tmp_path / "a", out / "a/b")


def test_what_lies_beside_a_result_is_not_written_over_and_the_page_stays_whole(tmp_path, call):
    folder = layouts.real_images(tmp_path / "in", 2)
    (tmp_path / "out/in").mkdir(parents=True)
    (tmp_path / "out/in/1_compare.png").write_bytes(b"somebody's own")
    call(folder, "--compare")
    assert (tmp_path / "out/in/1_compare.png").read_bytes() == b"somebody's own"
    layouts.real_images(tmp_path / "in", 3)
    call(folder, "--compare")
    assert (tmp_path / "out/index.html").read_text().count("<article") == 3
    (tmp_path / "out/index.html").write_text("mine")
    shutil.rmtree(tmp_path / "out/page")
    with pytest.raises(UserError, match="is no page of ours"):
        call(folder, "--compare")
    write_image(tmp_path / "twice/p.png", layouts.pair(1)[0])
    write_image(tmp_path / "twice/p_compare.png", layouts.pair(2)[0])
    with pytest.raises(UserError, match="several inputs would become"):
        call(tmp_path / "twice", "--compare", "--again")


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
        call(tmp_path / "x.png", "--again", "--strength", strength, "--darker", "255")
        made[strength] = read_image(tmp_path / "out/x.png").astype(int)
    assert np.array_equal(made["0"], layouts.pair(1)[0])
    inside = (made["1"] > 0) & (made["1"] < 255)  # what is clamped lies elsewhere
    assert np.abs(made["0"] + made["1"] - 2 * made["0.5"])[inside].max() <= 2
    assert not np.array_equal(made["0"], made["1"])


class Darker(Identity):
    """Stands for a network: takes `share` of all light away."""

    share = 0.1

    def forward(self, rainy):
        derained = (1 - self.share) * rainy
        return Derained(derained, derained, derained)


@pytest.mark.parametrize("darker", [0.0, 2.0, 9.0, 255.0])
def test_a_result_that_is_much_darker_is_brightened_but_for_what_may_go(darker):
    image = noise((90, 120, 3), np.uint8)
    image[:9], image[9:18] = 0, 255
    net = Darker((4, 6, 8), (1, 1, 1))
    made, bare = Derainer(net, darker=darker)(image), Derainer(net)(image)
    fall = image.mean() - bare.mean()
    asked = min(max(darker, fall - LIGHT), fall)
    assert asked - 0.2 < image.mean() - made.mean() <= asked + 1e-3 and not made[:9].any()
    assert (fall, bare.max()) == pytest.approx((0.1 * image.mean(), 229.5), abs=0.5)
    order = np.argsort(image, axis=None, kind="stable")
    assert (np.diff(made.reshape(-1)[order].astype(int)) >= 0).all()  # by one curve
    for share in (0.002, -0.3):  # what is hardly darker, or brighter, is left alone
        net.share = share
        assert np.array_equal(Derainer(net, darker=2)(image), Derainer(net)(image))


def test_a_result_without_any_light_stays_so():
    net, image = Darker((4, 6, 8), (1, 1, 1)), np.full((40, 40, 3), 200, np.uint8)
    net.share = 1.0
    assert not Derainer(net, darker=2)(image).any()


def test_before_and_after_streaks_and_the_page(tmp_path, call, model):
    folder = layouts.real_images(tmp_path / "in", 2)
    photograph(folder / "wide.tif")
    call(folder, "--compare", "--streaks", "--precision", "float32")
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("<article") == 3 and "--strength 1, --darker 2" in page
    shown = re.findall(r'data-(?:derained|rainy)="([^"]+)"', page)
    assert len(shown) == 6 and all((tmp_path / "out" / name).is_file() for name in shown)
    assert not any(name.endswith(".tif") for name in shown)
    before, after = read_image(folder / "2.jpg"), read_image(tmp_path / "out/in/2.png")
    assert np.array_equal(read_image(tmp_path / "out/in/2_compare.png"), np.hstack([before, after]))
    assert np.array_equal(after, Derainer.open(str(model), darker=2)(before))
    streaks = before.astype(int) - Derainer.open(str(model))(before)  # as the README has it
    assert np.abs(read_image(tmp_path / "out/in/2_streaks.png") - streaks.clip(0)).max() <= 1


def test_what_cannot_be_derained_stops_nothing_else(tmp_path, call, monkeypatch, capsys):
    """Broken, empty, a link that leads to itself, beyond the memory."""
    folder = layouts.real_images(tmp_path / "in", 4)
    (folder / "2.jpg").write_bytes(b"broken")
    (folder / "2a.png").write_bytes(b"")
    (folder / "2b.png").symlink_to("2b.png")
    whole = Derainer.derained

    def derained(self, rainy):
        if rainy.shape[-1] == 22:
            raise MemoryError
        return whole(self, rainy)

    monkeypatch.setattr(Derainer, "derained", derained)
    names = r".*2\.jpg, .*2a\.png, .*2b\.png, .*4\.jpg"
    with pytest.raises(UserError, match=f"4 of 6 could not be derained: {names}"):
        call(folder)
    assert written(tmp_path) == ["in/1.png", "in/3.png"]
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == "derained 2; skipped 0; failed 4" and "4.jpg: the memory is used up" in told[-2]
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(UserError):
        call(folder / "1.jpg", "--save_path", tmp_path / "round")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("nothing.jpg", "nothing.jpg does not exist"),
        ("notes.txt", "neither a photograph nor a video"),
        ("empty", "holds no photographs"),
        ("IMG_1.HEIC", r"IMG_1\.HEIC is of a kind that is not read: save it as JPEG"),
    ],
)
def test_what_is_no_input_is_named_before_anything_is_done(tmp_path, call, word, says):
    for name in ("notes.txt", "IMG_1.HEIC"):
        (tmp_path / name).write_text("text")
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / "good.png", layouts.pair(1)[0])
    with pytest.raises(UserError, match=says):
        call(tmp_path / "good.png", tmp_path / word)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give --serve"),
        (["x.png", "--serve"], "leave out x.png"),
        (["x.png", "--tile", "100"], "too small: 256 at least"),
        (["x.png", "--tile", "1" + "0" * 400], "--tile has too many digits (401)"),
        (["x.png", "--format", "gif"], "invalid choice"),
    ],
)
def test_options_that_contradict_each_other_are_refused(call, capsys, words, says):
    with pytest.raises(SystemExit):
        call(*words)
    assert says in capsys.readouterr().err


def test_what_a_folder_holds_of_other_kinds_is_told(tmp_path, call, capsys):
    folder = layouts.real_images(tmp_path / "phone", 1)
    for name in ("IMG_1.HEIC", "clip.mp4", "notes.txt"):
        (folder / name).write_bytes(b"")
    call(folder)
    told = next(line for line in capsys.readouterr().out.splitlines() if "left out" in line)
    assert "IMG_1.HEIC" in told and "clip.mp4" in told and "notes.txt" not in told
