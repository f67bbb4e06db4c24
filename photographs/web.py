"""A page in the browser, for this machine alone: a photograph in, before and after, the result; two examples.

Gradio makes it, an extra.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when it is imported: nothing is sent

from datasets.simulate import HEAVY, LIGHT, clean_image, rainy_image
from inference import Derainer
from photographs.pictures import encoded, read_picture
from utils import UserError, write_image

ADDRESS = "127.0.0.1"  # the loopback: no other machine reaches it


def derained_file(derain: Derainer, file: Path) -> tuple[np.ndarray, np.ndarray, Path]:
    """Before and after as a browser shows them, and the result as PNG. Raises UserError for no picture."""
    before = read_picture(file)
    rainy = before.tensor()
    after = before.with_pixels(derain.relit(derain.derained(rainy), rainy))
    result = file.with_name(f"{file.stem}_derained.png")  # in the page's own folder, which goes with it
    result.write_bytes(encoded(after, ".png")[0])
    return before.shown(), after.shown(), result


def examples(folder: Path) -> list[Path]:
    """A free photograph of scikit-image's under simulated rain, light and heavy, written into `folder`."""
    rng, paths = np.random.default_rng(0), [folder / f"{name}.png" for name in ("light rain", "heavy rain")]
    clean = clean_image(skimage.data.chelsea(), rng)
    for path, rain in zip(paths, (LIGHT, HEAVY), strict=True):
        write_image(path, rainy_image(clean, rain, rng))
    return paths


def page(derain: Derainer, folder: Path) -> Any:
    """The page, a gradio.Blocks, with its examples in `folder`. Raises UserError without Gradio."""
    try:
        import gradio
    except ImportError:
        raise UserError("--serve needs Gradio: python -m pip install -r requirements-extras.txt") from None

    def shown(file: str | None) -> tuple[Any, str | None]:
        if not file:
            return None, None
        try:
            before, after, result = derained_file(derain, Path(file))
        except UserError as error:
            raise gradio.Error(str(error)) from None
        return (before, after), str(result)

    with gradio.Blocks(title="Derained photographs", analytics_enabled=False) as blocks:
        gradio.Markdown(f"## Rain out of a photograph\nModel: {derain.path}. Nothing leaves this machine.")
        with gradio.Row():
            given = gradio.Image(type="filepath", image_mode=None, label="A photograph with rain in it")
            slider = gradio.ImageSlider(label="Before and after", type="numpy", interactive=False)
        result = gradio.File(label="The result, as PNG, with its colour profile and EXIF")
        gradio.Examples([*map(str, examples(folder))], given, label="Simulated rain")
        given.change(shown, given, [slider, result])
    return blocks


def serve(derain: Derainer, port: int) -> None:
    """Shows the page until Ctrl-C. Raises UserError where the port is taken."""
    try:
        with tempfile.TemporaryDirectory() as folder:  # what lies there Gradio may show
            shown = page(derain, Path(folder))
            shown.launch(server_name=ADDRESS, server_port=port or None, share=False)
    except OSError as error:
        raise UserError(f"--port {port}: {error}") from None
