"""Derain your own photographs, folders of photographs, and videos.

    python derain.py photo.jpg holiday/ clip.mp4
    python derain.py --serve                        # in your browser

Results go to --save_path (results/derained) under the names of their inputs, with the colour profile, EXIF,
16 bits and transparency that the format can hold. Existing results are skipped; --again overwrites them.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

import utils
from machinery import distributed
from machinery.inference import DEFAULT_MODEL, Derainer, best_precision, hardware
from machinery.options import Machine, option, parse
from metrix_code.page import PageWriter
from photographs import videos
from photographs.pictures import FORMATS, LOSSLESS, Picture, encoded, read_picture
from utils import UserError, escape_unprintable, file_errors, join_names

RECORD = ".inputs"  # in --save_path: a line per result, "SHA-256 of its input  result"


@dataclass(frozen=True)
class Derain(Machine):
    inputs: tuple[Path, ...] = option((), "photographs, folders of photographs, videos", positional=True)
    logdir: Path = option(DEFAULT_MODEL, "the model: a checkpoint or its folder")
    save_path: Path = option(Path("results/derained"), "folder of the results")
    format: str = option(
        "same",
        "format of the photographs; 'same': that of the input if it is lossless (PNG, TIFF, BMP), else PNG",
        ("same", *FORMATS),
    )
    strength: float = option(1.0, "fraction of the rain to remove", min=0, max=1)
    compare: bool = option(False, "also write a page with before/after sliders")
    again: bool = option(False, "overwrite existing results")
    self_ensemble: bool = option(False, "average over eight flips and rotations: eight times slower")
    tile: int = option(0, "side of the tiles of large images, in pixels; 0: as the free memory allows", min=0)
    precision: str = option(
        "auto",
        "arithmetic of the network; 'auto': bfloat16 on processors that run it faster",
        ("auto", "float32", "bfloat16"),
        group="machine",
    )
    serve: bool = option(False, "show a page in your browser instead, on this machine only")
    port: int = option(8000, "port of that page; 0: any free one", min=0, max=65535)

    def validate(self) -> str | None:
        if not self.serve and not self.inputs:
            return "nothing to derain: give photographs, folders or videos, or --serve"
        if self.serve and self.inputs:
            return f"--serve takes its photographs from the browser: leave out {self.inputs[0]}"
        return super().validate()


def main() -> None:
    options = parse(Derain(), __doc__)
    results = results_of(dict(find_inputs(options)), options)
    device = distributed.device(options)
    precision = best_precision(device) if options.precision == "auto" else options.precision
    open_model = partial(
        Derainer.open,
        device=device,
        remedy="train one with train_photographs.py, or give --logdir",
        precision=precision,
        tile=options.tile or None,
        self_ensemble=options.self_ensemble,
        strength=options.strength,
    )
    derain = open_model(options.logdir)
    print(f"model: {derain.path}, step {derain.content['step']}")
    print(f"on {device}: {hardware(device)}, {precision}")
    if options.serve:
        from photographs import web  # Gradio takes seconds to import

        web.serve(derain, options.port, open_model)
        return
    Session(options, derain, results).run()


# -------------------------------------------------------------------------------------- inputs and results


def is_video(path: Path) -> bool:
    return path.suffix.lower() in videos.CONTAINERS


def find_inputs(options: Derain) -> Iterator[tuple[Path, Path]]:
    """Each file to derain, and its place below --save_path. A folder is searched with all folders below it.

    Raises UserError if an input does not exist, is unsupported or lies in --save_path, and if a folder has no
    photographs.
    """
    save_path = os.path.realpath(options.save_path)
    for path in options.inputs:
        real = Path(os.path.realpath(path))
        if Path(save_path) in (real, real.parent):
            raise UserError(f"--save_path {options.save_path} contains the input {path}: give another")
        if path.is_dir():
            yield from find_below(path, save_path)
        elif not os.path.lexists(path):
            raise UserError(f"{path} does not exist")
        elif not utils.is_image_name(path.name) and not is_video(path):
            raise UserError(f"{path} is of an unsupported format: save it as JPEG, PNG or TIFF, or as MP4")
        else:
            yield path, Path(path.name)


def find_below(folder: Path, save_path: str) -> Iterator[tuple[Path, Path]]:
    """The photographs below a folder, except results and hidden files; prints what else is left out."""
    name, count, left_out = Path(os.path.realpath(folder)).name, 0, list[Path]()
    for inner, folders, files in os.walk(folder):
        folders[:] = sorted((each for each in folders if not each.startswith(".")), key=utils.natural_key)
        folders[:] = [each for each in folders if os.path.realpath(Path(inner, each)) != save_path]
        images = utils.list_images(Path(inner))
        others = [*files, *(each for each in folders if Path(inner, each).is_symlink())]
        left_out += sorted({Path(inner, each) for each in others if not each.startswith(".")} - {*images})
        count += len(images)
        yield from ((file, name / file.relative_to(folder)) for file in images)
    if left_out:
        names = join_names(escape_unprintable(each.relative_to(folder)) for each in left_out)
        print(f"{folder}: left out {names}: name videos and linked folders, save others as JPEG, PNG or TIFF")
    if not count:
        raise UserError(f"{folder} has no photographs ({', '.join(sorted(utils.IMAGE_SUFFIXES))})")


def results_of(inputs: dict[Path, Path], options: Derain) -> dict[Path, Path]:
    """The result of each input.

    Inputs whose results would have one name keep their suffix: 1.jpg.png, 1.webp.png. Raises UserError if
    two results have the same name, or if a result has the name of an input.
    """
    count = Counter(place.with_suffix("") for place in inputs.values())
    results = {}
    for path, place in inputs.items():
        stem = place.stem if count[place.with_suffix("")] == 1 else place.name
        given = path.suffix.lower()
        suffix = videos.CONTAINERS.get(given) or FORMATS.get(options.format) or LOSSLESS.get(given, ".png")
        results[path] = options.save_path / place.parent / f"{stem}{suffix}"
    read = {os.path.realpath(path) for path in inputs}
    for file, number in Counter(results.values()).items():
        if number > 1:
            raise UserError(f"several inputs would become {file}: derain them one after the other")
        if os.path.realpath(file) in read:
            raise UserError(f"{file} is an input and would be overwritten: give another --save_path")
    return results


# ------------------------------------------------------------------------------------------------ one call


class Session:
    """One call: derains what it can, and reports at the end what was derained, skipped and failed."""

    def __init__(self, options: Derain, derain: Derainer, results: dict[Path, Path]) -> None:
        self.options, self.derain, self.results = options, derain, results
        self.derained, self.skipped, self.failed = 0, 0, list[Path]()
        self.page: PageWriter | None = None
        if options.compare:
            note = f"{derain.path}, --strength {options.strength:g}"
            self.page = PageWriter(options.save_path, "Derained photographs", note)
        record = options.save_path / RECORD
        lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
        self.inputs = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}

    def run(self) -> None:
        """Raises UserError at the end if anything has failed."""
        self.photographs([path for path in self.results if not is_video(path)])
        for path in filter(is_video, self.results):
            if write := self.attempt(path, partial(self.begin, path)):
                self.attempt(path, write)
        if self.page and self.derained + self.skipped:
            print(f"page: {self.page.finish()}")
        failed, there = len(self.failed), " (they exist; --again overwrites them)" if self.skipped else ""
        print(f"derained {self.derained}; skipped {self.skipped}{there}; failed {failed}")
        if self.failed:
            names = join_names(map(escape_unprintable, self.failed))
            raise UserError(f"{failed} of {len(self.results)} could not be derained: {names}")

    def photographs(self, paths: list[Path]) -> None:
        """Derains each photograph while a thread writes the previous one."""
        form = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        with (
            ThreadPoolExecutor(1) as writer,  # on Ctrl-C it finishes its file
            tqdm(total=len(paths), bar_format=form, disable=not paths, **utils.BAR) as bar,
        ):
            written = writer.submit(bool)  # nothing yet
            for number, path in enumerate(paths):
                self.derain.progress = partial(lambda begun, share: bar.update(begun + share - bar.n), number)
                write = self.attempt(path, partial(self.begin, path))
                written.result()
                if write:
                    written = writer.submit(self.attempt, path, write)
                bar.update(number + 1 - bar.n)
            written.result()
        self.derain.progress = lambda share: None

    def attempt(self, path: Path, work: Callable[[], Any]) -> Any:
        """Runs `work` and returns its result; prints a UserError and counts the input as failed."""
        try:
            with file_errors(path, done="derained"):
                return work()
        except UserError as error:
            self.failed.append(path)
            tqdm.write(f"failed: {error}")
            return None

    def begin(self, path: Path) -> Callable[[], object]:
        """Derains a photograph unless its result exists; returns what is left to do: all of a video."""
        if self.is_done(path):
            return partial(self.finish, path)
        if is_video(path):
            return partial(self.video, path)
        return partial(self.write, path, self.derain.photograph(read_picture(path)))

    def video(self, path: Path) -> None:
        lost: list[str] = []
        write = partial(videos.rewrite, path, paint=self.derain)
        utils.write_atomically(self.results[path], lambda unfinished: lost.extend(write(unfinished)))
        self.finish(path, lost)

    def is_done(self, path: Path) -> bool:
        """Whether its result exists. Raises UserError if that is of another file."""
        if self.options.again or not os.path.lexists(self.results[path]):
            return False
        file, digest = self.results[path], utils.digest_of(path)
        if self.inputs.get(self.name_of(path), digest) != digest:
            raise UserError(
                f"{path}: {file} was made from another file: give another --save_path, or --again to "
                "overwrite it"
            )
        return True

    def write(self, path: Path, picture: Picture) -> None:
        data, lost = encoded(picture, self.results[path].suffix)
        utils.write_atomically(self.results[path], partial(Path.write_bytes, data=data))
        self.finish(path, lost)

    def finish(self, path: Path, lost: list[str] | None = None) -> None:
        """Adds a result to the page; records its input and prints what it has `lost` (None: skipped)."""
        file = self.results[path]
        if self.page and not is_video(path):
            before, after = map(read_picture, (path, file))
            self.page.add({"name": path.name}, before.to_display(), after.to_display())
        if lost is None:
            self.skipped += 1
            return
        self.derained += 1
        with (self.options.save_path / RECORD).open("a", encoding="utf-8") as record:
            record.write(f"{utils.digest_of(path)}  {self.name_of(path)}\n")
        without = f", without {'; '.join(lost)}" if lost else ""
        tqdm.write(f"{escape_unprintable(path)} -> {escape_unprintable(file)}{without}")

    def name_of(self, path: Path) -> str:
        """The result of an input, as the record calls it."""
        return escape_unprintable(self.results[path].relative_to(self.options.save_path).as_posix())


if __name__ == "__main__":
    utils.run(main)
