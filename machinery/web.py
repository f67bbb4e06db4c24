"""A page in the browser, of this machine alone: drop a photograph, move the slider, take the result.

Photographs come one at a time, bounded in size, and are read by the reader of everyone's pictures; nothing is
kept. The page is web.html.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import utils
from machinery.pictures import Picture, encoded, read_picture
from utils import UserError, image_size

MOST_BYTES, MOST_PIXELS = 100 << 20, 1 << 26  # of one photograph: 100 MiB, 67 million
ADDRESS = "127.0.0.1"  # the loopback: no other machine reaches it
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src blob:; connect-src 'self'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


class Server(ThreadingHTTPServer):
    """`derain` makes a picture into the one without rain; `share` is how much of it is done, in [0, 1]."""

    daemon_threads = True

    def __init__(self, port: int, derain: Callable[[Picture], Picture]) -> None:
        self.derain, self.share = derain, 0.0
        self.one_at_a_time = threading.Lock()
        try:
            super().__init__((ADDRESS, port), Handler)
        except OSError as error:
            raise UserError(f"--port {port} cannot be had ({error.strerror}): give another") from None


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 60  # seconds that a browser may be silent

    def do_GET(self) -> None:
        if not self._is_from_here():
            return
        if self.path == "/":
            page = Path(__file__).with_name("web.html").read_bytes()
            self._answer(200, page, {"Content-Type": "text/html; charset=utf-8"})
        elif self.path == "/progress":
            self._answer(200, json.dumps(self.server.share).encode(), {"Content-Type": "application/json"})
        else:
            self._refuse(404, "there is nothing here")

    def do_POST(self) -> None:
        if not self._is_from_here():
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/derain" or not length.isdecimal():
            self._refuse(400, "a photograph goes to /derain, with its length")
        elif len(length) > 12 or int(length) > MOST_BYTES:
            self._refuse(413, f"that is larger than {MOST_BYTES >> 20} MB: python derain.py takes it")
        else:
            with self.server.one_at_a_time, tempfile.TemporaryDirectory() as folder:
                self._derain(Path(folder) / "it", int(length))

    def _derain(self, file: Path, length: int) -> None:
        name = utils.printable(unquote(self.headers.get("X-Name", "it"), errors="replace"))[:200]
        try:
            file.write_bytes(self.rfile.read(length))
            height, width = image_size(file)
            if height * width > MOST_PIXELS:
                raise UserError(f"{name} is {width}x{height}: python derain.py takes it")
            self.server.share = 0.0
            data, lost = encoded(self.server.derain(read_picture(file)), ".png")
        except UserError as error:
            self._refuse(422, str(error).replace(str(file), name))
        except (MemoryError, RuntimeError) as error:
            if not utils.is_out_of_memory(error):
                raise
            self._refuse(507, f"{name}: the memory is used up: start it with a lower --tile")
        else:
            self._answer(200, data, {"Content-Type": "image/png", "X-Lost": quote("; ".join(lost))})

    def _is_from_here(self) -> bool:
        """No other site may ask through the browser, under whatever name it has for this address."""
        own = {f"{name}:{self.server.server_port}" for name in (ADDRESS, "localhost")}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") in own and (origin is None or origin.removeprefix("http://") in own):
            return True
        self._refuse(403, "this page is for its own machine alone")
        return False

    def _refuse(self, code: int, why: str) -> None:
        self.close_connection = True  # what was not read of the request would be taken for the next one
        self._answer(code, why.encode(), {"Content-Type": "text/plain; charset=utf-8"})

    def _answer(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**HEADERS, **headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words: Any) -> None:
        pass  # the page says all


def serve(port: int, derain: Callable[[Picture], Picture], deraining: Any) -> None:
    """Until Ctrl-C. `deraining` tells its progress. Raises UserError where the port is taken."""
    with Server(port, derain) as server:

        def tell(share: float) -> None:
            server.share = share

        deraining.progress = tell
        print(f"http://{ADDRESS}:{server.server_port}/ until Ctrl-C", flush=True)
        server.serve_forever()
