"""The real training step and the real serving step, compiled for devices that are not here."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hisam_jax.inference import scorer
from hisam_jax.models.catalog import Catalog
from hisam_jax.models.heads import Frozen, make_objective, with_totals
from hisam_jax.models.hmat import HMAT
from hisam_jax.scaling.flops import Vocabulary
from hisam_jax.sharding import SPECS, fit, on_devices, padded_rows
from hisam_jax.training.assembly import Configs
from hisam_jax.training.optimizer import make_optimizer
from hisam_jax.training.state import init_state, make_train_step

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step and what it holds.

    Attributes:
        compiled: what XLA made; None where it found that a device's memory would not do.
        arguments: bytes on one device by kind, such as parameters, optimizer, catalogue, batch.
        parameters: number of parameters: `network` without, `tables` of item ids and codes.
        needed: bytes on one device in all, as XLA named them where it gave up.
    """

    compiled: Any
    arguments: Mapping[str, int]
    parameters: Mapping[str, int]
    needed: int = 0

    def bytes(self) -> dict[str, int]:
        """Bytes on one device by kind; temporaries are XLA's own count, or what is left of all that it needed."""
        if self.compiled is None:
            return {**self.arguments, "temporaries": max(0, self.needed - sum(self.arguments.values())), "results": 0}
        memory = self.compiled.memory_analysis()
        fresh = max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)
        return {**self.arguments, "temporaries": memory.temp_size_in_bytes, "results": fresh}


def model_of(configs: Configs, vocabulary: Vocabulary) -> HMAT:
    """The module for a catalogue that only its sizes are known of."""
    return HMAT(configs.model, vocabulary.vocab, vocabulary.digit, vocabulary.items)


def frozen_shapes(vocabulary: Vocabulary, mesh: jax.sharding.Mesh) -> Frozen:
    """Shapes of the item tables that a step reads, split by rows where the mesh has axes for it."""
    rows, levels = padded_rows(vocabulary.items), len(vocabulary.levels)
    spec = SPECS.rows
    features = {name: _shape(mesh, spec, jnp.float32, rows, width) for name, width in vocabulary.features.items()}
    catalog = Catalog(
        _shape(mesh, spec, jnp.int32, rows, levels),
        features,
        _shape(mesh, spec, jnp.bool_, rows),
        _shape(mesh, spec, jnp.float32, rows),
    )
    return Frozen(catalog, _shape(mesh, spec, jnp.int32, rows, levels + bool(vocabulary.digit)))


