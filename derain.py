"""Derains your own photographs, folders of them with what lies below, and videos.

    python derain.py photo.jpg holiday/ clip.mp4
    python derain.py --serve                        # in your browser

Results lie in --save_path under their input's name, with its colour profile, EXIF, 16 bits and transparency.
Nothing of yours is written over, and what is done already is skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

import utils
from inference import OVERLAP, Derainer, best_precision, hardware
from machinery import distributed, videos, web
from machinery.options import Machine, option, parse
from machinery.pictures import FORMATS, LOSSLESS, Picture, encoded, read_picture
from machinery.results import Results, digest_of
from metrix_code.page import PageWriter
from utils import IMAGE_SUFFIXES, UserError, image_size, is_file, list_images, one_line, printable

# photographs and moving pictures that no reader here knows: phones and cameras write them
OF_CAMERAS = {
    ".heic",
    ".heif",
    ".avif",
    ".gif",
    ".dng",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".orf",
    ".raf",
    ".rw2",
}


@dataclass(frozen=True)
class Derain(Machine):
    """The options of this script."""

    inputs: tuple[Path, ...] = option((), "photographs, folders of photographs, videos", positional=True)
    logdir: Path = option(Path("trained_model/Rain200L+Real"), "the model: a checkpoint, or its folder")
    save_path: Path = option(Path("results/derained"), "where the results go")
    format: str = option(
        "same",
        "of the photographs; 'same': the input's own where that loses nothing (PNG, TIFF, BMP), else PNG",
        ("same", *FORMATS),
    )
    compare: bool = option(False, "write before | after of each photograph too, and a page with sliders")
    streaks: bool = option(False, "write the rain of each photograph too")
    again: bool = option(False, "make anew what is done already")
    self_ensemble: bool = option(False, "the mean over eight flips and rotations: eight times slower")
    tile: int = option(
        0, "side of the tiles of large images, in pixels; 0: as the free memory allows", least=0
    )
    precision: str = option(
        "auto",
        "the network's arithmetic; 'auto' is bfloat16 where the processor multiplies it",
        ("auto", "float32", "bfloat16"),
    )
    serve: bool = option(False, "show a page in your browser instead, for this machine alone")
    port: int = option(8000, "of that page", least=0, most=65535)

    def contradiction(self) -> str | None:
        if not self.serve and not self.inputs:
            return "what is to be derained? Name photographs, folders or videos, or give --serve"
        if self.serve and self.inputs:
            return f"--serve takes its photographs from the browser: leave out {self.inputs[0]}"
        if 0 < self.tile < 4 * OVERLAP:
            return f"--tile {self.tile} is too small: {4 * OVERLAP} at least, or 0"
        return super().contradiction()


def main() -> None:
    options = parse(Derain(), __doc__)
    inputs = dict(found(options))
    device = distributed.device(options)
    precision = best_precision(device) if options.precision == "auto" else options.precision
    derain = Derainer.open(
        options.logdir,
        device,
        remedy="train one with train_Rain200L_real.py, or give --logdir",
        precision=precision,
        tile=options.tile or None,
        self_ensemble=options.self_ensemble,
    )
    print(
        f"model: {derain.path}, step {derain.content['step']}; on {device}: {hardware(device)}, {precision}"
    )
    if options.serve:
        web.serve(options.port, lambda picture: picture.painted(derain.derained(picture.tensor())), derain)
        return
    Session(options, derain, precision, inputs).run()


def found(options: Derain) -> Iterator[tuple[Path, Path]]:
    """The files that the inputs name, each with where its result goes below --save_path, but for the format.

    A folder brings those of all folders below, which keep their places. What an earlier run wrote is no
    input. Raises UserError for what does not exist or is of no known kind, and an empty folder.
    """
    earlier = Results(options.save_path, (), "")
    for path in options.inputs:
        if path.is_dir():
            name, count = path.resolve().name, 0
            left_out: list[Path] = []
            for inner in sorted(folders(path, options.save_path), key=utils.natural_key):
                for file in list_images(inner):
                    if not earlier.is_ours(file):
                        count += 1
                        yield file, name / file.relative_to(path)
                left_out += (file for file in sorted(inner.iterdir()) if is_of_others(file, earlier))
            if left_out:
                names = one_line(map(printable, left_out))
                print(f"{path}: left out {names}: name a video itself, save HEIC and the like as JPEG")
            if not count:
                raise UserError(f"{path} holds no photographs ({', '.join(sorted(IMAGE_SUFFIXES))})")
        elif not os.path.lexists(path):
            raise UserError(f"{path} does not exist")
        elif path.suffix.lower() in OF_CAMERAS:
            raise UserError(f"{path} is of a kind that is not read: save it as JPEG, PNG or TIFF")
        elif path.suffix.lower() not in IMAGE_SUFFIXES | videos.CONTAINERS.keys():
            raise UserError(f"{path} is neither a photograph nor a video, by its name")
        else:
            yield path, Path(path.name)


def is_of_others(file: Path, earlier: Results) -> bool:
    """Whether a folder's file is a video, or a photograph that no reader here knows."""
    kinds = OF_CAMERAS | videos.CONTAINERS.keys()
    return file.suffix.lower() in kinds and not file.name.startswith(".") and not earlier.is_ours(file)


def folders(folder: Path, save_path: Path) -> Iterator[Path]:
    """`folder` and those below it; not the hidden ones, nor that of the results. Links are not followed."""
    for inner, names, _ in os.walk(folder):
        here = [name for name in names if not name.startswith(".")]
        names[:] = [name for name in here if (Path(inner) / name).resolve() != save_path.resolve()]
        yield Path(inner)


