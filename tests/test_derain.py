"""One's own photographs, folders and videos."""

import itertools
import os
import re
import shutil

import numpy as np
import pytest
import torch

import derain
from inference import CPU, OVERLAP, SLACK, Derainer, bytes_a_pixel, tile_that_fits
from machinery.pictures import Picture, encoded, read_picture
from networks import Derained, DerainNet
from tests import layouts
from tests.small import evaluation, teacher, trained
from tests.test_networks import small_network
from tests.test_pictures import SRGB, noise, photograph
from utils import HERE, UserError, read_image, write_image


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    trained(teacher(folder, steps=1))
    return evaluation(folder).logdir


def call(monkeypatch, tmp_path, model, *words) -> None:
    line = [*words, "--logdir", model, "--save_path", tmp_path / "out", "--use_GPU", "0"]
    monkeypatch.setattr("sys.argv", ["derain.py", *map(str, line)])
    derain.main()


def written(tmp_path) -> list[str]:
    files = (path for path in (tmp_path / "out").rglob("*") if path.is_file())
    return sorted(path.relative_to(tmp_path / "out").as_posix() for path in files)


class Identity(DerainNet):
    """Stands for a network: what tiles do to an image is then their blending alone."""

    def forward(self, rainy):
        return Derained(rainy, rainy, rainy)


@pytest.mark.parametrize("size", [(300, 700), (257, 256), (64, 900), (256, 256)])
def test_tiles_cover_every_pixel_once(size):
    rainy = torch.rand(3, *size)
    tiled = Derainer(Identity((4, 6, 8), (1, 1, 1)), tile=256).derained(rainy)
    assert torch.allclose(tiled, rainy, atol=1e-6)


def test_a_tile_that_holds_the_image_changes_nothing():
    net, rainy = small_network(), torch.rand(3, 100, 260)
    whole = Derainer(net, tile=320).derained(rainy)
    with torch.no_grad():
        assert torch.allclose(whole, net(rainy[None]).derained[0], atol=1e-6)


def test_progress_is_told_after_each_tile_of_each_view():
    derainer = Derainer(Identity((4, 6, 8), (1, 1, 1)), tile=256, self_ensemble=True)
    told: list[float] = []
    derainer.progress = told.append
    derainer.derained(torch.rand(3, 100, 400))
    assert told == pytest.approx([k / 16 for k in range(1, 17)])


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
    derainer = Derainer(net, tile=None)
    derainer.derained(torch.rand(3, 40, 200))
    assert derainer.tile is None  # small images need not know
    derainer.derained(torch.rand(3, 40, 320))
    assert derainer.tile == 288


def test_folders_keep_their_places_and_names(tmp_path, monkeypatch, model):
    folder = layouts.real_images(tmp_path / "holiday")
    layouts.real_images(folder / "day two", 1)
    write_image(folder / ".hidden/x.png", layouts.pair(1)[0])
    single = tmp_path / "1.jpg"
    write_image(single, layouts.pair(5, (40, 300))[0])
    call(monkeypatch, tmp_path, model, single, folder)
    names = ["1.png", "holiday/1.png", "holiday/2.png", "holiday/3.png", "holiday/day two/1.png"]
    assert written(tmp_path) == names
    assert read_image(tmp_path / "out/1.png").shape == (40, 300, 3)


def test_the_format_is_the_inputs_where_that_loses_nothing_or_what_is_asked(tmp_path, monkeypatch, model):
    for name in ("a.jpg", "b.png", "c.tif", "d.bmp", "e.webp"):
        write_image(tmp_path / "in" / name, layouts.pair(1)[0])
    call(monkeypatch, tmp_path, model, tmp_path / "in")
    assert written(tmp_path) == ["in/a.png", "in/b.png", "in/c.tif", "in/d.bmp", "in/e.png"]
    call(monkeypatch, tmp_path, model, tmp_path / "in/a.jpg", "--format", "jpg")
    assert "a.jpg" in written(tmp_path)


def test_what_a_picture_is_stays(tmp_path, monkeypatch, model):
    path = photograph(tmp_path / "x.jpg", orientation=6)
    deep = Picture(noise((20, 30, 3), np.uint16), noise((20, 30), np.uint16, 1))
    (tmp_path / "deep.png").write_bytes(encoded(deep, ".png")[0])
    call(monkeypatch, tmp_path, model, path, tmp_path / "deep.png", "--precision", "float32")
    picture = read_picture(tmp_path / "out/x.png")
    assert picture.pixels.shape == (64, 40, 3) and picture.icc == SRGB and len(picture.exif)
    again = read_picture(tmp_path / "out/deep.png")
    derained = Derainer.open(model).derained(deep.tensor())
    assert np.array_equal(again.pixels, deep.painted(derained).pixels)
    assert again.alpha is not None and np.array_equal(again.alpha, noise((20, 30), np.uint16, 1))


