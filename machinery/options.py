"""The command line of every script: a frozen record's fields are its options, with their defaults."""

import argparse
import dataclasses
import difflib
import itertools
import math
import operator
import re
import sys
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar, get_args, get_origin, get_type_hints

from utils import UserError, escape_unprintable

# the order in --help; "" has no heading
GROUPS = (
    "",
    "data",
    "schedule",
    "weights of the loss",
    "beyond the paper's recipe",
    "machine",
    "checkpoints and logs",
)


def option(
    default: Any,
    help: str,
    choices: Sequence[str] | None = None,
    *,
    group: str = "",
    also: str = "",
    needs: str = "",
    changes_result: bool = False,
    architecture: bool = False,
    positional: bool = False,
    required: bool = False,
    min: float | None = None,
    greater_than: float | None = None,
    max: float | None = None,
    count: int | None = None,
) -> Any:
    """A field that is an option: its default, its help text and its valid values.

    `group`: its heading in `--help`. `also`: an older name. `needs`: the option without which only the
    default is valid. `changes_result`: a resumed run must have the same value. `architecture`: a network is
    built with it. `positional`: given without a name. `required`: has no default on the command line.
    `min` <= value <= `max`, or `greater_than` < value; a tuple has `count` values, each within the limits.
    """
    kind = {"changes_result": changes_result, "positional": positional, "required": required}
    kind |= {"architecture": architecture}
    limits = {"min": min, "greater_than": greater_than, "max": max, "count": count}
    help = f"with --{needs}: {help}" if needs else help
    names = {"help": help, "choices": choices, "group": group, "also": also, "needs": needs}
    return field(default=default, metadata={**names, **kind, **limits})


@dataclass(frozen=True)
class Options:
    """A script's options, one per field."""

    def validate(self) -> str | None:
        """An error message about options that contradict each other; None if there is none."""
        return None

    def with_typed(self, names: Set[str]) -> Self:
        """The record, changed so that the options typed by the user take effect. Raises UserError."""
        return self

    @property
    def architecture(self) -> dict[str, Any]:
        """The fields that a network is built with, except `backbone`."""
        named = (each.name for each in dataclasses.fields(self) if each.metadata.get("architecture"))
        return {name: getattr(self, name) for name in named if name != "backbone"}


@dataclass(frozen=True)
class Machine(Options):
    """Where and how to compute: for every script that runs a network."""

    use_GPU: bool = option(True, "use CUDA where available; False: the CPU", group="machine")
    gpu_id: tuple[int, ...] = option(
        (0, 1),
        "CUDA devices: training runs a process on each, others use the first; missing ones are skipped",
        group="machine",
        min=0,
    )
    precision: str = option(
        "float32",
        "arithmetic of the network; bfloat16: less memory, faster where the hardware supports it; "
        "tf32: float32 with rounded products, faster on CUDA",
        ("float32", "tf32", "bfloat16"),
        group="machine",
    )

    def validate(self) -> str | None:
        if len(set(self.gpu_id)) < len(self.gpu_id):
            return f"--gpu_id {','.join(map(str, self.gpu_id))} names a card twice"
        return super().validate()


Record = TypeVar("Record", bound=Options)


