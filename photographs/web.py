"""The page of `derain.py --serve`: upload a photograph, see it before and after, download the result.

Uses Gradio, an extra.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read on import: sends nothing

from datasets.simulate import HEAVY, LIGHT, clean_image, rainy_image
from inference import Derainer
from photographs.pictures import encoded, read_picture
from utils import UserError, file_errors, write_image

ADDRESS = "127.0.0.1"  # the loopback: not reachable from other machines
MAX_SIDE = 4096  # pixels of the images that the page shows: the WebP that Gradio makes of them takes 16383


def derain_file(derain: Derainer, file: Path) -> tuple[np.ndarray, np.ndarray, Path]:
    """Before and after, as `Picture.to_display`, and the result as PNG. Raises UserError like derain.py."""
    with file_errors(file, done="derained"):
        before = read_picture(file)
        after = derain.photograph(before)
        result = file.with_name(f"{file.stem}_derained.png")  # in the page's own folder, removed with it
        result.write_bytes(encoded(after, ".png")[0])
        return before.to_display(), after.to_display(), result


def reduced(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) with sides of at most MAX_SIDE."""
    scale = min(1, MAX_SIDE / max(image.shape[:2]))
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    return image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def examples(folder: Path) -> list[Path]:
    """Writes scikit-image's free photograph of a cat under light and heavy simulated rain into `folder`."""
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

    def show(file: str | None) -> tuple[Any, str | None]:
        if not file:
            return None, None
        try:
            before, after, result = derain_file(derain, Path(file))
        except UserError as error:
            raise gradio.Error(str(error), duration=None, print_exception=False) from None
        return (reduced(before), reduced(after)), str(result)

    with gradio.Blocks(title="Derained photographs", analytics_enabled=False) as blocks:
        gradio.Markdown(f"## Remove rain from a photograph\nModel: {derain.path}. It runs on this machine.")
        with gradio.Row():
            given = gradio.File(label="A photograph with rain")  # gradio.Image hides why it cannot read one
            slider = gradio.ImageSlider(label="Before and after", type="numpy", interactive=False)
        result = gradio.File(label="The result, as PNG, with its colour profile and EXIF")
        gradio.Examples([*map(str, examples(folder))], given, label="Simulated rain")
        given.change(show, given, [slider, result])
    return blocks


def serve(derain: Derainer, port: int) -> None:
    """Shows the page until Ctrl-C. Raises UserError where the port is taken."""
    try:
        with tempfile.TemporaryDirectory() as folder:  # Gradio may serve files below it
            page(derain, Path(folder)).launch(server_name=ADDRESS, server_port=port or None, share=False)
    except OSError as error:
        raise UserError(f"--port {port}: {error}") from None
