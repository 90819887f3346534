"""Config files (ml_collections), overrides from the command line, and frozen dataclasses made from them."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import ml_collections

from hisam_jax.errors import UserError
from hisam_jax.remote import local

T = TypeVar("T")
Completion = Callable[[ml_collections.ConfigDict], ml_collections.ConfigDict]


def load_config(
    path: str | Path, overrides: Mapping[str, str] | None = None, complete: Completion | None = None
) -> ml_collections.ConfigDict:
    """Runs `get_config()` of a Python file and applies `{"model.layers": "4"}`-style overrides.

    `complete` adds the fields that the file may leave out, so that they can be overridden too.

    Raises:
        UserError: no such file, no `get_config`, an unknown field (names the nearest), a value of another type.
    """
    file = local(path, "config")
    if not file.is_file() or file.suffix != ".py":
        what = "not a Python file" if file.is_file() else "no such config file"
        raise UserError(what, path=file, expected="a .py file with get_config() -> ConfigDict")
    spec = importlib.util.spec_from_file_location(f"hisam_config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
        if isinstance(config, ml_collections.ConfigDict):
            config.to_dict(preserve_field_references=True)  # fails where a section has names of text and numbers
    except Exception as error:
        raise UserError(
            f"{type(error).__name__}: {error}",
            path=file,
            line=_line_in(file, error),
            expected="a Python file with get_config() -> ConfigDict",
        ) from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"get_config() gave a {type(config).__name__}", path=file, expected="an ml_collections.ConfigDict"
        )
    config = complete(config) if complete else config
    for field, text in (overrides or {}).items():
        _override(config, field, text, file)
    return config


def need(config: ml_collections.ConfigDict, *fields: str) -> None:
    """Checks that `config` has every one of `fields`.

    Raises:
        UserError: the first that it lacks.
    """
    for field in fields:
        if field not in config:
            raise UserError("missing config field", field=field, expected=f"a config with {', '.join(fields)}")


def seed_of(config: ml_collections.ConfigDict) -> int:
    """The field `seed`.

    Raises:
        UserError: there is none, or it is no seed.
    """
    need(config, "seed")
    if isinstance(config.seed, bool) or not isinstance(config.seed, int) or not 0 <= config.seed < 2**32:
        raise UserError(f"value {config.seed!r}", field="seed", expected=f"a whole number from 0 to {2**32 - 1}")
    return config.seed


def build(cls: type[T], section: Mapping[str, Any], where: str) -> T:
    """A frozen dataclass `cls` from a config section named `where`, empty for the whole file.

    Raises:
        UserError: no section, an unknown field, one that is missing, a value of another type.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    if not is_section(section):
        raise UserError(f"value {section!r}", field=where or None, expected=f"a section of {', '.join(fields)}")
    values = {}
    for name, value in section.items():
        if name not in fields:
            raise UserError("unknown config field", field=_dotted(where, name), expected=_nearest(str(name), fields))
        if dataclasses.is_dataclass(hints[name]) and not isinstance(value, hints[name]):
            values[name] = build(hints[name], value, _dotted(where, name))
        else:
            values[name] = _coerce(value, hints[name], _dotted(where, name))
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            expected = " or ".join(map(_named, _options(hints[name])))
            raise UserError("missing config field", field=_dotted(where, name), expected=expected)
    return cls(**values)


def is_section(value: Any) -> bool:
    """Whether a value of a config has fields of its own."""
    return isinstance(value, (Mapping, ml_collections.ConfigDict))


def _dotted(where: str, name: str) -> str:
    return f"{where}.{name}" if where else str(name)


def check_least(record: Any, section: str, **least: float) -> None:
    """Checks that the named fields of a config record are at least so much.

    Raises:
        UserError: the first that is less, or NaN, as a field of `section`.
    """
    for name, value in least.items():
        if not getattr(record, name) >= value:
            given = getattr(record, name)
            raise UserError(f"value {given}", field=_dotted(section, name), expected=f"{value} or more")


def check_shares(record: Any, section: str, *names: str, whole: bool = False) -> None:
    """Checks that the named fields of a config record are shares, 0 or more and below 1, or with `whole` at most 1.

    Raises:
        UserError: the first that is not, as a field of `section`.
    """
    for name in names:
        value = getattr(record, name)
        if not (0 <= value < 1 or (whole and value == 1)):
            expected = "a share, 0 to 1" if whole else "0 or more, below 1"
            raise UserError(f"value {value}", field=_dotted(section, name), expected=expected)


def check_choices(record: Any, section: str) -> None:
    """Checks that every `Literal` field of a config record is one of those listed.

    Raises:
        UserError: the first that is not, as a field of `section`.
    """
    for name, hint in typing.get_type_hints(type(record)).items():
        if typing.get_origin(hint) is typing.Literal and getattr(record, name) not in typing.get_args(hint):
            given = getattr(record, name)
            raise UserError(f"value {given!r}", field=_dotted(section, name), expected=_named(hint))


def _override(config: ml_collections.ConfigDict, field: str, text: str, file: Path) -> None:
    node, path = config, field.split(".")
    for depth, name in enumerate(path):
        if not isinstance(node, ml_collections.ConfigDict) or name not in node:
            known = list(node) if isinstance(node, ml_collections.ConfigDict) else []
            prefix = ".".join(path[:depth])
            raise UserError(
                "unknown config field", path=file, field=field, expected=_nearest(name, known, prefix and prefix + ".")
            )
        parent, node = node, node[name]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(node, ml_collections.ConfigDict) and isinstance(value, dict):
        value = _section(value, field, file)
    switched_off = value is None and not isinstance(node, ml_collections.ConfigDict)
    hint = Any if node is None or switched_off else type(node)  # a record later refuses a None of its own
    with parent.ignore_type():
        parent[path[-1]] = text if hint is str else _coerce(value, hint, field, file)


def _section(value: Mapping[str, Any], field: str, file: Path) -> ml_collections.ConfigDict:
    """What stands for a whole section."""
    try:
        section = ml_collections.ConfigDict(value)
        section.to_dict()  # fails where it has names of text and numbers
    except (TypeError, ValueError) as error:
        raise UserError(f"value {value!r}", path=file, field=field, expected="names of text without dots") from error
    return section


def _line_in(file: Path, error: Exception) -> int | None:
    """The last line of `file` that the error passed through."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return error.lineno
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return frames[-1].lineno if frames else None


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"{prefix}{close[0]} or another of {', '.join(sorted(known))}" if close else "no field here"


def _coerce(value: Any, hint: Any, where: str, file: Path | None = None) -> Any:
    if isinstance(value, ml_collections.ConfigDict) and hint is not ml_collections.ConfigDict:
        value = value.to_dict()
    if hint is Any:
        return value
    options = _options(hint)
    for option in options:
        base = typing.get_origin(option) or option
        if base is typing.Literal and value in typing.get_args(option):
            return value
        if base is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if base is tuple and isinstance(value, (list, tuple)):
            return tuple(value)
        if isinstance(base, type) and issubclass(base, Mapping) and isinstance(value, Mapping):
            return value
        if isinstance(base, type) and isinstance(value, base) and not (base is int and isinstance(value, bool)):
            return value
    names = " or ".join(_named(option) for option in options)
    raise UserError(f"value {value!r} of type {type(value).__name__}", path=file, field=where, expected=names)


def _options(hint: Any) -> tuple[Any, ...]:
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if union else (hint,)


def _named(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    return "None" if hint is types.NoneType else getattr(hint, "__name__", str(hint))
