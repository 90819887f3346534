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


def rows_here(mesh: jax.sharding.Mesh | None, rows: int) -> range:
    """The rows of a batch that this process's devices hold.

    Raises:
        UserError: the mesh does not divide the rows, or this process's devices hold no run of them.
    """
    if mesh is None:
        return range(rows)
    split = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % split:
        problem = f"{rows} rows over {split} devices of axes data, fsdp"
        raise UserError(problem, field="data.rows", expected=f"a multiple of {split}")
    sharding = jax.NamedSharding(mesh, fit(jax.P(BATCH), (rows,), mesh))
    held = sorted({index[0].indices(rows)[:2] for index in sharding.addressable_devices_indices_map((rows,)).values()})
    first, last = held[0][0], held[-1][1]
    if last - first != sum(end - start for start, end in held):
        raise UserError(
            f"a process holds rows {held}", field="mesh", expected="devices in the order of their processes"
        )
    return range(first, last)


def streams_here(mesh: jax.sharding.Mesh | None, rows: int, streams: int) -> range:
    """The streams of the data pipeline that give the rows of this process.

    Raises:
        UserError: a stream's rows would be those of two processes.
    """
    here, each = rows_here(mesh, rows), rows // streams
    if here.start % each or here.stop % each:
        least = rows // len(here)
        raise UserError(
            f"{streams} streams for {jax.process_count()} processes",
            field="data.streams",
            expected=f"a multiple of {least}",
            hint=f"--config.data.streams={least}; a run keeps the streams that it began with",
        )
    return range(here.start // each, here.stop // each)


class Placement:
    """Puts batches, state and frozen tables where a step wants them."""

    def __init__(self, mesh: jax.sharding.Mesh | None, frozen: Sequence[Any] = ()):
        self.mesh = mesh
        self.frozen = tuple(place(tree, SPECS.rows, mesh) for tree in frozen)
        self._splits = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
        self._here = rows_here(mesh, self._splits)
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

    def _global(self, rows: np.ndarray) -> jax.Array:
        total = len(rows) * self.share
        first, shape = self._here.start * total // self._splits, (total, *rows.shape[1:])
        sharding = jax.NamedSharding(self.mesh, fit(SPECS.batch, shape, self.mesh))

        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(total)
            return rows[(slice(start - first, stop - first), *index[1:])]

        return jax.make_array_from_callback(shape, sharding, part)
