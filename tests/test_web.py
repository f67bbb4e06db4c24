"""The page of `derain.py --serve`. What needs Gradio, an extra, is passed over without it."""

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.data import chelsea

from datasets.simulate import clean_image
from inference import Derainer
from photographs import web
from photographs.pictures import read_picture
from tests.small import ROOT, teacher, trained
from tests.test_pictures import SRGB, noise, photograph
from utils import UserError


def test_the_examples_are_rainy_photographs(tmp_path):
    light, heavy = (read_picture(path).pixels for path in web.examples(tmp_path))
    clean = clean_image(chelsea(), np.random.default_rng(0)).astype(int)
    assert (light >= clean).all() and (heavy >= clean).all()
    assert 2 < (light - clean).mean() < 20 < (heavy - clean).mean()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    trained(teacher(folder, steps=1))
    return folder / "teacher"


def test_a_photograph_comes_back_derained_with_all_that_it_is(tmp_path, model):
    derain, path = Derainer.open(model), photograph(tmp_path / "x.jpg", orientation=6)
    before, after, result = web.derain_file(derain, path)
    made, given = read_picture(result), read_picture(path)
    assert result.name == "x_derained.png" and made.icc == SRGB and before.shape == after.shape
    assert np.array_equal(made.pixels, given.with_pixels(derain.derained(given.tensor())).pixels)
    (tmp_path / "no.jpg").write_bytes(b"text")
    with pytest.raises(UserError, match=r"no\.jpg is not an image"):
        web.derain_file(derain, tmp_path / "no.jpg")


def test_the_page_is_for_this_machine_alone(model):
    pytest.importorskip("gradio", reason="needs requirements-extras.txt")
    words = ["derain.py", "--serve", "--port", "0", "--logdir", str(model), "--use_GPU", "False"]
    with subprocess.Popen(
        [sys.executable, "-u", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout
            lines = iter(process.stdout.readline, "")
            address = next(found[0] for line in lines if (found := re.search(r"http://[^\s]+", line)))
            assert address.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(f"{address.rstrip('/')}/config") as answer:
                told = json.load(answer)
        finally:
            process.terminate()
    assert told["analytics_enabled"] is False
    assert {"imageslider", "file", "dataset"} <= {each["type"] for each in told["components"]}


def test_what_cannot_be_read_says_why_in_the_page_and_a_long_picture_is_shown(tmp_path, model):
    pytest.importorskip("gradio", reason="needs requirements-extras.txt")
    page = web.page(Derainer.open(model), tmp_path)
    (show,) = (each.fn for each in page.fns.values() if each.fn and each.fn.__name__ == "show")
    (tmp_path / "text.png").write_bytes(b"text")
    with pytest.raises(Exception, match=r"text\.png is not an image, or is cut short") as told:
        show(str(tmp_path / "text.png"))
    assert vars(told.value)["print_exception"] is False  # a message of Gradio's, without traceback
    Image.fromarray(noise((3, 17000, 3))).save(tmp_path / "long.png")
    slider, result = show(str(tmp_path / "long.png"))
    assert slider[0].shape == slider[1].shape == (1, web.MAX_SIDE, 3)
    assert read_picture(Path(result)).pixels.shape == (3, 17000, 3)
