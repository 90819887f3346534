"""Where a run's arrays are: on one device, or on a mesh over the devices of every process."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from hisam_jax.errors import UserError
from hisam_jax.sharding import BATCH, SPECS, fit, on_devices, place


def rows_here(mesh: jax.sharding.Mesh | None, rows: int, devices: Sequence[Any] | None = None) -> np.ndarray:
    """int64, ascending: the rows of a batch that devices hold, this process's where none are given.

    The mesh follows a slice's torus, so those of a process are not always one run of them.

    Raises:
        UserError: the mesh does not divide the rows.
    """
    if mesh is None:
        return np.arange(rows)
    split = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % split:
        problem = f"{rows} rows over {split} devices of axes data, fsdp"
        raise UserError(problem, field="data.rows", expected=f"a multiple of {split}")
    sharding = jax.NamedSharding(mesh, fit(jax.P(BATCH), (rows,), mesh))
    where = sharding.devices_indices_map((rows,))
    devices = sharding.addressable_devices if devices is None else devices
    held = {where[device][0].indices(rows)[:2] for device in devices}
    return np.concatenate([np.arange(*bounds) for bounds in sorted(held)])


def streams_here(
    mesh: jax.sharding.Mesh | None, rows: int, streams: int, devices: Sequence[Any] | None = None
) -> list[int]:
    """The streams of the data pipeline that give the rows of devices, this process's where none are given.

    Raises:
        UserError: a stream's rows would be those of two processes.
    """
    here_R, each = rows_here(mesh, rows, devices), rows // streams
    stream_R = here_R // each
    mine, counts = np.unique(stream_R, return_counts=True)
    if (counts < each).any():
        run = np.diff(np.flatnonzero(np.diff(here_R, prepend=-2, append=rows + 1) != 1)).min()
        least = rows // int(np.gcd(int(run), rows))
        raise UserError(
            f"{streams} streams for {jax.process_count()} processes",
            field="data.streams",
            expected=f"a multiple of {least}",
            hint=f"--config.data.streams={least}; a run keeps the streams that it began with",
        )
    return mine.tolist()


class Placement:
    """Puts batches, state and frozen tables where a step wants them."""

    def __init__(self, mesh: jax.sharding.Mesh | None, frozen: Sequence[Any] = ()):
        self.mesh = mesh
        self.frozen = tuple(place(tree, SPECS.rows, mesh) for tree in frozen)
        self._splits = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
        self._here = rows_here(mesh, self._splits)
        self._place = {int(split): place for place, split in enumerate(self._here)}
        self.share = self._splits // len(self._here)  # all rows, over those of this process

    def batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """This process's rows as global arrays."""
        if self.mesh is None:
            return dict(batch)
        return {name: self._global(np.asarray(rows)) for name, rows in batch.items()}

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(*args, *frozen)` where the mesh is set."""
        with jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext():
            return function(*args, *self.frozen)

    def shapes(self, function: Callable[..., Any], *args: Any) -> Any:
        """What `function` would return, with the sharding of every leaf."""
        shapes = self.call(lambda *all: jax.eval_shape(function, *all), *args)
        if self.mesh is None:
            return shapes

        return on_devices(shapes, self.mesh)

    def local(self, tree: Any) -> Any:
        """A tree of global arrays, whole on this process's default device."""
        if self.mesh is None:
            return tree
        whole = jax.NamedSharding(self.mesh, jax.P())
        with jax.set_mesh(self.mesh):
            tree = jax.jit(lambda x: x, out_shardings=whole)(tree)
        return jax.tree.map(lambda x: x.addressable_data(0), tree)

    def gather(self, positions: Mapping[str, Any]) -> dict[str, Any]:
        """Every process's positions of its streams."""
        if jax.process_count() == 1:
            return dict(positions)
        own = np.frombuffer(json.dumps(dict(positions)).encode(), np.uint8)
        sizes = multihost_utils.process_allgather(np.int32(own.size))
        padded = np.zeros(int(sizes.max()), np.uint8)
        padded[: own.size] = own
        everyone = multihost_utils.process_allgather(padded)
        parts = [json.loads(bytes(row[:size])) for row, size in zip(everyone, sizes, strict=True)]
        return {stream: position for part in parts for stream, position in part.items()}

    def local_rows(self, total: int, start: int, stop: int) -> slice:
        """Where rows `start` to `stop` of a batch, those of one of its devices, are among this process's."""
        each = total // self._splits
        first = self._place[start // each] * each + start % each
        return slice(first, first + stop - start)

    def _global(self, rows: np.ndarray) -> jax.Array:
        shape = (len(rows) // len(self._here) * self._splits, *rows.shape[1:])
        sharding = jax.NamedSharding(self.mesh, fit(SPECS.batch, shape, self.mesh))

        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(shape[0])
            return rows[(self.local_rows(shape[0], start, stop), *index[1:])]

        return jax.make_array_from_callback(shape, sharding, part)
