"""Checkpoints: parameters, the rest of the state and the data positions together, whole or not at all (Orbax v1)."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from hisam_jax.distributed import agree, barrier, from_main, is_main, lost_peer
from hisam_jax.errors import UserError
from hisam_jax.training.checksums import check_files, write_checksums
from hisam_jax.training.state import Params, TrainState

_log = logging.getLogger(__name__)
_FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_RETIRED = ".retired-"
_DAMAGED = "damaged-"
_AGAIN = ".again"  # behind the step of one that is saved anew: the old one stays until the new one is whole
PATIENCE = 600.0  # seconds that processes wait for each other around a restore


_T = TypeVar("_T")


class _Unreadable(Exception):
    """A checkpoint that not every process can read; all of them say so."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """A committed checkpoint: its step, folder, run, what the loop remembered and where the data's streams stood."""

    step: int
    path: Path
    identity: dict[str, Any]
    memory: dict[str, Any]
    positions: dict[str, Any]


def saved_steps(folder: str | os.PathLike) -> list[int]:
    """Steps of the committed checkpoints, ascending."""
    paths = [path for path in Path(folder).glob("*") if path.name.isdigit()]
    with _quiet():
        return sorted(int(path.name) for path in paths if ocp.is_orbax_checkpoint(path.absolute()))


class Saving:
    """A checkpoint that is being written while training goes on; it is one once `finish` has returned."""

    def __init__(self, path: Path, written: Path, begin: Callable[[], Any], keep: int, best_step: int | None):
        self.path, self.keep, self.best_step = path, keep, best_step
        self._written = written
        self._response = self._trying(begin)
        pool = ThreadPoolExecutor(1, "checkpoint")
        self._end = pool.submit(self._commit)
        pool.shutdown(wait=False)

    def finish(self) -> None:
        """Waits until it is committed, then drops all but the last `keep` and `best_step`.

        Raises:
            UserError: the disk is full; the checkpoints that were there stay.
        """
        self._trying(self._end.result)
        if is_main():
            steps = saved_steps(self.path.parent)
            _drop(self.path.parent, [old for old in steps[: -self.keep] if old != self.best_step])

    def _commit(self) -> None:
        self._response.result()
        if is_main():
            write_checksums(self._written)
            if self._written != self.path:
                _replace(self.path, self._written)

    def _trying(self, work: Callable[[], Any]) -> Any:
        try:
            with _quiet():
                return work()
        except Exception as error:
            if is_main():
                with contextlib.suppress(OSError):  # the error that brought us here says more
                    _clear(self.path.parent)
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or _mentions_full_disk(error):
                kept = [known for known in saved_steps(self.path.parent) if str(known) != self._written.name]
                raise UserError(
                    f"the disk is full: no checkpoint of step {self.path.name}",
                    path=self.path,
                    hint=f"last good checkpoint: {f'step {kept[-1]}' if kept else 'none'}; free space and run it again",
                ) from error
            raise


def save(
    folder: str | os.PathLike,
    state: TrainState,
    positions: Mapping[str, Any],
    identity: Mapping[str, Any],
    memory: Mapping[str, Any],
    *,
    keep: int = 2,
    best_step: int | None = None,
) -> Saving:
    """Begins to save at the state's own step; every process calls it. The state may be given away at once.

    Args:
        folder: of the run's checkpoints.
        state: of any sharding.
        positions: of every stream of the data, as JSON.
        identity: what a run must share to go on from here.
        memory: of the loop, as JSON.
        keep: last checkpoints that stay when this one is committed.
        best_step: another one that stays.

    Raises:
        UserError: the disk is full; the checkpoints that were there stay.
    """
    path = Path(folder).absolute() / str(int(state.step))
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f"{path.name}{_AGAIN}") if from_main(path.exists()) else path
    if jax.default_backend() == "cpu":  # what is written in the background shares its memory with the array there
        state = jax.tree.map(jnp.copy, state)
    parts = {"params": state.params, "state": _but_params(state)}
    record = {"identity": dict(identity), "memory": dict(memory), "positions": dict(positions)}
    begin = functools.partial(ocp.save_checkpointables_async, written, parts, overwrite=True, custom_metadata=record)
    return Saving(path, written, begin, keep, best_step)


