"""A step as a process of its own, and what is kept of it: the settings it began with, how often it failed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from hisam_jax.config import load_config
from hisam_jax.errors import UserError
from hisam_jax.files import atomic_write
from hisam_jax.training.checkpoints import differences, saved_steps

LOOK_SECONDS = 0.1  # between two looks at whether a step has ended
SAID = 400  # last characters of a failed step's log that are shown
FAILED = "failed.json"


@dataclasses.dataclass(frozen=True)
class CellFiles:
    """Names of what lies in a cell's folder, beside its run in `run`.

    Attributes:
        record: the settings that it began with.
        result: there once it is done.
        made: what its settings decide, and a cell that begins anew begins without.
    """

    record: str
    result: str
    made: tuple[str, ...]


class Failed(Exception):
    """A step ended with an error; its last words.

    Args:
        said: the words.
        code: its exit code.
    """

    def __init__(self, said: str, code: int = 1):
        super().__init__(said)
        self.code = code


class Stopped(Exception):
    """We were told to stop, and so was the step: it has saved what it had."""


def execute(command: Sequence[str], log: Path, held: Sequence[int] = (), stop: threading.Event | None = None) -> None:
    """Runs `python COMMAND` to its end, what it says going to a log; it holds the locks `held` with us.

    Raises:
        Failed: it ended with an error.
        Stopped: `stop` was set.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as stream:
        child = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=stream, pass_fds=held)
        try:
            while (code := child.poll()) is None:
                if stop is not None and stop.wait(LOOK_SECONDS):
                    raise Stopped
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(LOOK_SECONDS)
        except BaseException:
            child.send_signal(signal.SIGTERM)  # a run saves what it has
            child.wait()
            raise
    if code and stop is not None and stop.wait(LOOK_SECONDS):
        raise Stopped  # what ended us, such as Ctrl-C, ended it too
    if code:
        said = log.read_text(errors="replace")[-SAID:].strip().splitlines() or [f"exit code {code}"]
        raise Failed(f"{said[-1].removeprefix('hisam: error: ')} (exit code {code}; {log})", code)


def hisam(arguments: Sequence[Any], overrides: Mapping[str, Any]) -> list[str]:
    """The arguments of python that run `hisam ARGUMENTS` with overrides of its config."""
    flags = [f"--config.{field}={value}" for field, value in _as_flags(overrides).items()]
    return ["-m", "hisam_jax", *map(str, arguments), *flags]


def _as_flags(overrides: Mapping[str, Any]) -> dict[str, str]:
    """Overrides as the command line gives them to a step."""
    return {field: str(value) for field, value in overrides.items()}


def loaded(config: Path, overrides: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A config file with its overrides, as a step that is given both has it."""
    return load_config(config, _as_flags(overrides))


def resolved(config: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`loaded`, as JSON."""
    return json.loads(json.dumps(loaded(config, overrides).to_dict(), sort_keys=True))


def check_same(record: Path, settings: Mapping[str, Any], made: Path, hint: str) -> None:
    """Keeps the settings of what is `made` beside it, or refuses others than it began with.

    Raises:
        UserError: they differ; `hint` says what to do.
    """
    refuse_others(record, settings, made, hint)
    if not record.is_file():
        keep(record, settings)


def refuse_others(record: Path, settings: Mapping[str, Any], made: Path, hint: str) -> None:
    """`check_same` that keeps nothing."""
    if changed := _changes(record, settings):
        what = f"was made with other settings ({', '.join(changed)})"
        raise UserError(what, path=made, expected="these settings", hint=hint)


def keep(record: Path, settings: Mapping[str, Any]) -> None:
    """Keeps the settings of what is to be made, in place of those of an earlier try."""
    atomic_write(record, json.dumps(settings, indent=1) + "\n")


def begin_cell(folder: Path, files: CellFiles, settings: Mapping[str, Any], hint: str) -> None:
    """`check_same` for a cell whose lock we hold; where it failed with nothing to show, mended settings begin it anew.

    Raises:
        UserError: it began with other settings, and did not fail, or has a checkpoint or its result.
    """
    if _changes(folder / files.record, settings) and may_begin_anew(folder, files):
        for name in files.made:
            _remove(folder / name)
        keep(folder / files.record, settings)
        (folder / FAILED).unlink()  # last, so that a kill on the way leaves a cell that may begin anew
    check_same(folder / files.record, settings, folder, hint)


def may_begin_anew(folder: Path, files: CellFiles) -> bool:
    """Whether a cell failed, and left neither a checkpoint nor its result."""
    unfinished = not (folder / files.result).exists() and not saved_steps(folder / "run" / "checkpoints")
    return (folder / FAILED).is_file() and unfinished


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _changes(record: Path, settings: Mapping[str, Any]) -> list[str]:
    then = json.loads(record.read_text()) if record.is_file() else settings
    return [name for part in settings for name in differences(then.get(part, {}), settings[part])]


def tries_of(folder: Path) -> int:
    """How often a cell has failed since it last ended well."""
    record = folder / FAILED
    return json.loads(record.read_text())["tries"] if record.is_file() else 0


def note_failure(folder: Path, error: Failed) -> None:
    """Counts a cell's failure and keeps what it said."""
    record = {"tries": tries_of(folder) + 1, "said": str(error)}
    atomic_write(folder / FAILED, json.dumps(record, indent=1) + "\n")


@contextlib.contextmanager
def noting_failure(folder: Path) -> Iterator[None]:
    """Keeps what a step within it failed with in the cell's folder, and forgets earlier failures where none does."""
    try:
        yield
    except Failed as error:
        note_failure(folder, error)
        raise
    (folder / FAILED).unlink(missing_ok=True)


def failure_of(folder: Path) -> str | None:
    """What a cell said when it last failed; None for one that did not."""
    record = folder / FAILED
    return json.loads(record.read_text())["said"] if record.is_file() else None


def some_failed(said: Mapping[str, str], cells: int, out: Path) -> UserError:
    """What tells that of so many cells in `out` some failed: name of the cell -> what it said."""
    first, words = next(iter(said.items()))
    return UserError(
        f"{len(said)} of {cells} cells failed, the first {first}: {words}", path=out,
        hint="mend it and run the same command again: what is done stays done",
    )  # fmt: skip