def test_what_is_there_is_skipped_until_it_is_asked_for_again(tmp_path, monkeypatch, model, capsys):
    folder = layouts.real_images(tmp_path / "in")

    def outcome(*words) -> str:
        call(monkeypatch, tmp_path, model, folder, *words)
        return capsys.readouterr().out.splitlines()[-1]

    assert outcome() == "derained 3; skipped 0; failed 0"
    (tmp_path / "out/in/1.png").write_bytes(b"somebody's own")
    (tmp_path / "out/in/2.png").unlink()
    assert outcome().startswith("derained 1; skipped 2")
    assert (tmp_path / "out/in/1.png").read_bytes() == b"somebody's own"
    assert outcome("--again").startswith("derained 3; skipped 0")
    assert read_image(tmp_path / "out/in/1.png").shape[2] == 3


def test_two_inputs_never_become_one_result(tmp_path, monkeypatch, model):
    for number, name in enumerate(("10.jpg", "10.webp", "11.jpg")):
        write_image(tmp_path / "in" / name, layouts.pair(number)[0])
    call(monkeypatch, tmp_path, model, tmp_path / "in")
    assert written(tmp_path) == ["in/10.jpg.png", "in/10.webp.png", "in/11.png"]
    write_image(tmp_path / "other/in/11.jpg", layouts.pair(1)[0])
    with pytest.raises(UserError, match="several inputs would become"):
        call(monkeypatch, tmp_path, model, tmp_path / "in", tmp_path / "other/in")


def test_results_never_lie_among_the_inputs(tmp_path, monkeypatch, model):
    write_image(tmp_path / "out/1.jpg", layouts.pair(1)[0])
    for given in (tmp_path / "out", tmp_path / "out/1.jpg"):
        with pytest.raises(UserError, match="which is read: give another"):
            call(monkeypatch, tmp_path, model, given)
    write_image(tmp_path / "2.jpg", layouts.pair(2)[0])
    for _ in range(2):  # a folder around them is read without them
        call(monkeypatch, tmp_path, model, tmp_path)
    assert written(tmp_path) == ["1.jpg", f"{tmp_path.name}/2.png"]


