"""The help of the tools, and the demo's picture."""

import numpy as np
import pytest

import demo
from tests import layouts
from utils import write_image


@pytest.mark.parametrize("script", ["export.py", "demo.py", "derain.py"])
def test_help(script, run_here, capsys):
    assert run_here(script, "--help") == 0
    assert "--" in capsys.readouterr().out


def test_the_demos_picture_has_a_row_a_photograph_and_a_column_a_model(tmp_path, monkeypatch):
    image = layouts.clean_image(1)
    for name in ("pairs", "real"):
        places = {"rain": 250, "norain": 10, "student": 100}
        for place, value in places.items():
            write_image(tmp_path / name / place / "1.png", np.full_like(image, value))
        monkeypatch.setitem(demo.SETS, name, tmp_path / name)
    monkeypatch.setattr(demo, "place", lambda data, name: tmp_path / data / name)
    height = image.shape[0]
    picture = demo.picture(["student"], height)
    assert picture.shape == (2 * (height + 6), 3 * image.shape[1], 3)
    middle = picture[height + 6 + height // 2]  # of the second row, which has no captions
    assert middle[image.shape[1] // 2 :: image.shape[1], 0].tolist() == [250, 100, 10]