def batch_shapes(configs: Configs, levels: int, mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a training batch."""
    rows, items = configs.data.rows, configs.data.items_per_row
    kinds = {"item": jnp.int32, "segment": jnp.int32, "action": jnp.int32, "gap": jnp.float32}
    kinds |= {name: jnp.float32 for name in ("positive", "rank_weight", "next_weight")}
    batch = {name: _shape(mesh, SPECS.batch, kind, rows, items) for name, kind in kinds.items()}
    return {**batch, "codes": _shape(mesh, SPECS.batch, jnp.int32, rows, items, levels)}


def train_arguments(configs: Configs, vocabulary: Vocabulary, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh):
    """Shapes of a training step's state, batch and item tables as they lie on `mesh`; no device is needed."""
    frozen = frozen_shapes(vocabulary, mesh)
    batch = batch_shapes(configs, len(vocabulary.levels), mesh)
    _, init_fn = make_objective(model_of(configs, vocabulary), None, None)
    optimizer = make_optimizer(configs.training.optimizer, configs.training.steps)
    with jax.sharding.use_abstract_mesh(getattr(mesh, "abstract_mesh", mesh)):
        state = jax.eval_shape(lambda *args: init_state(init_fn, optimizer, 0, *args), batch, frozen)
    return on_devices(state, mesh), batch, frozen


def kinds_of(state: Any, batch: Any, frozen: Frozen) -> dict[str, Any]:
    """What a training step is given, by the kinds that its bytes are told of."""
    return {"parameters": state.params, "optimizer": state.opt_state, "catalogue": frozen, "batch": batch}


def train_step(configs: Configs, vocabulary: Vocabulary, mesh: jax.sharding.Mesh) -> Program:
    """The step that `hisam train` runs, for `mesh`."""
    state, batch, frozen = train_arguments(configs, vocabulary, mesh)
    loss_fn, _ = make_objective(model_of(configs, vocabulary), None, None)
    optimizer = make_optimizer(configs.training.optimizer, configs.training.steps)
    with jax.set_mesh(mesh):
        step = make_train_step(loss_fn, optimizer, configs.training.accumulate, with_totals)
        lowered = jax.jit(step, donate_argnums=0).trace(state, batch, frozen).lower()
        compiled, needed = compile_for(lowered, mesh)
    kinds = kinds_of(state, batch, frozen)
    return Program(compiled, {name: held(tree) for name, tree in kinds.items()}, count(state.params), needed)


def serve_step(configs: Configs, vocabulary: Vocabulary, device: Any, rows: int) -> Program:
    """Retrieval over the whole catalogue for `rows` histories, as the scorer runs it, on one device."""
    one = jax.sharding.Mesh(np.array([device]), ("one",))
    frozen = frozen_shapes(vocabulary, one)
    model = model_of(configs, vocabulary)
    loss_fn, init_fn = make_objective(model, None, None)
    whole = dataclasses.replace(configs, data=dataclasses.replace(configs.data, rows=rows, streams=1))
    batch = batch_shapes(whole, len(vocabulary.levels), one)
    params = jax.eval_shape(init_fn, jax.eval_shape(lambda: jax.random.key(0)), batch, frozen)
    params = on_devices(params, one)
    vectors = _shape(one, SPECS.whole, jnp.float32, padded_rows(vocabulary.items), configs.model.width)

    def step(params, catalog, vectors_ID, batch):
        return scorer.retrieval(model, params, catalog, vectors_ID, batch)

    mapped = jax.shard_map(step, mesh=one, in_specs=jax.P(), out_specs=jax.P(), check_vma=False)
    compiled, needed = compile_for(jax.jit(mapped).trace(params, frozen.catalog, vectors, batch).lower(), one)
    kinds = {"parameters": params, "catalogue": frozen.catalog, "item_vectors": vectors, "batch": batch}
    return Program(compiled, {name: held(tree) for name, tree in kinds.items()}, count(params), needed)


def compile_for(lowered: jax.stages.Lowered, mesh: jax.sharding.Mesh) -> tuple[jax.stages.Compiled | None, int]:
    """The program, or None and the bytes that libtpu says it would need: it gives up on what does not fit."""
    try:
        return lowered.compile(options_for(mesh)), 0
    except jax.errors.JaxRuntimeError as error:
        if not (needed := bytes_needed(str(error))):
            raise
        return None, needed


def bytes_needed(said: str) -> int:
    """The most bytes of a device's memory that an error of the compiler names, 0 where it is about something else.

    libtpu speaks of temporaries there, but has counted arguments and results among them.
    """
    first = said.splitlines()[0]
    if "RESOURCE_EXHAUSTED" not in first or "hbm" not in first.lower():
        return 0
    return max((int(float(size) * UNITS[unit]) for size, unit in re.findall(r"([\d.]+)([KMGT])\b", first)), default=0)


def options_for(mesh: jax.sharding.Mesh) -> dict[str, bool] | None:
    """What XLA needs to be told where no GPU is at hand to try things on.

    Its Triton products choose their tiles by running them, and without a device some find none; cuBLAS's need not.
    """
    return {"xla_gpu_enable_triton_gemm": False} if mesh.devices.flat[0].platform in ("gpu", "cuda") else None


def held(tree: Any) -> int:
    """Bytes of a tree of shapes on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def count(params: Mapping[str, Any]) -> dict[str, int]:
    """Parameters of the network and of the tables of codes and items."""
    sizes = {name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part)) for name, part in params.items()}
    tables = sizes.get("item_encoder", 0)
    return {"network": sum(sizes.values()) - tables, "tables": tables}


def _shape(mesh: jax.sharding.Mesh, spec: jax.P, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, fit(spec, shape, mesh)))