def test_no_spelling_of_a_folder_writes_over_a_photograph(tmp_path, monkeypatch, model):
    holiday = tmp_path / "holiday"
    write_image(holiday / "a.png", layouts.pair(1)[0])
    before = (holiday / "a.png").read_bytes()
    monkeypatch.chdir(holiday)
    for name, there in ((".", ".."), ("a.png", "."), (".", "../holiday")):
        words = (name, "--save_path", there)
        monkeypatch.setattr("sys.argv", ["derain.py", *words, "--again", "--logdir", str(model)])
        with pytest.raises(UserError, match=r"which is read|would be written"):
            derain.main()
    assert (holiday / "a.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_what_lies_beside_a_result_is_not_written_over_and_the_page_stays_whole(tmp_path, monkeypatch, model):
    folder = layouts.real_images(tmp_path / "in", 2)
    (tmp_path / "out/in").mkdir(parents=True)
    (tmp_path / "out/in/1_compare.png").write_bytes(b"somebody's own")
    call(monkeypatch, tmp_path, model, folder, "--compare")
    assert (tmp_path / "out/in/1_compare.png").read_bytes() == b"somebody's own"
    layouts.real_images(tmp_path / "in", 3)
    call(monkeypatch, tmp_path, model, folder, "--compare")
    assert (tmp_path / "out/index.html").read_text().count("<article") == 3
    (tmp_path / "out/index.html").write_text("mine")
    shutil.rmtree(tmp_path / "out/page")
    with pytest.raises(UserError, match="is no page of ours"):
        call(monkeypatch, tmp_path, model, folder, "--compare")
    write_image(tmp_path / "twice/p.png", layouts.pair(1)[0])
    write_image(tmp_path / "twice/p_compare.png", layouts.pair(2)[0])
    with pytest.raises(UserError, match="several inputs would become"):
        call(monkeypatch, tmp_path, model, tmp_path / "twice", "--compare", "--again")


def test_strength_blends_with_the_input(tmp_path, monkeypatch, model):
    write_image(tmp_path / "x.png", layouts.pair(1)[0])
    made = {}
    for strength in ("0", "0.5", "1"):
        call(monkeypatch, tmp_path, model, tmp_path / "x.png", "--again", "--strength", strength)
        made[strength] = read_image(tmp_path / "out/x.png").astype(int)
    assert np.array_equal(made["0"], layouts.pair(1)[0])
    inside = (made["1"] > 0) & (made["1"] < 255)  # what is clamped lies elsewhere
    assert np.abs(made["0"] + made["1"] - 2 * made["0.5"])[inside].max() <= 2
    assert not np.array_equal(made["0"], made["1"])


def test_a_link_that_leads_to_itself_and_leftovers_of_a_killed_run(tmp_path, monkeypatch, model):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.png").symlink_to("x.png")
    write_image(tmp_path / "in/y.png", layouts.pair(1)[0])
    (tmp_path / "out/in").mkdir(parents=True)
    (tmp_path / f"out/in/.unfinished-{HERE}-999999999-0123abcd.png").write_bytes(b"half")
    with pytest.raises(UserError, match=r"1 of 2 could not be derained: .*x\.png"):
        call(monkeypatch, tmp_path, model, tmp_path / "in")
    assert written(tmp_path) == ["in/y.png"]
    (tmp_path / "out2").symlink_to("out2")
    monkeypatch.setattr("sys.argv", ["derain.py", str(tmp_path / "in/y.png"), "--save_path", "out2"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        derain.main()


def test_before_and_after_streaks_and_the_page(tmp_path, monkeypatch, model):
    folder = layouts.real_images(tmp_path / "in", 2)
    photograph(folder / "wide.tif")
    call(monkeypatch, tmp_path, model, folder, "--compare", "--streaks", "--precision", "float32")
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("<article") == 3
    shown = re.findall(r'data-(?:derained|rainy)="([^"]+)"', page)
    assert len(shown) == 6 and all((tmp_path / "out" / name).is_file() for name in shown)
    assert not any(name.endswith(".tif") for name in shown)
    before, after = read_image(folder / "2.jpg"), read_image(tmp_path / "out/in/2.png")
    assert np.array_equal(read_image(tmp_path / "out/in/2_compare.png"), np.hstack([before, after]))
    streaks = before.astype(int) - after
    assert np.abs(read_image(tmp_path / "out/in/2_streaks.png") - streaks.clip(0)).max() <= 1


def test_a_broken_photograph_does_not_stop_the_others(tmp_path, monkeypatch, model, capsys):
    folder = layouts.real_images(tmp_path / "in")
    (folder / "2.jpg").write_bytes(b"broken")
    os.mkfifo(folder / "2a.png")
    with pytest.raises(UserError, match=r"2 of 4 could not be derained: .*2\.jpg, .*2a\.png"):
        call(monkeypatch, tmp_path, model, folder)
    assert written(tmp_path) == ["in/1.png", "in/3.png"]
    assert capsys.readouterr().out.splitlines()[-1] == "derained 2; skipped 0; failed 2"


def test_a_photograph_beyond_the_memory_is_told_and_the_others_go_on(tmp_path, monkeypatch, model):
    folder = layouts.real_images(tmp_path / "in")
    whole = Derainer.derained

    def derained(self, rainy):
        if rainy.shape[-1] == 46:
            raise MemoryError
        return whole(self, rainy)

    monkeypatch.setattr(Derainer, "derained", derained)
    with pytest.raises(UserError, match="1 of 3"):
        call(monkeypatch, tmp_path, model, folder)
    assert written(tmp_path) == ["in/1.png", "in/3.png"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing.jpg"], "nothing.jpg does not exist"),
        (["notes.txt"], "neither a photograph nor a video"),
        (["empty"], "holds no photographs"),
    ],
)
def test_what_is_no_input_is_named_before_anything_is_done(tmp_path, monkeypatch, model, words, says):
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / "good.png", layouts.pair(1)[0])
    with pytest.raises(UserError, match=says):
        call(monkeypatch, tmp_path, model, tmp_path / "good.png", *(tmp_path / word for word in words))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give --serve"),
        (["x.png", "--serve"], "leave out x.png"),
        (["x.png", "--tile", "100"], "too small: 256 at least"),
        (["x.png", "--tile", "1" + "0" * 400], "--tile takes no number of 401 digits"),
        (["x.png", "--format", "gif"], "invalid choice"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path, monkeypatch, model, capsys, words, says):
    with pytest.raises(SystemExit):
        call(monkeypatch, tmp_path, model, *words)
    assert says in capsys.readouterr().err


def test_the_three_lines_of_the_readme_are_true(model):
    rainy, _ = layouts.pair(1)
    derained = Derainer.open(str(model))(rainy)
    assert derained.shape == rainy.shape and derained.dtype == np.uint8


def test_what_a_folder_holds_of_other_kinds_is_told(tmp_path, monkeypatch, model, capsys):
    folder = layouts.real_images(tmp_path / "phone", 1)
    for name in ("IMG_1.HEIC", "clip.mp4", "notes.txt"):
        (folder / name).write_bytes(b"")
    call(monkeypatch, tmp_path, model, folder)
    told = next(line for line in capsys.readouterr().out.splitlines() if "left out" in line)
    assert "IMG_1.HEIC" in told and "clip.mp4" in told and "notes.txt" not in told
    with pytest.raises(UserError, match=r"IMG_1\.HEIC is of a kind that is not read: save it as JPEG"):
        call(monkeypatch, tmp_path, model, folder / "IMG_1.HEIC")
