"""What the verbs share: a parser whose mistakes are one line, value types with a range, the result on stdout."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hisam_jax.errors import UserError
from hisam_jax.files import full_disk_is_a_user_error


@dataclasses.dataclass(frozen=True)
class Verb:
    """One verb: its one-line summary, what adds its flags, and what calls the one function behind it."""

    summary: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    call: Callable[[argparse.Namespace], Any]


@dataclasses.dataclass(frozen=True)
class Lines:
    """A result that is printed as JSON lines, one row a line."""

    rows: Iterable[Any]


class _Help(argparse.HelpFormatter):
    """Says of every flag whether it is required or what it is when left out."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=120)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if not action.option_strings or action.default is argparse.SUPPRESS or "(default" in text:
            return text  # a verb, a positional, --help and --version, or a default that needs words
        if action.required:
            return f"{text} (required)"
        return f"{text} (default: none)" if action.default is None else f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose mistakes are `UserError`s that name the nearest flag or verb; nothing is abbreviated."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, formatter_class=_Help, **settings)

    def parse_args(self, args: Sequence[str]) -> argparse.Namespace:
        known, unknown = self.parse_known_args(args)
        if unknown:
            verb = self._subparsers._group_actions[0].choices[known.verb]
            close = _nearest(unknown[0].split("=")[0], verb._option_string_actions)
            raise UserError(
                f"unknown argument '{unknown[0]}'", expected=close, hint=f"`hisam {known.verb} --help` lists every flag"
            )
        return known

    def error(self, message: str) -> NoReturn:
        verb = re.search(r"argument VERB: invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if verb:
            names = re.findall(r"\w+", verb[2])
            raise UserError(
                f"unknown verb '{verb[1]}'", expected=f"{_nearest(verb[1], names)}, or another of {', '.join(names)}"
            )
        raise UserError(message, hint=f"see `{self.prog} --help`")


def add_verb(verbs: Any, name: str, verb: Verb) -> None:
    """Adds a verb to the parser made by `add_subparsers`."""
    parser = verbs.add_parser(name, help=verb.summary, description=verb.summary)
    verb.add_flags(parser)
    parser.set_defaults(call=verb.call)


def add_config(parser: argparse.ArgumentParser, example: str) -> None:
    """Adds `--config FILE`; `--config.FIELD=VALUE` is taken out of the command line by `split_overrides`."""
    parser.add_argument(
        "--config", metavar="FILE", required=True, help=f"a Python file with get_config(), such as {example}"
    )
    parser.add_argument_group(
        "overrides"
    ).description = "--config.SECTION.FIELD=VALUE sets one field of the config file."


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--config.a.b=value` and `--config.a.b value` out of a command line."""
    rest, overrides, words = [], {}, iter(argv)
    for word in words:
        if not word.startswith("--config."):
            rest.append(word)
            continue
        field, equals, value = word.removeprefix("--config.").partition("=")
        if not equals and (value := next(words, None)) is None:
            raise UserError("an override without a value", field=word, expected=f"{word}=VALUE")
        overrides[field] = value
    return rest, overrides


def config_of(arguments: argparse.Namespace, complete: Callable[[Any], Any] | None = None):
    """The config file of a verb with its overrides applied; `complete` adds fields that the file may leave out."""
    from hisam_jax.config import load_config

    return load_config(arguments.config, arguments.overrides, complete)


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not re.fullmatch(r"\d+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}'; expected a whole number of at least 1")
    return int(text)


def seed(text: str) -> int:
    """A whole number from 0 to 2^32 - 1."""
    if not re.fullmatch(r"\d+", text) or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"'{text}'; expected a whole number from 0 to {2**32 - 1}")
    return int(text)


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"'{text}'; expected a number from 0 to 1")
    return value


def names(text: str) -> list[str]:
    """Names joined by commas; at least one, none of them empty."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise argparse.ArgumentTypeError(f"'{text}'; expected names joined by commas, none of them empty")
    return parts


def option(text: str) -> tuple[str, str]:
    """KEY=VALUE."""
    name, sign, value = text.partition("=")
    if not re.fullmatch(r"\w+", name) or not sign:
        raise argparse.ArgumentTypeError(f"'{text}'; expected KEY=VALUE")
    return name, value


def write_result(result: Any) -> None:
    """Prints a result on stdout: a path as it is, `Lines` as JSON lines, anything else as JSON.

    A reader that has gone away (`hisam recommend ... | head -1`) has had what it wanted.
    """
    try:
        with full_disk_is_a_user_error("stdout"):
            for line in _lines(result):
                print(line)
            sys.stdout.flush()
    except (BrokenPipeError, UserError) as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter flushes again at exit
        if isinstance(error, UserError):
            raise


def _lines(result: Any) -> Iterable[str]:
    if result is None:
        return []
    if isinstance(result, Lines):
        return (json.dumps(row, default=_plain, ensure_ascii=False) for row in result.rows)
    if isinstance(result, (str, Path)):
        return [str(result)]
    return [json.dumps(result, default=_plain, ensure_ascii=False, indent=2)]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _nearest(name: str, known: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"'{close[0]}'" if close else None
