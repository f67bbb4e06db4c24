"""Derains your own photographs, folders of them with what lies below, and videos.

    python derain.py photo.jpg holiday/ clip.mp4
    python derain.py --serve                        # in your browser

Results lie in --save_path (results/derained) under their input's name; colour profile, EXIF, 16 bits and
transparency are kept as far as the format holds them. What lies there is skipped; --again makes it anew.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

import utils
from inference import DEFAULT_MODEL, LIGHT, OVERLAP, Derainer, best_precision, hardware
from machinery import distributed
from machinery.options import Machine, option, parse
from metrix_code.page import PAGE, PageWriter
from photographs import videos
from photographs.pictures import FORMATS, LOSSLESS, Picture, encoded, read_picture
from utils import (
    IMAGE_SUFFIXES,
    UserError,
    escape_unprintable,
    file_errors,
    join_names,
    list_images,
)

# photographs and moving pictures that no reader here knows: phones and cameras write them
OF_CAMERAS = {".heic", ".heif", ".avif", ".gif", ".dng"}
OF_CAMERAS |= {".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"}


@dataclass(frozen=True)
class Derain(Machine):
    """The options of this script."""

    inputs: tuple[Path, ...] = option((), "photographs, folders of photographs, videos", positional=True)
    logdir: Path = option(DEFAULT_MODEL, "the model: a checkpoint, or its folder")
    save_path: Path = option(Path("results/derained"), "where the results go")
    format: str = option(
        "same",
        "of the photographs; 'same': the input's own where that loses nothing (PNG, TIFF, BMP), else PNG",
        ("same", *FORMATS),
    )
    strength: float = option(1.0, "how much of the rain goes: 0 leaves all of it", min=0, max=1)
    darker: float = option(
        2.0,
        "the most that the mean brightness may fall by, in levels of 255: a tone curve brightens what falls "
        f"further, by {LIGHT} at most; 255: never",
        min=0,
        max=255,
    )
    compare: bool = option(False, "write before | after of each photograph too, and a page with sliders")
    streaks: bool = option(False, "write what the network takes from each photograph too")
    again: bool = option(False, "make anew what is there already")
    self_ensemble: bool = option(False, "the mean over eight flips and rotations: eight times slower")
    tile: int = option(0, "side of the tiles of large images, in pixels; 0: as the free memory allows", min=0)
    precision: str = option(
        "auto",
        "the network's arithmetic; 'auto' is bfloat16 where the processor is faster at it",
        ("auto", "float32", "bfloat16"),
        group="machine",
    )
    serve: bool = option(False, "show a page in your browser instead, for this machine alone")
    port: int = option(8000, "of that page; 0: any that is free", min=0, max=65535)

    def validate(self) -> str | None:
        if not self.serve and not self.inputs:
            return "what is to be derained? Name photographs, folders or videos, or give --serve"
        if self.serve and self.inputs:
            return f"--serve takes its photographs from the browser: leave out {self.inputs[0]}"
        if self.serve and (self.compare or self.streaks or self.again or self.format != "same"):
            return "--serve writes nothing here: leave out --compare, --streaks, --again and --format"
        if 0 < self.tile < 4 * OVERLAP:
            return f"--tile {self.tile} is too small: {4 * OVERLAP} at least, or 0"
        return super().validate()


def main() -> None:
    options = parse(Derain(), __doc__)
    inputs = dict(found(options))
    device = distributed.device(options)
    precision = best_precision(device) if options.precision == "auto" else options.precision
    derain = Derainer.open(
        options.logdir,
        device,
        remedy="train one with train_photographs.py, or give --logdir",
        precision=precision,
        tile=options.tile or None,
        self_ensemble=options.self_ensemble,
        strength=options.strength,
        darker=options.darker,
    )
    print(f"model: {derain.path}, step {derain.content['step']}")
    print(f"on {device}: {hardware(device)}, {precision}")
    if options.serve:
        from photographs import web  # Gradio takes seconds to import

        web.serve(derain, options.port)
        return
    Session(options, derain, results_of(inputs, options)).run()


# ----------------------------------------------------------------------------------------- what goes where


def found(options: Derain) -> Iterator[tuple[Path, Path]]:
    """The files that the inputs name, each with its place below --save_path.

    A folder brings those of all folders below, which keep their places. Raises UserError for what does not
    exist or is of no known kind, for an empty folder, and where results would lie among the inputs.
    """
    save_path = os.path.realpath(options.save_path)
    for path in options.inputs:
        if save_path in (os.path.realpath(path), str(Path(os.path.realpath(path)).parent)):
            raise UserError(f"--save_path {options.save_path} holds {path}, which is read: give another")
        suffix = path.suffix.lower()
        if path.is_dir():
            yield from found_below(path, save_path)
        elif not os.path.lexists(path):
            raise UserError(f"{path} does not exist")
        elif suffix in OF_CAMERAS:
            raise UserError(f"{path} is of a kind that is not read: save it as JPEG, PNG or TIFF")
        elif suffix not in IMAGE_SUFFIXES | videos.CONTAINERS.keys():
            raise UserError(f"{path} is neither a photograph nor a video, by its name")
        else:
            yield path, Path(path.name)


def found_below(folder: Path, save_path: str) -> Iterator[tuple[Path, Path]]:
    """A folder's photographs; not those in hidden folders, nor results. Links to folders are not followed."""
    name, count = Path(os.path.realpath(folder)).name, 0
    left_out: list[str] = []
    for inner, names, files in os.walk(folder):
        names[:] = sorted((each for each in names if not each.startswith(".")), key=utils.natural_key)
        names[:] = [each for each in names if os.path.realpath(Path(inner, each)) != save_path]
        for file in list_images(Path(inner)):
            count += 1
            yield file, name / file.relative_to(folder)
        others = OF_CAMERAS | videos.CONTAINERS.keys()
        left_out += [each for each in sorted(files) if Path(each).suffix.lower() in others]
    if left_out:
        print(
            f"{folder}: left out {join_names(left_out)}: name a video itself, save HEIC and the like as JPEG"
        )
    if not count:
        raise UserError(f"{folder} holds no photographs ({', '.join(sorted(IMAGE_SUFFIXES))})")


