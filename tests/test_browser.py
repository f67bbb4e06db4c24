"""`python derain.py --serve`, in a real browser: a photograph in, the slider, the result out."""

import base64
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import skimage.data

from datasets.simulate import LIGHT, clean_image, rainy_image
from inference import Derainer
from tests import small
from tests.browser import PATIENCE, Browser, program
from tests.small import ROOT
from utils import read_image, write_image

BROWSER = program() or ""
pytestmark = pytest.mark.skipif(not BROWSER, reason="needs Chromium")
DROP = """(() => {
  const bytes = Uint8Array.from(atob("%s"), (letter) => letter.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], "a walk.png", { type: "image/png" }));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
})()"""
COMPARE = "document.getElementById('compare')"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    small.trained(small.teacher(folder, steps=1))
    return folder / "teacher"


@pytest.fixture(scope="module")
def address(model):
    words = [sys.executable, "derain.py", "--serve", "--port", 0, "--logdir", model, "--use_GPU", "False"]
    words += ["--precision", "float32"]
    server = subprocess.Popen(list(map(str, words)), cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
    try:
        yield _address(server)
    finally:
        os.killpg(server.pid, 9)
        server.wait(PATIENCE)


def _address(server):
    """What it prints, waited for without a read that could hang."""
    assert server.stdout
    os.set_blocking(server.stdout.fileno(), False)
    text, deadline = "", time.monotonic() + 2 * PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        text += (server.stdout.read() or b"").decode()
        if found := re.search(r"http://127\.0\.0\.1:\d+/", text):
            return found.group()
        time.sleep(0.1)
    raise AssertionError(f"no address: {text}")


@pytest.mark.parametrize(("width", "way"), [(390, "chosen"), (1280, "dropped")])
def test_a_photograph_goes_in_is_compared_and_comes_out(tmp_path, model, address, width, way):
    rng = np.random.default_rng(0)
    rainy = rainy_image(clean_image(skimage.data.coffee(), rng), LIGHT, rng)
    photograph = tmp_path / "a walk.png"
    write_image(photograph, rainy)
    with Browser(BROWSER, tmp_path / "profile") as browser:
        browser.ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "taken"))
        browser.open(address, width)
        assert browser.value("document.getElementById('result').hidden")
        if way == "chosen":
            browser.choose("#file", photograph)
        else:
            browser.value(DROP % base64.b64encode(photograph.read_bytes()).decode())
        browser.until("!document.getElementById('result').hidden")

        place = browser.value(f"(({{x, y, width, height}}) => [x, y, width, height])({COMPARE}"
                              ".getBoundingClientRect())")  # fmt: skip
        assert place[0] >= 0 and place[0] + place[2] <= width  # all of it is seen
        assert place[2] / place[3] == pytest.approx(240 / 160, rel=0.01)
        browser.press(place[0] + place[2] / 4, place[1] + place[3] / 3)
        cut = float(browser.value(f"{COMPARE}.style.getPropertyValue('--cut')").removesuffix("%"))
        assert cut == pytest.approx(25, abs=2)
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")  # no sideways scroll

        browser.value("document.getElementById('download').click()")
        taken, deadline = tmp_path / "taken/a walk_derained.png", time.monotonic() + PATIENCE
        while not taken.exists() and time.monotonic() < deadline:
            browser.value("1")
            time.sleep(0.05)
        assert not browser.wrong
    assert np.array_equal(read_image(taken), Derainer.open(model)(rainy))


def test_what_is_no_photograph_is_told_on_the_page(tmp_path, address):
    (tmp_path / "letter.png").write_bytes(b"text")
    with Browser(BROWSER, tmp_path / "profile") as browser:
        browser.open(address, 390)
        browser.choose("#file", tmp_path / "letter.png")
        browser.until("!document.getElementById('wrong').hidden")
        assert "letter.png is not an image" in browser.value("document.getElementById('wrong').textContent")
        assert browser.value("document.getElementById('work').hidden")
