"""The command line of every script: a frozen record's fields are its options, with their defaults."""

import argparse
import dataclasses
import difflib
import json
import math
import re
import sys
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Self, TypedDict, TypeVar, Unpack, get_args, get_origin, get_type_hints

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


class Details(TypedDict, total=False):
    """What an option may have besides a default, a help text and choices."""

    group: str  # its heading in `--help`
    also: str  # an older name
    needs: str  # the option without which only the default is valid
    changes_result: bool  # a resumed run must have the same value
    architecture: bool  # a network is built with it
    positional: bool  # given without a name
    required: bool  # has no default on the command line
    min: float  # limits of the value, or of each value of a tuple
    max: float


def option(default: Any, help: str, choices: Sequence[str] | None = None, **details: Unpack[Details]) -> Any:
    """A dataclass field that is an option."""
    help = f"with --{details['needs']}: {help}" if "needs" in details else help
    return field(default=default, metadata={"help": help, "choices": choices, **details})


machine = partial(option, group="machine")


@dataclass(frozen=True)
class Options:
    """A script's options, one per field."""

    def validate(self) -> str | None:
        """An error message that names an option, in one line; None if all values are valid."""
        for each in dataclasses.fields(self):
            value, details = getattr(self, each.name), each.metadata
            if (other := details.get("needs")) and not getattr(self, other) and value != each.default:
                return f"--{each.name} only applies with --{other}"
            for number in value if isinstance(value, tuple) else (value,):
                if not isinstance(number, int | float):
                    continue
                if not abs(number) < 2**63:  # NaN too; torch.load reads integers of 64 bits only
                    return f"--{each.name} is not a finite number below 2^63"
                low, high = details.get("min", -math.inf), details.get("max", math.inf)
                if not low <= number <= high:
                    return f"--{each.name} {number} must be in [{low}, {high}]"
        return None

    def with_typed(self, names: Set[str]) -> Self:
        """The record, changed so that the options typed by the user take effect. Raises UserError."""
        return self


@dataclass(frozen=True)
class Machine(Options):
    """Where and how to compute: for every script that runs a network."""

    use_GPU: bool = machine(True, "use CUDA where available; False: the CPU")
    gpu_id: tuple[int, ...] = machine((0, 1), "CUDA devices: training uses all that exist, others one", min=0)
    precision: str = machine(
        "float32",
        "arithmetic; bfloat16: less memory, faster on some hardware; tf32: rounded products, faster on CUDA",
        ("float32", "tf32", "bfloat16"),
    )


Record = TypeVar("Record", bound=Options)


def parse(record: Record, description: str | None = None, arguments: Sequence[str] | None = None) -> Record:
    """`record` changed by the command line, whose options are the record's fields.

    `description` starts the `--help` text; by default it is the script's docstring. Raises UserError where
    options contradict each other, and exits where one is unknown or of the wrong type.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", nargs="?")
    preset = early.parse_known_args(arguments)[0].preset
    if preset and hasattr(record, "with_preset"):
        record = record.with_preset(preset)  # its defaults are those that `--help` shows
    kinds = get_type_hints(type(record))
    fields = [each for each in dataclasses.fields(record) if "help" in each.metadata]
    needed = [f"--{each.name} ..." for each in fields if each.metadata.get("required")]
    needed += [each.name for each in fields if each.metadata.get("positional")]
    parser = _Parser(
        usage=" ".join(["%(prog)s [options]", *needed]),  # argparse's own takes forty lines
        description=description or sys.modules["__main__"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    groups = {title: parser.add_argument_group(title) if title else parser for title in GROUPS}
    for each in fields:
        group = groups[each.metadata.get("group", "")]
        _add_option(group, each, kinds[each.name], getattr(record, each.name))
    given = vars(parser.parse_args(arguments))
    for name, values in given.items():
        if isinstance(values, list):  # "24,32 48" is [(24, 32), (48,)]
            given[name] = tuple(n for part in values for n in (part if isinstance(part, tuple) else [part]))
    changed = dataclasses.replace(record, **given).with_typed(given.keys())
    if wrong := changed.validate():
        raise UserError(wrong)
    return changed


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """The usage and one line, with the known option closest to an unknown one."""
        if unknown := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
            known = {re.sub("[_-]", "", name.lower()): name for name in self._option_string_actions}
            close = difflib.get_close_matches(re.sub("[_-]", "", unknown[1].lower()), known, n=1)
            message += f"; did you mean {known[close[0]]}?" if close else ""
        super().error(escape_unprintable(message))


def to_dict(record: Options) -> dict[str, Any]:
    """A record as numbers, strings and lists, as stored in a checkpoint."""
    return json.loads(json.dumps(vars(record), default=str))


def resume_keys(record: Options) -> list[str]:
    """The options whose values must not change when a run is resumed."""
    return [each.name for each in dataclasses.fields(record) if each.metadata.get("changes_result")]


def _add_option(parser: Any, each: dataclasses.Field, kind: Any, default: Any) -> None:
    details = each.metadata
    how: dict[str, Any] = {"help": details["help"].replace("%", "%%"), "choices": details["choices"]}
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
        how |= {"type": kind if kind in (Path, str) else _numbers(kind), "nargs": "*"}
    elif kind is bool:
        # --flag alone is True; --flag False, as in the paper's commands, is False
        how |= {"type": _truth, "nargs": "?", "const": True}
    else:
        how["type"] = kind
    if not details["choices"]:
        how["metavar"] = "True|False" if kind is bool else kind.__name__.upper()
    if details.get("positional"):
        parser.add_argument(each.name, **how | {"metavar": each.name})
    elif details.get("required"):
        parser.add_argument(f"--{each.name}", required=True, **how)
    else:
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        how["help"] += f" (default: {'none' if shown in ('', Path()) else shown})"
        names = [f"--{name}" for name in (each.name, details.get("also")) if name]
        parser.add_argument(*names, dest=each.name, default=argparse.SUPPRESS, **how)  # only what was typed


def _numbers(kind: type) -> Callable[[str], tuple]:
    def read(text: str) -> tuple:
        # "312,416", or "[312, 416]" as in the authors' option table
        return tuple(kind(part) for part in re.split(r"[\s,]+", text.strip("[]() ,")) if part)

    read.__name__ = f"list of {kind.__name__}"  # argparse's name for it in errors
    return read


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() in ("true", "1", "yes")