def results_of(inputs: dict[Path, Path], options: Derain) -> dict[Path, Path]:
    """The file that each input's result goes to: of its name, or longer where two would be one."""

    def suffix(path: Path) -> str:
        if path.suffix.lower() in videos.CONTAINERS:
            return videos.CONTAINERS[path.suffix.lower()]
        return FORMATS.get(options.format) or LOSSLESS.get(path.suffix.lower(), ".png")

    files = {path: options.save_path / below.with_suffix(suffix(path)) for path, below in inputs.items()}
    often = Counter(files.values())
    longer = {path: options.save_path / f"{below}{suffix(path)}" for path, below in inputs.items()}
    files = {path: longer[path] if often[file] > 1 else file for path, file in files.items()}
    written = Counter(each for file in files.values() for each in beside(file, options).values())
    if twice := [file for file, count in written.items() if count > 1]:
        raise UserError(f"several inputs would become {twice[0]}: derain them one after the other")
    read = {os.path.realpath(path) for path in inputs}
    if over := [file for file in written if os.path.realpath(file) in read]:
        raise UserError(f"{over[0]} is read, and would be written: give another --save_path")
    return files


def beside(file: Path, options: Derain) -> dict[str, Path]:
    """The files that a photograph's result brings, by what is added to its name."""
    kinds = ["", *["_compare"] * options.compare, *["_streaks"] * options.streaks]
    return {kind: file.with_name(f"{file.stem}{kind}{file.suffix}") for kind in kinds}


# ------------------------------------------------------------------------------------------- one call's work


