"""Whose file is which: no result lies over an input or over a foreign file, and none is made twice.

What was made of what stands in `derained.jsonl` beside the results, a line for each of them, with a digest of
the input, of the result and of how it was made. A file that the list does not know is not ours.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from utils import UserError, about, content_of, refuse_unless_file, write_atomically

FILE = "derained.jsonl"


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content. Raises UserError where it cannot be read."""
    with about(path):
        refuse_unless_file(path, "a file")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class Results:
    """The results in `folder`. `how` tells them apart from those made otherwise, by another model say."""

    def __init__(self, folder: Path, inputs: Iterable[Path], how: str) -> None:
        self.folder, self.how = folder, how
        self._inputs = {path.resolve() for path in inputs}
        self._taken: set[Path] = set()
        self._lines: dict[str, list[dict[str, Any]]] = {}
        for line in _lines(folder / FILE):
            self._lines.setdefault(line["file"], []).append(line)

    def place(self, source: Path, digest: str, wanted: Path) -> Path:
        """Where a result of `source` goes: `wanted`, or a longer name where something else has that."""
        for file in _names(wanted):
            last = self._lines.get(self._name(file), [{}])[-1]
            same = last.get("of") == str(source.absolute()) or last.get("input") == digest
            free = not os.path.lexists(file)
            if file.resolve() in self._inputs | self._taken or not (free or (same and self.is_ours(file))):
                continue
            if free and last and not same and Path(last["of"]).exists():
                continue  # the name of another input's result, which was deleted
            self._taken.add(file.resolve())
            return file
        raise AssertionError("names never end")

    def is_ours(self, file: Path) -> bool:
        """Whether `file` is as one of our runs wrote it."""
        lines = self._lines.get(self._name(file), [])
        return bool(lines) and file.is_file() and digest_of(file) in {line["result"] for line in lines}

    def is_done(self, file: Path, digest: str) -> bool:
        """Whether `file` is there, made of an input of this digest, and made as it would be made now."""
        lines = self._lines.get(self._name(file), [])
        last = lines[-1] if lines else {}
        made = last.get("input") == digest and last.get("how") == self.how
        return made and file.is_file() and digest_of(file) == last["result"]

    def write(self, file: Path, source: Path, digest: str, write: Callable[[Path], object]) -> None:
        """Has `write` fill a temporary file, and moves it to `file`: all of it, or nothing."""

        def noted(temporary: Path) -> None:
            write(temporary)
            if os.path.lexists(file) and not self.is_ours(file):
                raise UserError(f"{file} came there meanwhile, and is not ours: take it away, or rename it")
            line = {"file": self._name(file), "of": str(source.absolute()), "input": digest}
            line |= {"result": digest_of(temporary), "how": self.how}
            # before the file itself: a kill in between leaves a line too many, and no file that is nobody's
            self._note(line)

        write_atomically(file, noted)

    def claim(self, *names: str) -> None:
        """Takes what is written anew with every run, as a page is, for ours from now on.

        Raises UserError where something of that name is there already that is not ours.
        """
        for name in names:
            if name in self._lines:
                continue
            if os.path.lexists(self.folder / name):
                raise UserError(f"{self.folder / name} is not ours: choose another --save_path")
            self._note({"file": name, "of": "", "input": "", "result": "", "how": self.how})

    def _note(self, line: dict[str, Any]) -> None:
        with about(self.folder / FILE, done="written", library=False):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._list() as to:
                to.write((json.dumps(line) + "\n").encode())
        self._lines.setdefault(line["file"], []).append(line)

    def _list(self) -> Any:
        """Open to append, behind whatever a kill or a full disk has left of a line."""
        path = self.folder / FILE
        whole = not path.exists() or path.stat().st_size == 0 or path.read_bytes()[-1:] == b"\n"
        to = path.open("ab", buffering=0)
        if not whole:
            to.write(b"\n")
        return to

    def _name(self, file: Path) -> str:
        return Path(os.path.relpath(file, self.folder)).as_posix()


def _names(wanted: Path) -> Iterator[Path]:
    yield wanted
    yield wanted.with_name(f"{wanted.stem}_derained{wanted.suffix}")
    for number in itertools.count(2):
        yield wanted.with_name(f"{wanted.stem}_derained-{number}{wanted.suffix}")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a list; what is none of ours is passed over."""
    for text in content_of(path).splitlines() if os.path.lexists(path) else ():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and all(
            isinstance(line.get(key), str) for key in ("file", "of", "input", "result", "how")
        ):
            yield line