def restore(
    folder: str | os.PathLike, identity: Mapping[str, Any], abstract: TrainState
) -> tuple[TrainState, Saved] | None:
    """The newest readable checkpoint, placed as `abstract` says; None where there is none at all.

    It may have been saved on other devices. What a killed save left is removed, a checkpoint that is damaged for any of
    the processes is set aside by all, each with a warning.

    Raises:
        UserError: the checkpoint is of another configuration (names the fields), or none can be read.
        PeerLost: another process did not come along.
    """
    folder, abstract = Path(folder).absolute(), _placed(abstract)
    if is_main():
        for name in _clear(folder):
            _log.warning("ignored the incomplete checkpoint %s", folder / name)
    barrier("checkpoints cleared", PATIENCE)
    steps = from_main(saved_steps(folder), PATIENCE)
    for tried, step in enumerate(reversed(steps)):
        try:
            saved = _together(functools.partial(_checked, folder, step, ("params", "state")))
            _check_identity(saved, identity)
            parts = _together(functools.partial(_load, saved.path, abstract))
        except _Unreadable as error:
            problem = error
            continue
        for damaged in steps[len(steps) - tried :]:
            if is_main():
                _log.warning("checkpoint %s cannot be read; going on from step %d", folder / str(damaged), step)
                _set_aside(folder / str(damaged))
        barrier("checkpoint restored", PATIENCE)
        return abstract.replace(params=parts["params"], **parts["state"]), saved
    if steps:
        raise UserError(
            f"no checkpoint can be read ({problem})",
            path=folder,
            hint="move the folder away to train from the start",
        ) from problem
    return None


def describe(folder: str | os.PathLike, step: int) -> Saved:
    """What a checkpoint says of itself, its arrays unread."""
    path = Path(folder).absolute() / str(step)
    with _quiet():
        metadata = ocp.metadata(path, checkpointable_name="params").custom_metadata
    return Saved(step, path, metadata["identity"], metadata["memory"], metadata.get("positions", {}))


def load_params(workdir: str | os.PathLike, which: Literal["best", "last"] = "best") -> Params:
    """Parameters alone, on the default device, as a nested dict.

    `best` is the checkpoint with the best monitored metric, and the last one where nothing was monitored.

    Raises:
        UserError: no checkpoint under `workdir`, or a damaged one.
    """
    folder = Path(workdir).absolute() / "checkpoints"
    steps = from_main(saved_steps(folder), PATIENCE)
    if not steps:
        raise UserError("no checkpoint", path=folder, expected="a run that `hisam train` saved at least once")
    step = steps[-1]
    try:
        best = _together(functools.partial(_checked, folder, step, ())).memory.get("best_step")
        step = best if which == "best" and best in steps else step
        path = _together(functools.partial(_checked, folder, step, ("params",))).path
        return _together(functools.partial(_load_params, path))
    except _Unreadable as error:
        raise UserError(f"unreadable checkpoint ({error})", path=folder / str(step)) from error


def _together(work: Callable[[], _T]) -> _T:
    """The result of `work`, which waits for nobody, once every process has one; else all raise `_Unreadable`."""
    problem = None
    try:
        with _quiet():
            result = work()
    except Exception as error:
        if lost_peer(error):
            raise
        problem = error
    if agree(problem is not None, PATIENCE):
        reason = f"{type(problem).__name__}: {problem}" if problem else "another process cannot read it"
        raise _Unreadable(reason) from problem
    return result


def _checked(folder: Path, step: int, parts: Sequence[str]) -> Saved:
    """A checkpoint whose own files and those of `parts` are as they were committed."""
    saved = describe(folder, step)
    check_files(saved.path, parts)
    return saved


def _load(path: Path, abstract: TrainState) -> dict[str, Any]:
    with _by_itself():
        return ocp.load_checkpointables(path, {"params": abstract.params, "state": _but_params(abstract)})


