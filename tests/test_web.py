"""The page of `derain.py --serve`. What needs Gradio, an extra, is passed over without it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from machinery.inference import Derainer
from photographs import web
from photographs.pictures import read_picture
from tests.small import ROOT, teacher, trained
from tests.test_pictures import SRGB, noise, photograph
from utils import read_image


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    trained(teacher(folder, steps=1))
    return folder / "teacher"


def test_a_photograph_comes_back_derained_with_all_that_it_is(tmp_path, model):
    derain, path = Derainer.open(model), photograph(tmp_path / "x.jpg", orientation=6)
    before, after, result = web.derain_file(derain, path)
    made, given = read_picture(result), read_picture(path)
    assert result.name == "x_derained.png" and made.icc == SRGB
    assert np.array_equal(made.pixels, given.with_pixels(derain.derained(given.tensor())).pixels)
    assert np.array_equal(read_image(before), given.to_display())
    assert np.array_equal(read_image(after), made.to_display())
    derain.strength = 0.5
    assert not {before, after, result} & {*web.derain_file(derain, path)}  # at addresses of their own


def test_the_page_is_for_this_machine_alone(model, monkeypatch, tmp_path):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    pytest.importorskip("gradio", reason="needs photographs/requirements.txt")
    httpx = pytest.importorskip("httpx")  # Gradio's own

    def status(**headers: str) -> int:
        upload = {"files": ("a.txt", b"a")}
        return client.post("gradio_api/upload", files=upload, headers=headers).status_code

    words = ["derain.py", "--serve", "--port", "0", "--logdir", str(model), "--use_GPU", "False"]
    with subprocess.Popen(
        [sys.executable, "-u", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout
            lines = iter(process.stdout.readline, "")
            address = next(found[0] for line in lines if (found := re.search(r"http://[^\s/]+", line)))
            assert address.startswith("http://127.0.0.1:")
            with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:  # by no proxy
                told = client.get("config").json()
                assert status() == status(Origin=address) == 200
                assert status(Origin="http://example.org") == status(Origin="null") == 403
                assert status(Host="example.org") == 400
            (private,) = (path for path in tmp_path.iterdir() if [*path.rglob("a.txt")])
            assert private.stat().st_mode & 0o077 == 0
        finally:
            process.terminate()
    assert told["analytics_enabled"] is False
    assert told["max_file_size"] == 500 << 20
    types = {each["type"] for each in told["components"]}
    assert {"imageslider", "file", "slider", "dropdown"} <= types


@pytest.fixture
def page(model):
    """The page, and what it does with (file, strength, model); `how`: as of `web.page`."""
    pytest.importorskip("gradio", reason="needs photographs/requirements.txt")

    def page(**how):
        blocks = web.page(Derainer.open(model), **how)
        (show,) = (each.fn for each in blocks.fns.values() if each.fn and each.fn.__name__ == "show")
        return show

    return page


def test_what_cannot_be_read_says_why_in_the_page_and_a_long_picture_is_shown(tmp_path, model, page):
    show, used = page(), str(model / "net_latest")
    (tmp_path / "text.png").write_bytes(b"text")
    with pytest.raises(Exception, match=r"text\.png is not an image, or is cut short") as told:
        show(str(tmp_path / "text.png"), 1, used)
    assert vars(told.value)["print_exception"] is False  # a message of Gradio's, without traceback
    Image.fromarray(noise((3, 17000, 3))).save(tmp_path / "long.png")
    slider, result = show(str(tmp_path / "long.png"), 0, used)
    for each in (*slider, result):  # at full size; nothing is removed at strength 0
        assert np.array_equal(read_image(Path(each)), noise((3, 17000, 3)))


def test_the_page_offers_the_models_of_trained_model_and_opens_the_chosen_one(
    tmp_path, model, page, monkeypatch
):
    monkeypatch.setattr(web, "ROOT", tmp_path)
    shutil.copytree(model, tmp_path / "trained_model/trained")
    shutil.copytree(model, tmp_path / "trained_model/shipped/pretrained")
    (tmp_path / "trained_model/empty").mkdir()
    offered = web.other_models(model)
    assert [Path(each).name for each in offered] == ["shipped", "trained"]
    assert web.other_models(tmp_path / "trained_model/shipped/pretrained/net_latest") == offered[1:]
    open_model = Mock(wraps=Derainer.open)
    show = page(open_model=open_model)
    for _ in range(2):
        assert show(str(photograph(tmp_path / "x.jpg")), 1, offered[0])[1]
    open_model.assert_called_once_with(Path(offered[0]))
