"""A compiled train step on random data, optimizer included, as the parts that time whole steps run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hisam_jax.models.catalog import Catalog
from hisam_jax.models.config import HMATConfig
from hisam_jax.models.heads import make_objective
from hisam_jax.models.hmat import HMAT
from hisam_jax.training.state import init_state, make_train_step


def full_rows(rng: np.random.Generator, codes_IL: np.ndarray, rows: int, length: int) -> dict[str, np.ndarray]:
    """A batch of full rows of one user each; every event is a positive of the least action and counts in every loss."""
    item = rng.integers(0, len(codes_IL), (rows, length)).astype(np.int32)
    ones = np.ones((rows, length), np.float32)
    batch = {"item": item, "segment": ones.astype(np.int32), "codes": codes_IL[item], "gap": ones, "positive": ones}
    return batch | {"action": ones.astype(np.int32), "rank_weight": ones, "next_weight": ones}


def stepping(
    config: HMATConfig,
    codes_size: int,
    catalog: Catalog,
    optimizer: optax.GradientTransformation,
    batch: Mapping[str, np.ndarray],
) -> Callable[[], Any]:
    """One compiled step over a state that it keeps; codes are of `codes_size` and need no digit."""
    model = HMAT(config, (codes_size + 1,) * catalog.codes_IL.shape[1], 0, catalog.items)
    loss_fn, init_fn = make_objective(model, catalog, jnp.asarray(catalog.codes_IL))
    kept = {"state": init_state(init_fn, optimizer, 0, batch)}
    step = jax.jit(make_train_step(loss_fn, optimizer), donate_argnums=0)

    def once() -> Any:
        kept["state"], metrics = step(kept["state"], batch)
        return metrics

    return once