class Session:
    """One call: derains what it can, and tells at the end what became of what."""

    def __init__(self, options: Derain, derain: Derainer, files: dict[Path, Path]) -> None:
        self.options, self.derain, self.files = options, derain, files
        self.page: PageWriter | None = None
        if options.compare:
            self.refuse_foreign_page()
            note = f"{derain.path}, --strength {options.strength:g}, --darker {options.darker:g}"
            self.page = PageWriter(options.save_path, "Derained photographs", note)

    def run(self) -> None:
        """Raises UserError at the end where anything has failed."""
        derained, skipped, failed = 0, 0, list[Path]()
        photographs = [path for path in self.files if path.suffix.lower() in IMAGE_SUFFIXES]
        form = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        with tqdm(total=len(photographs), bar_format=form, disable=not photographs, **utils.BAR) as self.bar:
            for path, file in self.files.items():
                try:
                    if not self.options.again and all(map(os.path.lexists, self.made_of(path))):
                        skipped += 1
                        self.bar.update(path in photographs)
                        if self.page and path in photographs:
                            self.show(path, read_picture(path), read_picture(file))
                        continue
                    (self.photograph if path in photographs else self.video)(path, file)
                    derained += 1
                except (UserError, MemoryError, RuntimeError) as error:
                    if not (isinstance(error, UserError) or utils.is_out_of_memory(error)):
                        raise
                    failed.append(path)
                    named = isinstance(error, UserError)
                    why = str(error) if named else f"{path}: the memory is used up: lower --tile"
                    tqdm.write(f"failed: {escape_unprintable(why)}")
        if self.page and derained + skipped:
            print(f"to look at: {self.page.finish()}")
        there = " (they are there; --again makes them anew)" if skipped else ""
        print(f"derained {derained}; skipped {skipped}{there}; failed {len(failed)}")
        if failed:
            names = join_names(map(escape_unprintable, failed))
            raise UserError(f"{len(failed)} of {len(self.files)} could not be derained: {names}")

    def made_of(self, path: Path) -> list[Path]:
        """The files that come of an input."""
        file = self.files[path]
        return [*beside(file, self.options).values()] if path.suffix.lower() in IMAGE_SUFFIXES else [file]

    def refuse_foreign_page(self) -> None:
        page = self.options.save_path / PAGE
        if page.exists() and not page.with_name("page").is_dir():
            raise UserError(f"{page} is no page of ours: give another --save_path")

    def photograph(self, path: Path, file: Path) -> None:
        before = read_picture(path)
        rainy, begun = before.tensor(), self.bar.n
        self.bar.set_postfix_str(escape_unprintable(path.name))
        self.derain.progress = lambda share: self.bar.update(begun + share - self.bar.n)
        try:
            derained = self.derain.derained(rainy)
        finally:
            self.derain.progress = lambda share: None
        self.bar.update(begun + 1 - self.bar.n)
        after = before.with_pixels(self.derain.relit(derained, rainy))
        made = {"": after}
        if self.options.compare:
            made["_compare"] = before.beside(after)
        if self.options.streaks:
            made["_streaks"] = before.with_pixels(rainy - derained.clamp(0, 1))
        lost: tuple[str, ...] = ()
        for kind, picture in made.items():
            place = beside(file, self.options)[kind]
            if os.path.lexists(place) and not self.options.again:
                continue  # it is there, whoever made it
            data, lost = encoded(picture, file.suffix)
            utils.write_atomically(place, partial(Path.write_bytes, data=data))
        self.tell(path, file, lost)
        self.show(path, before, after)

    def show(self, path: Path, before: Picture, after: Picture) -> None:
        """On the page, which a second call over the same photographs makes whole again."""
        if self.page:
            self.page.add({"name": path.name}, before.shown(), after.shown())

    def video(self, path: Path, file: Path) -> None:
        with file_errors(path):
            if not path.is_file():
                raise UserError(f"{path} is not a file")
        lost: list[str] = []

        def paint(rgb: np.ndarray) -> np.ndarray:
            return self.derain(rgb)

        utils.write_atomically(file, lambda temporary: lost.extend(videos.rewrite(path, temporary, paint)))
        self.tell(path, file, lost)

    def tell(self, path: Path, file: Path, lost: list[str] | tuple[str, ...]) -> None:
        without = f", without {'; '.join(lost)}" if lost else ""
        tqdm.write(f"{escape_unprintable(path)} -> {escape_unprintable(file)}{without}")


if __name__ == "__main__":
    utils.run(main)