class Session:
    """One call: derains what it can, and tells at the end what became of what."""

    def __init__(self, options: Derain, derain: Derainer, precision: str, inputs: dict[Path, Path]) -> None:
        self.options, self.derain, self.inputs = options, derain, inputs
        made_by = [digest_of(derain.path), precision, options.self_ensemble]
        self.how = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:16]
        self.results = Results(options.save_path, inputs, self.how)
        self.done, self.skipped = 0, 0
        self.failed: list[Path] = []
        self.page: PageWriter | None = None
        if options.compare:
            self.results.claim("index.html", "page")
            self.page = PageWriter(options.save_path, "Derained photographs", str(derain.path))

    def run(self) -> None:
        """Raises UserError at the end where anything has failed, and at once where the disk is full."""
        try:
            for path, below in self.inputs.items():
                try:
                    self.one(path, below)
                except UserError as error:
                    self.fail(path, str(error))
                except (MemoryError, RuntimeError) as error:
                    if not utils.is_out_of_memory(error):
                        raise
                    self.fail(path, f"{path}: the memory is used up: lower --tile")
            if self.page and self.done + self.skipped:
                print(f"to look at: {self.page.finish()}")
        finally:
            skipped = f"skipped {self.skipped}, done before (--again makes them anew)"
            print(
                f"derained {self.done}; {skipped if self.skipped else 'skipped 0'}; failed {len(self.failed)}"
            )
        if self.failed:
            names = one_line(map(printable, self.failed))
            raise UserError(f"{len(self.failed)} of {len(self.inputs)} could not be derained: {names}")

    def fail(self, path: Path, why: str) -> None:
        self.failed.append(path)
        tqdm.write(f"failed: {printable(why)}")
        folder = self.options.save_path
        if folder.exists() and shutil.disk_usage(folder).free < 1 << 20:
            raise UserError(f"the disk of {folder} is full: make room, then run it again, and it goes on")

    def one(self, path: Path, below: Path) -> None:
        is_photograph = path.suffix.lower() in IMAGE_SUFFIXES
        if is_photograph:
            image_size(path)  # refuses what is no picture, before anything waits for it
        elif not is_file(path):
            raise UserError(f"{path} is not a file")
        lost = (self.photograph if is_photograph else self.video)(path, below, digest_of(path))
        if lost is None:
            self.skipped += 1
            return
        self.done += 1

    def tell(self, path: Path, file: Path, lost: tuple[str, ...]) -> None:
        without = f", without {'; '.join(lost)}" if lost else ""
        tqdm.write(f"{printable(path)} -> {printable(file)}{without}")

    def photograph(self, path: Path, below: Path, digest: str) -> tuple[str, ...] | None:
        """Returns what of it could not be kept; None where all was done before."""
        suffix = FORMATS.get(self.options.format) or LOSSLESS.get(path.suffix.lower(), ".png")
        wanted = self.options.save_path / below.with_suffix(suffix)
        kinds = ["", *["_compare"] * self.options.compare, *["_streaks"] * self.options.streaks]
        files = {
            kind: self.results.place(path, digest, wanted.with_name(f"{wanted.stem}{kind}{suffix}"))
            for kind in kinds
        }
        if not self.options.again and all(self.results.is_done(file, digest) for file in files.values()):
            if self.page:
                self.show(below, files[""], before=read_picture(path), after=read_picture(files[""]))
            return None
        before = read_picture(path)
        rainy = before.tensor()
        derained = self.with_a_bar(path, rainy)
        after = before.painted(derained)
        made = {"": after}
        if self.options.compare:
            made["_compare"] = before.beside(after)
        if self.options.streaks:
            made["_streaks"] = before.painted(rainy - derained.clamp(0, 1))
        lost: tuple[str, ...] = ()
        for kind, picture in made.items():
            data, lost = encoded(picture, suffix)
            self.results.write(files[kind], path, digest, partial(Path.write_bytes, data=data))
        self.tell(path, files[""], lost)
        if self.page:
            self.show(below, files[""], before=before, after=after)
        return lost

    def with_a_bar(self, path: Path, rainy: Tensor) -> Tensor:
        """Derains, showing the time left where the image is large."""
        form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
        with tqdm(total=1.0, desc=path.name, leave=False, bar_format=form, delay=2, **utils.BAR) as bar:
            self.derain.progress = lambda share: bar.update(share - bar.n)
            try:
                return self.derain.derained(rainy)
            finally:
                self.derain.progress = lambda share: None

    def show(self, below: Path, file: Path, *, before: Picture, after: Picture) -> None:
        """On the page with sliders, as a browser shows it."""
        page = self.page
        assert page
        shown = os.path.relpath(file, page.folder)
        images = before.shown(), after.shown()
        if (
            before.icc or file.suffix == ".tif"
        ):  # the page's own copies have no profile; no browser shows TIFF
            shown = f"page/{hashlib.sha256(os.fsencode(below)).hexdigest()[:16]}.png"
            utils.write_image(page.folder / shown, images[1])
        page.add({"name": str(below), "file": Path(shown).as_posix()}, *images)

    def video(self, path: Path, below: Path, digest: str) -> tuple[str, ...] | None:
        wanted = self.options.save_path / below.with_suffix(videos.suffix_of(path))
        file = self.results.place(path, digest, wanted)
        if not self.options.again and self.results.is_done(file, digest):
            return None
        parts = file.with_name(f".parts-{digest[:16]}-{self.how}")
        if self.options.again:
            shutil.rmtree(parts, ignore_errors=True)
        lost: list[str] = []

        def write(temporary: Path) -> None:
            lost.extend(
                videos.rewrite(path, target=file, unfinished=temporary, parts=parts, paint=self.derain)
            )

        self.results.write(file, path, digest, write)
        self.tell(path, file, tuple(lost))
        return tuple(lost)


if __name__ == "__main__":
    utils.run(main)
