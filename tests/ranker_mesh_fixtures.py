"""The loss of QARM's ranker and the norm of its gradient, on one device and on meshes of two; printed as JSON."""

from __future__ import annotations

import json

import jax
import numpy as np
import optax
from model_fixtures import ITEMS, LEVELS, SIZE, small_batch, small_catalog, small_params

from hisam_jax.models.heads import make_objective
from hisam_jax.models.qarm_config import QarmRankerConfig
from hisam_jax.models.qarm_ranker import QarmRanker
from hisam_jax.sharding import MeshConfig, make_mesh

MESHES = {"data": MeshConfig(data=2), "fsdp": MeshConfig(data=1, fsdp=2), "context": MeshConfig(data=1, context=2)}


def main() -> None:
    """One step's loss and gradient, block after block, of the same parameters and batch."""
    near = np.random.default_rng(0).integers(-1, ITEMS, (ITEMS, 5)).astype(np.int32)
    catalog = small_catalog().replace(extras={"neighbours": near})
    config = QarmRankerConfig(width=8, mlp=16, attention_units=4, dropout=0.0, id_dropout=0.0, block=4)
    model = QarmRanker(config, (SIZE + 1,) * LEVELS, 4, ITEMS)
    batch = small_batch(catalog, items=12)
    params, _ = small_params(model, catalog, batch)
    loss_fn, _ = make_objective(model, catalog, np.zeros((ITEMS, LEVELS), np.int32))

    def step(params):
        (loss, _), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, jax.random.key(0))
        return loss, optax.global_norm(gradient)

    found = {"alone": jax.jit(step)(params)}
    for name, mesh in MESHES.items():
        with jax.set_mesh(make_mesh(mesh)):
            found[name] = jax.jit(step)(params)
    print(json.dumps({name: [float(value) for value in values] for name, values in found.items()}))


if __name__ == "__main__":
    main()
