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
LossFn = Callable[[Params, Mapping[str, jax.Array], jax.Array], tuple[jax.Array, Mapping[str, jax.Array]]]
InitFn = Callable[[jax.Array, Mapping[str, jax.Array]], Params]


class TrainState(flax.struct.PyTreeNode):
    """Parameters, optimizer state, updates done (int32 scalar) and the run's key, from which each step's is folded."""

    params: Params
    opt_state: optax.OptState
    step: jax.Array
    key: jax.Array


def init_state(
    init_fn: InitFn, tx: optax.GradientTransformation, seed: int, batch: Mapping[str, jax.Array]
) -> TrainState:
    """Step 0: parameters from one key of the seed, steps' randomness from the other."""
    init_key, key = jax.random.split(jax.random.key(seed))
    params = init_fn(init_key, batch)
    return TrainState(params=params, opt_state=tx.init(params), step=jnp.zeros((), jnp.int32), key=key)


def make_train_step(
    loss_fn: LossFn, tx: optax.GradientTransformation
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, Metrics]]:
    """`train_step(state, batch) -> (state, metrics)`; metrics add loss, grad_norm (before the clip) and update_norm."""

    def train_step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norms = {"grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
        new = state.replace(params=params, opt_state=opt_state, step=state.step + 1)
        return new, {**metrics, "loss": loss, **norms}

    return train_step