def parse(record: Record, description: str | None = None, arguments: Sequence[str] | None = None) -> Record:
    """`record` changed by the command line, whose options are the record's fields.

    `description` starts the `--help` text; by default it is the script's docstring.
    """
    description = description or sys.modules["__main__"].__doc__
    record = _by_preset(record, arguments)
    kinds = get_type_hints(type(record))
    fields = [each for each in dataclasses.fields(record) if "help" in each.metadata]
    needed = [f"--{each.name} ..." for each in fields if each.metadata["required"]]
    needed += [each.name for each in fields if each.metadata["positional"]]
    parser = _Parser(
        usage=" ".join(["%(prog)s [options]", *needed]),  # argparse's own takes forty lines
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for title in dict.fromkeys((*GROUPS, *(each.metadata["group"] for each in fields))):
        group = parser.add_argument_group(title) if title else parser  # empty groups are not shown
        for each in (each for each in fields if each.metadata["group"] == title):
            _add_option(group, each, kinds[each.name], getattr(record, each.name))
    given = vars(parser.parse_args(arguments))
    # several values come as a list of tuples: "24,32 48" is [(24, 32), (48,)]
    given = {k: tuple(itertools.chain(*v)) if isinstance(v, list) else v for k, v in given.items()}
    changed = dataclasses.replace(record, **given)
    try:
        changed = changed.with_typed(given.keys())
        wrong = validate(changed)
    except UserError as error:
        wrong = str(error)
    if wrong:
        parser.exit(2, f"{parser.prog}: {wrong}\n")  # one line, without the usage
    return changed


def _by_preset(record: Record, arguments: Sequence[str] | None) -> Record:
    """The recipe that `--preset` names, where there is such an option; the other options change that one."""
    if not hasattr(record, "with_preset"):
        return record
    early = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    early.add_argument("--preset", nargs="?")
    name = early.parse_known_args(arguments)[0].preset
    choices = next(each.metadata["choices"] for each in dataclasses.fields(record) if each.name == "preset")
    return record.with_preset(name) if name in choices else record  # the main parser reports unknown names


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, with the known option closest to an unknown one, and the description's first example."""
        if unknown := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
            known = {re.sub("[_-]", "", name.lower()): name for name in self._option_string_actions}
            close = difflib.get_close_matches(re.sub("[_-]", "", unknown[1].lower()), known, n=1)
            message += f"; did you mean {known[close[0]]}?" if close else ""
        lines = [line.strip() for line in (self.description or "").splitlines()]
        example = next((f"; as in: {line}" for line in lines if line.startswith("python ")), "")
        super().error(escape_unprintable(message) + example)


def to_dict(record: Options) -> dict[str, Any]:
    """A record as numbers, strings and lists, as stored in a checkpoint."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(each) for each in value]
        return str(value) if isinstance(value, Path) else value

    return {key: plain(value) for key, value in vars(record).items()}


def resume_keys(record: Options) -> list[str]:
    """The options whose values must not change when a run is resumed."""
    return [each.name for each in dataclasses.fields(record) if each.metadata.get("changes_result")]


def _add_option(parser: Any, each: dataclasses.Field, kind: Any, default: Any) -> None:
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    if shown in ("", Path()):
        shown = "none"
    text = f"{each.metadata['help']} (default: {shown})".replace("%", "%%")  # argparse formats the text
    how: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}  # only what was typed
    if get_origin(kind) is tuple:
        inner, choices = get_args(kind)[0], each.metadata["choices"]
        how |= {"type": _several(inner, choices), "nargs": "*", "metavar": inner.__name__.upper()}
    elif kind is bool:
        # --flag alone is True; --flag False, as in the paper's commands, is False
        how |= {"type": _truth, "nargs": "?", "const": True, "metavar": "True|False"}
    else:
        how |= {"type": kind, "choices": each.metadata["choices"]}
        how["metavar"] = None if how["choices"] else kind.__name__.upper()
    if each.metadata["positional"]:
        parser.add_argument(each.name, **(how | {"help": each.metadata["help"], "metavar": each.name}))
    elif each.metadata["required"]:
        parser.add_argument(f"--{each.name}", required=True, **(how | {"help": each.metadata["help"]}))
    else:
        names = [f"--{name}" for name in (each.name, each.metadata["also"]) if name]
        parser.add_argument(*names, dest=each.name, **how)


def _several(kind: type, choices: Sequence[str] | None) -> Any:
    def read(text: str) -> tuple:
        # "312,416", or "[312, 416]" as in the authors' option table
        parts = [text] if kind in (Path, str) else re.split(r"[\s,]+", text.strip("[]() ,"))
        values = tuple(kind(part) for part in parts if part or kind in (Path, str))
        if wrong := [each for each in values if choices and each not in choices]:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is not one of {', '.join(choices or ())}")
        return values

    read.__name__ = f"list of {kind.__name__}"  # argparse's name for it in errors
    return read


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() in ("true", "1", "yes")


def validate(record: Options) -> str | None:
    """An error message that names the option, in one line; None if all values are valid."""
    for each in dataclasses.fields(record):
        value, limits = getattr(record, each.name), each.metadata
        values = value if isinstance(value, tuple) else (value,)
        if (other := limits.get("needs")) and not getattr(record, other) and value != each.default:
            return f"--{each.name} only applies with --{other}"
        if (count := limits.get("count")) and len(values) != count:
            return f"--{each.name} takes {count} numbers, as {','.join('8' * count)}"
        for number in values:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if isinstance(number, float) and not math.isfinite(number):
                return f"--{each.name} {number} is not a finite number"
            if isinstance(number, int) and not -(2**63) <= number < 2**63:  # torch.load reads 64 bits only
                return f"--{each.name} has too many digits ({len(str(abs(number)))})"
            for limit, broken, words in (
                (limits.get("min"), operator.lt, "at least"),
                (limits.get("greater_than"), operator.le, "greater than"),
                (limits.get("max"), operator.gt, "at most"),
            ):
                if limit is not None and broken(number, limit):
                    return f"--{each.name} {number} must be {words} {limit}"
    return record.validate()
