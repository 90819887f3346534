"""What a step changes, and the step: pure functions of their arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

Params = Any
Metrics = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]
LossFn = Callable[..., tuple[jax.Array, Mapping[str, jax.Array]]]  # (params, batch, key, *frozen)
InitFn = Callable[..., Params]  # (key, batch, *frozen)


class TrainState(flax.struct.PyTreeNode):
    """Parameters, optimizer state, updates done (int32 scalar) and the run's key, from which each step's is folded."""

    params: Params
    opt_state: optax.OptState
    step: jax.Array
    key: jax.Array


def init_state(init_fn: InitFn, tx: optax.GradientTransformation, seed: int, batch: Batch, *frozen: Any) -> TrainState:
    """Step 0: parameters from one key of the seed, steps' randomness from the other."""
    init_key, key = jax.random.split(jax.random.key(seed))
    params = init_fn(init_key, batch, *frozen)
    return TrainState(params=params, opt_state=tx.init(params), step=jnp.zeros((), jnp.int32), key=key)


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    accumulate: int = 1,
    totals: Callable[[Batch], Batch] = lambda batch: batch,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """`train_step(state, batch, *frozen) -> (state, metrics)`, pure.

    Args:
        loss_fn: `(params, batch, key, *frozen) -> (loss, metrics)`.
        tx: the optimizer.
        accumulate: parts into which a batch's rows are cut, one after the other on the devices; the gradient is the
            sum over parts.
        totals: adds to a batch what makes the losses of its parts sum to that of the whole, as scalars.

    Metrics add loss, grad_norm (before the clip) and update_norm.
    """
    gradient = jax.value_and_grad(loss_fn, has_aux=True)

    def in_parts(params, batch, key, *frozen):
        batch = totals(batch)
        same = {name: value for name, value in batch.items() if not jnp.ndim(value)}
        parts = {name: _cut(value, accumulate) for name, value in batch.items() if name not in same}

        def add(total, part):
            index, rows = part
            found = gradient(params, {**rows, **same}, jax.random.fold_in(key, index), *frozen)
            return jax.tree.map(jnp.add, total, found), None

        first = {name: part[0] for name, part in parts.items()}
        shapes = jax.eval_shape(gradient, params, {**first, **same}, key, *frozen)
        zeros = jax.tree.map(_zeros, shapes)
        return jax.lax.scan(add, zeros, (jnp.arange(accumulate), parts))[0]

    def train_step(state: TrainState, batch: Batch, *frozen: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        (loss, metrics), grads = (gradient if accumulate == 1 else in_parts)(state.params, batch, key, *frozen)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norms = {"grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
        new = state.replace(params=params, opt_state=opt_state, step=state.step + 1)
        return new, {**metrics, "loss": loss, **norms}

    return train_step


def _cut(x: jax.Array, parts: int) -> jax.Array:
    """`[B, ...]` as `[parts, B / parts, ...]`; every part has rows of every device, so that nothing moves."""
    rows = x.shape[0] // parts
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.explicit_axes:
        return jnp.moveaxis(x.reshape(rows, parts, *x.shape[1:]), 1, 0)
    by_row, *others = jax.typeof(x).sharding.spec
    shape = (rows, parts, *x.shape[1:])
    split = jax.lax.reshape(x, shape, out_sharding=jax.P(by_row, None, *others))
    return jnp.moveaxis(split, 1, 0)


def _zeros(shape: jax.ShapeDtypeStruct) -> jax.Array:
    zeros = jnp.zeros(shape.shape, shape.dtype)
    spec = getattr(shape.sharding, "spec", None)
    return zeros if spec is None else jax.reshard(zeros, spec)
