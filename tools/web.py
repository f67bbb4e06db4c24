"""A page in the browser, for this machine alone: a photograph in, before and after, the result.

Gradio makes it, an extra.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when it is imported: nothing is sent

from inference import Derainer, blended
from machinery.pictures import encoded, read_picture
from utils import UserError

ADDRESS = "127.0.0.1"  # the loopback: no other machine reaches it


def derained_file(derain: Derainer, file: Path, strength: float = 1.0) -> tuple[np.ndarray, np.ndarray, Path]:
    """Before and after as a browser shows them, and the result as PNG. Raises UserError for no picture."""
    before = read_picture(file)
    after = before.painted(blended(derain, before.tensor(), strength))
    result = file.with_name(f"{file.stem}_derained.png")  # in the page's own folder, which goes with it
    result.write_bytes(encoded(after, ".png")[0])
    return before.shown(), after.shown(), result


def page(derain: Derainer, strength: float = 1.0) -> Any:
    """The page, a gradio.Blocks. Raises UserError where Gradio is not installed."""
    try:
        import gradio
    except ImportError:
        raise UserError("--serve needs Gradio: python -m pip install -r requirements-extras.txt") from None

    def shown(file: str | None) -> tuple[Any, str | None]:
        if not file:
            return None, None
        try:
            before, after, result = derained_file(derain, Path(file), strength)
        except UserError as error:
            raise gradio.Error(str(error)) from None
        return (before, after), str(result)

    with gradio.Blocks(title="Derained photographs", analytics_enabled=False) as blocks:
        gradio.Markdown(f"## Rain out of a photograph\nModel: {derain.path}. Nothing leaves this machine.")
        with gradio.Row():
            given = gradio.Image(type="filepath", image_mode=None, label="A photograph with rain in it")
            slider = gradio.ImageSlider(label="Before and after", type="numpy", interactive=False)
        result = gradio.File(label="The result, as PNG, with its colour profile and EXIF")
        given.change(shown, given, [slider, result])
    return blocks


def serve(derain: Derainer, port: int, strength: float = 1.0) -> None:
    """Shows the page until Ctrl-C. Raises UserError where the port is taken."""
    try:
        page(derain, strength).launch(server_name=ADDRESS, server_port=port or None, share=False)
    except OSError as error:
        raise UserError(f"--port {port}: {error}") from None
