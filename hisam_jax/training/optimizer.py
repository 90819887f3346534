"""AdamW with a warm-up and cosine schedule, a clipped global norm and decay on the weights that bear it."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from hisam_jax.config import check_least
from hisam_jax.errors import UserError

_NEVER_DECAYED = re.compile(r"(^|[/_])(norm|scale|bias|offset|temperature)", re.IGNORECASE)
_EMBEDDING = re.compile(r"embed|table|anchor", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019) and its schedule.

    Attributes:
        learning_rate: the peak.
        warmup_steps: linear from 0.
        final_fraction: of the peak, at the last step of the cosine.
        weight_decay: decoupled, times the learning rate.
        decay_embeddings: whether embedding tables decay too; norms, biases and vectors never do.
        clip_norm: of the global gradient, 0 for none.
        b1: decay of the mean.
        b2: decay of the mean square.
        eps: added to the root of the mean square.
        state_dtype: of the mean and the square at rest; the arithmetic is float32.
    """

    learning_rate: float = 2e-3
    warmup_steps: int = 100
    final_fraction: float = 0.05
    weight_decay: float = 0.01
    decay_embeddings: bool = False
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    state_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for field in ("learning_rate", "eps"):
            if not getattr(self, field) > 0:
                raise UserError(f"value {getattr(self, field)}", field=f"optimizer.{field}", expected="more than 0")
        check_least(self, "optimizer", warmup_steps=0, weight_decay=0, clip_norm=0, final_fraction=0)


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by 0-based step: a linear rise, then a cosine down to `final_fraction` of the peak at `steps`."""
    warmup = min(config.warmup_steps, max(steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / max(warmup, 1),
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=config.learning_rate * config.final_fraction,
    )


def decay_mask(params: Any, decay_embeddings: bool = False) -> Any:
    """True for each weight that decays: matrices whose path names neither a norm, a bias nor (by default) a table."""

    def decays(path: tuple, leaf: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return bool(
            leaf.ndim >= 2 and not _NEVER_DECAYED.search(name) and (decay_embeddings or not _EMBEDDING.search(name))
        )

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip, Adam, decoupled decay, schedule, for a run of `steps` updates."""
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    adamw = optax.adamw(
        make_schedule(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=lambda params: decay_mask(params, config.decay_embeddings),
    )
    adamw = stored_as(config.state_dtype, adamw)
    return optax.chain(clip, adamw)


def stored_as(dtype: str, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` with its float32 arrays kept in `dtype` between updates: half the memory for half the digits."""
    if dtype == "float32":
        return inner

    def cast(tree: Any, old: Any, new: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(new) if jnp.ndim(x) and x.dtype == jnp.dtype(old) else x, tree)

    def init(params: Any) -> Any:
        return cast(inner.init(params), jnp.float32, dtype)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(grads, cast(state, dtype, jnp.float32), params)
        return updates, cast(state, jnp.float32, dtype)

    return optax.GradientTransformation(init, update)
