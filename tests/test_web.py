"""The page in the browser: what it takes, and what it refuses."""

import contextlib
import http.client
import json
import threading
from urllib.parse import quote, unquote

import numpy as np
import pytest

from machinery import web
from machinery.pictures import Picture, encoded, read_picture
from tests.test_pictures import SRGB, noise, photograph
from utils import UserError


def negative(picture):
    return picture.painted(1 - picture.tensor())


@contextlib.contextmanager
def served(derain=negative):
    with web.Server(0, derain) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server, method, path, body=b"", headers=None, host=None):
    """Its status, headers and content."""
    connection = http.client.HTTPConnection(web.ADDRESS, server.server_port, timeout=30)
    host = host or f"{web.ADDRESS}:{server.server_port}"
    connection.request(method, path, body, {"Host": host, **(headers or {})})
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def test_a_photograph_comes_back_derained_with_what_it_is(tmp_path):
    path = photograph(tmp_path / "x.jpg", orientation=6)
    with served() as server:
        status, headers, data = ask(server, "POST", "/derain", path.read_bytes())
    (tmp_path / "y.png").write_bytes(data)
    picture, expected = read_picture(tmp_path / "y.png"), negative(read_picture(path))
    assert status == 200 and headers["Content-Type"] == "image/png"
    assert np.array_equal(picture.pixels, expected.pixels) and picture.icc == SRGB


def test_what_is_lost_is_said(tmp_path):
    Picture(noise((8, 9, 3)))
    from PIL import Image

    Image.new("CMYK", (30, 20)).save(tmp_path / "x.jpg")
    with served() as server:
        _, headers, _ = ask(server, "POST", "/derain", (tmp_path / "x.jpg").read_bytes())
    assert "CMYK" in unquote(headers["X-Lost"])


def test_the_page_and_the_progress(tmp_path):
    with served() as server:
        status, headers, page = ask(server, "GET", "/")
        assert status == 200 and b"<!doctype html>" in page
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        server.share = 0.25
        assert json.loads(ask(server, "GET", "/progress")[2]) == 0.25
        assert ask(server, "GET", "/../utils.py")[0] == 404


@pytest.mark.parametrize("host", ["evil.example:8000", "127.0.0.1", "localhost:1"])
def test_another_name_of_this_machine_is_refused(host):
    """A site whose name leads here, as DNS rebinding does it, has its own Host."""
    with served() as server:
        assert ask(server, "GET", "/", host=host)[0] == 403
        assert ask(server, "POST", "/derain", b"x", host=host)[0] == 403


def test_another_site_may_not_ask_through_the_browser():
    with served() as server:
        assert ask(server, "POST", "/derain", b"x", {"Origin": "http://evil.example"})[0] == 403
        own = {"Origin": f"http://localhost:{server.server_port}"}
        assert ask(server, "POST", "/derain", b"x", own)[0] == 422


def test_no_other_machine_reaches_it():
    with served() as server:
        assert server.server_address[0] == "127.0.0.1"


def test_uploads_are_bounded(monkeypatch):
    data = encoded(Picture(noise((50, 60, 3))), ".png")[0]
    with served() as server:
        assert ask(server, "POST", "/derain", data)[0] == 200
        monkeypatch.setattr(web, "MOST_BYTES", len(data) - 1)
        assert ask(server, "POST", "/derain", data)[0] == 413
        monkeypatch.setattr(web, "MOST_BYTES", len(data))
        monkeypatch.setattr(web, "MOST_PIXELS", 2999)
        status, _, why = ask(server, "POST", "/derain", data, {"X-Name": "big.png"})
        assert status == 422 and why == b"big.png is 60x50: python derain.py takes it"


@pytest.mark.parametrize("data", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"<svg/>"])
def test_what_is_no_picture_is_told_under_its_own_name(data):
    with served() as server:
        status, _, why = ask(server, "POST", "/derain", data, {"X-Name": quote("Ä <b>.png")})
    assert status == 422 and why.decode().startswith("Ä <b>.png is not an image")


@pytest.mark.parametrize("length", ["-1", "x", "", "1e3"])
def test_an_upload_without_a_length_is_refused(length):
    with served() as server:
        assert ask(server, "POST", "/derain", b"", {"Content-Length": length})[0] == 400


def test_an_upload_that_ends_too_soon_is_told():
    data = encoded(Picture(noise((50, 60, 3))), ".png")[0]
    with served() as server:
        connection = http.client.HTTPConnection(web.ADDRESS, server.server_port, timeout=30)
        connection.putrequest("POST", "/derain")
        connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data[:-100])
        assert connection.sock is not None
        connection.sock.shutdown(1)
        assert connection.getresponse().status == 422
        assert ask(server, "POST", "/derain", data)[0] == 200


def test_no_memory_is_told_and_the_next_one_goes_on():
    def derain(picture):
        if len(picture.pixels) == 50:
            raise MemoryError
        return picture

    large, small = (encoded(Picture(noise((side, 60, 3))), ".png")[0] for side in (50, 20))
    with served(derain) as server:
        assert ask(server, "POST", "/derain", large)[0] == 507
        assert ask(server, "POST", "/derain", small)[0] == 200


def test_a_port_that_is_taken_is_named():
    with served() as server, pytest.raises(UserError, match=f"--port {server.server_port}"):
        web.Server(server.server_port, negative)