def _load_params(path: Path) -> Params:
    tree = ocp.metadata(path, checkpointable_name="params").metadata
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    with _by_itself():
        params = ocp.load(path, _placed(abstract), checkpointable_name="params")
    return params if jax.process_count() == 1 else jax.tree.map(lambda x: x.addressable_data(0), params)


def _by_itself() -> ocp.Context:
    """Lets each process read its shards alone: in Orbax's barriers one that fails would keep the others for minutes."""
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    return ocp.Context(multiprocessing_options=options)


def _placed(abstract: Any) -> Any:
    """Says the default device where a leaf says no sharding; Orbax would read the saving machine's from its file.

    Of several processes every device gets all of it, as each process must read what it can address.
    """
    if jax.process_count() == 1:
        default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    else:
        default = jax.NamedSharding(jax.sharding.Mesh(np.array(jax.devices()), ("all",)), jax.P())

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or default)

    return jax.tree.map(place, abstract)


def _but_params(state: TrainState) -> dict[str, Any]:
    return {"opt_state": state.opt_state, "step": state.step, "key": state.key}


def _check_identity(saved: Saved, identity: Mapping[str, Any]) -> None:
    differing = differences(saved.identity, identity)
    if differing:
        raise UserError(
            f"the checkpoint of step {saved.step} is of another configuration: {'; '.join(differing)}",
            path=saved.path,
            hint="run with the same arguments, or into a new workdir",
        )


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What `now` says otherwise than the record `then`, by name and in words.

    A switch that one of them does not know, and that is off in the other, is no difference.
    """
    then, now, absent = _flatten(then), _flatten(json.loads(json.dumps(now))), "absent"
    return [
        f"{name} was {then.get(name, absent)!r}, is {now.get(name, absent)!r}"
        for name in sorted({*then, *now})
        if then.get(name, absent) != now.get(name, absent)
        and (name in then and name in now or then.get(name) or now.get(name))
    ]


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        name: leaf
        for key, part in value.items()
        for name, leaf in _flatten(part, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _clear(folder: Path) -> list[str]:
    """Removes what killed saves and deletions left, and ends replacements; the names of the saves."""
    with _quiet():
        for written in folder.glob(f"*{_AGAIN}"):
            if ocp.is_orbax_checkpoint(written):
                _replace(folder / written.name.removesuffix(_AGAIN), written)
        paths = sorted(path for path in folder.glob("*") if path.is_dir())
        torn = [path for path in paths if path.name[:1].isdigit() and not path.name.isdigit()]
        torn += [path for path in paths if path.name.isdigit() and not ocp.is_orbax_checkpoint(path)]
    for path in torn + [path for path in paths if path.name.startswith(_RETIRED)]:
        _remove(path)
    return [path.name for path in torn]


def _drop(folder: Path, steps: list[int]) -> None:
    for step in steps:
        _remove(_retire(folder / str(step)))  # so that a kill half-way leaves nothing that looks whole


def _replace(path: Path, written: Path) -> None:
    """Puts a whole checkpoint into the place of another; killed half-way, `_clear` ends it."""
    retired = _retire(path) if path.exists() else None
    written.rename(path)
    if retired:
        _remove(retired)


def _retire(path: Path) -> Path:
    retired = path.with_name(f"{_RETIRED}{path.name}")
    _remove(retired)
    return path.rename(retired)


def _set_aside(path: Path) -> None:
    """Renames a damaged checkpoint, which may not be the first one of its step."""
    names = (f"{_DAMAGED}{path.name}{f'-{count}' if count > 1 else ''}" for count in itertools.count(1))
    path.rename(next(aside for aside in map(path.with_name, names) if not aside.exists()))


def _remove(path: Path) -> None:
    """Removes a folder; another process may be at it too."""
    while path.exists():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)


def _mentions_full_disk(error: BaseException | None) -> bool:
    while error is not None:
        if any(text in str(error) for text in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Orbax's own account of each save off the user's screen."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
