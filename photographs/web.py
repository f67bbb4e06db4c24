"""The page of `derain.py --serve`: upload a photograph, see it before and after, download the result.

Uses Gradio, an extra.
"""

import os
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read on import

from machinery.checkpoints import LATEST, ROOT, SHIPPED
from machinery.inference import DEFAULT_MODEL, Derainer
from photographs.pictures import encoded, read_picture
from utils import UserError, file_errors, write_image

ADDRESS = "127.0.0.1"  # the loopback: not reachable from other machines
HOSTS = [ADDRESS, "localhost"]  # under another name the request is another site's (DNS rebinding)
MAX_FILE = "500mb"  # of an upload


def derain_file(derain: Derainer, file: Path) -> tuple[Path, Path, Path]:
    """Writes before and after in sRGB, at full size, and the result, as PNG files.

    Raises UserError like derain.py.
    """
    with file_errors(file, done="derained"):
        # in the page's own folder, removed with it; a new one, for a browser keeps what it has by its address
        folder = Path(tempfile.mkdtemp(dir=file.parent))
        files = [folder / f"{name}.png" for name in ("before", "after", f"{file.stem}_derained")]
        before = read_picture(file)
        after = derain.photograph(before)
        write_image(files[0], before.to_display())
        write_image(files[1], after.to_display())
        files[2].write_bytes(encoded(after, ".png")[0])
    return files[0], files[1], files[2]


def other_models(used: Path) -> list[str]:
    """The folders of the project's trained_model with a shipped or trained model, except that of `used`."""
    folders = sorted((ROOT / DEFAULT_MODEL.parent).glob("*/"))
    others = [each for each in folders if not used.resolve().is_relative_to(each)]
    return [str(each) for each in others if (each / LATEST).exists() or (each / SHIPPED / LATEST).exists()]


def own_origin(app: Any) -> Any:
    """ASGI middleware: answers 403 to a request from the page of another site.

    Gradio's strict_cors only hides the answer from that page: the request itself is carried out.
    """
    from starlette.responses import PlainTextResponse

    async def checked(scope: Any, receive: Any, send: Any) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope.get("headers", ())}
        origin = headers.get(b"origin")
        foreign = origin is not None and urlsplit(origin).netloc != headers.get(b"host")
        await (PlainTextResponse("foreign origin", 403) if foreign else app)(scope, receive, send)

    return checked


def page(derain: Derainer, open_model: Callable[[Path], Derainer] = Derainer.open) -> Any:
    """The page, a gradio.Blocks. Raises UserError without Gradio."""
    try:
        import gradio
    except ImportError:
        raise UserError(
            "--serve needs Gradio: python -m pip install -r photographs/requirements.txt"
        ) from None

    opened = {str(derain.path): derain}

    def show(file: str | None, strength: float, model: str) -> tuple[Any, str | None]:
        if not file:
            return None, None
        try:
            opened[model] = opened.get(model) or open_model(Path(model))
            opened[model].strength = strength
            before, after, result = map(str, derain_file(opened[model], Path(file)))
        except UserError as error:
            raise gradio.Error(str(error), duration=None, print_exception=False) from None
        return (before, after), result

    with gradio.Blocks(title="Derained photographs", analytics_enabled=False) as blocks:
        gradio.Markdown("## Remove rain from a photograph\nEverything runs on this machine.")
        with gradio.Row():
            given = gradio.File(label="A photograph with rain")  # gradio.Image hides why it cannot read one
            slider = gradio.ImageSlider(label="Before and after", type="filepath", interactive=False)
        with gradio.Row():
            strength = gradio.Slider(0, 1, derain.strength, label="Strength: fraction of the rain to remove")
            model = gradio.Dropdown(
                [*opened, *other_models(derain.path)], value=str(derain.path), label="Model"
            )
        result = gradio.File(label="The result, as PNG, with its colour profile and EXIF")
        changes = [given.change, strength.release, model.change]
        gradio.on(changes, show, [given, strength, model], [slider, result])
    return blocks


def serve(derain: Derainer, port: int, open_model: Callable[[Path], Derainer]) -> None:
    """Shows the page until Ctrl-C. Raises UserError where the port is taken."""
    # Gradio polls its own page at the start: not through a proxy
    os.environ["no_proxy"] = ",".join([*HOSTS, urllib.request.getproxies_environment().get("no", "")])
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["GRADIO_TEMP_DIR"] = folder  # of uploads; Gradio may serve files below it
            blocks = page(derain, open_model)
            from starlette.middleware import Middleware
            from starlette.middleware.trustedhost import TrustedHostMiddleware

            checks = [Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS), Middleware(own_origin)]
            blocks.launch(
                server_name=ADDRESS,
                server_port=port or None,
                share=False,
                max_file_size=MAX_FILE,
                app_kwargs={"middleware": checks},
            )
    except OSError as error:
        raise UserError(f"--port {port}: {error}") from None
