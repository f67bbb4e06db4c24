"""One's own photographs, folders and videos."""

import cv2
import numpy as np
import pytest
import torch

import derain
from inference import Derainer
from networks import Derained, DerainNet
from tests import layouts
from tests.small import evaluation, teacher, trained
from tests.test_networks import small_network
from utils import UserError, read_image, write_image

MACHINE = derain.Derain(use_GPU=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    trained(teacher(folder, steps=1))
    return evaluation(folder).logdir


def call(monkeypatch, tmp_path, model, *inputs) -> None:
    words = [
        *map(str, inputs),
        "--logdir",
        str(model),
        "--save_path",
        str(tmp_path / "out"),
        "--use_GPU",
        "0",
    ]
    monkeypatch.setattr("sys.argv", ["derain.py", *words])
    derain.main()


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


def test_photographs_folders_and_equal_names(tmp_path, monkeypatch, model):
    folder = layouts.real_images(tmp_path / "holiday")
    single = tmp_path / "1.jpg"
    write_image(single, layouts.pair(5, (40, 300))[0])
    call(monkeypatch, tmp_path, model, single, folder)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["1.png", "2.png", "3.png", "holiday_1_derained.png"]
    assert read_image(tmp_path / "out/1.png").shape == (40, 300, 3)


def test_no_result_lies_over_another_or_over_an_input(tmp_path):
    names = ["a/x/p.jpg", "b/x/p.jpg", "c/x/p.jpg", "out/1.jpg", "out/1.png", "clip.mp4"]
    inputs = [tmp_path / name for name in names]
    found = list(derain.targets(inputs, tmp_path / "out"))
    assert [path.name for path in found] == [
        *("p.png", "x_p_derained.png", "p_derained-2.png"),
        *("out_1_derained.png", "1_derained-2.png", "clip.mp4"),
    ]
    assert not set(found) & set(inputs)


def test_a_video_keeps_its_frames(tmp_path, monkeypatch, model):
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for shade in (20, 120, 220):
        writer.write(np.full((48, 64, 3), shade, np.uint8))
    writer.release()
    call(monkeypatch, tmp_path, model, path)
    reader = cv2.VideoCapture(str(tmp_path / "out/clip.mp4"))
    shades = []
    while (frame := reader.read())[0]:
        assert frame[1].shape == (48, 64, 3)
        shades.append(frame[1].mean())
    assert len(shades) == 3 and shades == sorted(shades)
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("nothing.jpg", None, "does not exist"),
        ("notes.txt", b"text", "neither a photograph nor a video"),
        ("broken.png", b"\x89PNG", "is not an image, or is cut short"),
        ("broken.mp4", b"text", "is not a video that OpenCV reads"),
    ],
)
def test_what_cannot_be_derained_is_named(tmp_path, monkeypatch, model, name, content, says):
    path = tmp_path / name
    if content:
        path.write_bytes(content)
    with pytest.raises(UserError, match=says) as refused:
        call(monkeypatch, tmp_path, model, path)
    assert str(path) in str(refused.value)
