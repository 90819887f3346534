"""Where every array of a training step lives: a mesh of four axes, and one frozen record of `jax.P` by role.

The mesh is explicit (sharding is part of an array's type), so a placement that was forgotten is an error when a step is
traced. Everything here does nothing where no mesh is set: one program serves a laptop and a pod.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils

from hisam_jax.chips import CHIPS
from hisam_jax.config import check_least
from hisam_jax.errors import UserError

AXES = ("data", "fsdp", "tensor", "context")
BATCH = ("data", "fsdp")
ROWS = ("fsdp", "tensor")
LARGE_TABLE, ROW_MULTIPLE = 4096, 256


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh.

    Attributes:
        data: copies of the model, each with its own rows of the batch; 0 takes all devices that are left.
        fsdp: devices that share one copy's parameters and optimizer state, and split the batch as `data` does.
        tensor: devices that split heads, hidden units and the rows of the softmax over items.
        context: devices that split the items of a long history; only anchors cross them.
    """

    data: int = 0
    fsdp: int = 1
    tensor: int = 1
    context: int = 1

    def __post_init__(self) -> None:
        check_least(self, "mesh", data=0, fsdp=1, tensor=1, context=1)

    def sizes(self, devices: int) -> tuple[int, ...]:
        """Devices along `AXES`.

        Raises:
            UserError: the axes do not multiply to the number of devices.
        """
        others = self.fsdp * self.tensor * self.context
        data = self.data or max(1, devices // others)
        if data * others != devices:
            asked = ", ".join(f"{name}={getattr(self, name)}" for name in AXES)
            raise UserError(
                f"{asked} over {devices} devices",
                field="mesh",
                expected=f"sizes whose product is {devices}" if self.data else f"sizes whose product divides {devices}",
            )
        return data, self.fsdp, self.tensor, self.context


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """An explicit mesh over `devices`, those of every process where none are given.

    Raises:
        UserError: the axes do not multiply to the number of devices, or `data` does not divide over their slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    kinds, sizes = (jax.sharding.AxisType.Explicit,) * len(AXES), config.sizes(len(devices))
    if len(slices_of(devices)) > 1:
        return jax.sharding.Mesh(across_slices(sizes, devices), AXES, axis_types=kinds)
    try:
        return jax.make_mesh(sizes, AXES, axis_types=kinds, devices=devices)
    except NotImplementedError:  # no product of the torus's own axes: a mesh axis takes a part of one
        split = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return jax.sharding.Mesh(split, AXES, axis_types=kinds)


def slices_of(devices: Sequence[Any]) -> set[int]:
    """The TPU slices that devices are of, which a slower network joins; one where a device does not say."""
    return {getattr(device, "slice_index", 0) for device in devices}


def across_slices(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """Devices of several slices by axis: `data` alone crosses slices, as gradients are all that it sends.

    Raises:
        UserError: `data` is no multiple of the number of slices.
    """
    data, *others = sizes
    slices = len(slices_of(devices))
    if data % slices:
        raise UserError(
            f"{data} copies over {slices} slices",
            field="mesh.data",
            expected=f"a multiple of {slices}",
            hint="the other axes stay within a slice",
        )
    inside, outside = (data // slices, *others), (slices, *[1] * len(others))
    split = devices[0].device_kind.startswith(CHIPS["v5e"].kinds)  # as `jax.make_mesh` does
    return mesh_utils.create_hybrid_device_mesh(inside, outside, devices, allow_split_physical_axes=split)


@dataclasses.dataclass(frozen=True)
class Specs:
    """The placement of every kind of array. Axes that a mesh lacks, or that do not divide an array, split nothing.

    What is computed from placed arrays alone, such as heads and hidden units, is placed by their types.

    Attributes:
        batch: `[B, N, ...]` inputs, states and targets.
        logits: `[B, N, I]` over the items of the catalogue.
        rows: `[I, ...]` tables of items, at rest; also their gradients and moments.
        scored: `[I, D]` item vectors while they are scored.
        query, key_value, attention_out: `[D, H, K]`, `[D, 2, G, K]`, `[H, K, D]` weights.
        mlp_in, mlp_out: `[2, D, F]`, `[F, D]` weights.
        matrix: `[D, X]` weights of heads and projections.
        whole: small tables, norms and biases, which every device holds.
    """

    batch: jax.P = jax.P(BATCH, "context")
    logits: jax.P = jax.P(BATCH, "context", "tensor")
    rows: jax.P = jax.P(ROWS)
    scored: jax.P = jax.P("tensor")
    query: jax.P = jax.P("fsdp", "tensor")
    key_value: jax.P = jax.P("fsdp", None, "tensor")
    attention_out: jax.P = jax.P("tensor", None, "fsdp")
    mlp_in: jax.P = jax.P(None, "fsdp", "tensor")
    mlp_out: jax.P = jax.P("tensor", "fsdp")
    matrix: jax.P = jax.P("fsdp")
    whole: jax.P = jax.P()


SPECS = Specs()


def names(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a `jax.P`."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def fit(spec: jax.P, shape: Sequence[int], mesh: Any) -> jax.P:
    """`spec` for an array of `shape` on `mesh`: without axes that the mesh lacks or that do not divide a dimension.

    Raises:
        ValueError: more entries than dimensions.
    """
    if len(spec) > len(shape):
        raise ValueError(f"{spec} has {len(spec)} entries, the array {len(shape)} dimensions: {tuple(shape)}")
    entries = []
    for entry, size in zip(spec, shape, strict=False):
        kept: tuple[str, ...] = ()
        for name in names(entry):
            if name in mesh.shape and size % math.prod(mesh.shape[each] for each in (*kept, name)) == 0:
                kept = (*kept, name)
        entries.append(kept if len(kept) > 1 else kept[0] if kept else None)
    return jax.P(*entries)


def shard(x: jax.Array, spec: jax.P) -> jax.Array:
    """`x` placed as `spec` says on the mesh that is set; itself where none is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    place = jax.reshard if mesh.explicit_axes else jax.lax.with_sharding_constraint
    return place(x, fit(spec, x.shape, mesh))


def where(mask: jax.Array, x: jax.Array, other: float) -> jax.Array:
    """`jnp.where` with the mask broadcast and placed as `x` is, which an explicit mesh asks for."""
    mask = jnp.broadcast_to(mask, x.shape)
    if jax.sharding.get_abstract_mesh().explicit_axes:
        mask = jax.reshard(mask, jax.typeof(x).sharding.spec)
    return jnp.where(mask, x, jnp.asarray(other, x.dtype))


def gathered(w: jax.Array, spec: jax.P) -> jax.Array:
    """A weight as it is multiplied: whole along `fsdp`, which splits weights at rest only."""
    used = (tuple(name for name in names(entry) if name != "fsdp") for entry in spec)
    return shard(w, jax.P(*(entry or None for entry in used)))


def look_up(table_RX: jax.Array, index_x: jax.Array, spec: jax.P) -> jax.Array:
    """`table_RX[index_x]`, placed as `spec` says; the table may be split by rows."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.explicit_axes:
        return shard(jnp.take(table_RX, index_x, axis=0), spec)
    shape = (*index_x.shape, *table_RX.shape[1:])
    return table_RX.at[index_x].get(out_sharding=fit(spec, shape, mesh))


def on_devices(shapes: Any, mesh: jax.sharding.Mesh) -> Any:
    """A tree that `jax.eval_shape` returned under `mesh`, with the devices that its placements only name axes of."""

    def on(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = jax.NamedSharding(mesh, getattr(leaf.sharding, "spec", jax.P()))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(on, shapes)


def padded_rows(rows: int) -> int:
    """Rows of a table on disk and devices: large ones are rounded up so that every sensible mesh divides them.

    One rule for every mesh, so that a checkpoint moves between them.
    """
    return rows if rows < LARGE_TABLE else -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE


def place(tree: Any, spec: jax.P, mesh: jax.sharding.Mesh | None) -> Any:
    """Host arrays, the same in every process, as global arrays on `mesh`; on the default device without one."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)

    def put(x: Any) -> jax.Array:
        x = np.asarray(x)
        sharding = jax.NamedSharding(mesh, fit(spec, x.shape, mesh))
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)
