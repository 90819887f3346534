"""A small catalogue, batch and model for tests of models and inference."""

import jax
import jax.numpy as jnp
import numpy as np

from hisam_jax.models.catalog import make_catalog
from hisam_jax.models.config import HMATConfig
from hisam_jax.models.heads import make_frozen, make_objective
from hisam_jax.models.hmat import HMAT
from hisam_jax.sharding import AXES, SPECS, shard

ITEMS, LEVELS, SIZE = 40, 3, 8


def small_catalog(seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, SIZE, (ITEMS, LEVELS)).astype(np.int32)
    features = {"text": rng.normal(size=(ITEMS, 5)).astype(np.float32)}
    return make_catalog(codes, features, {"text": rng.random(ITEMS) < 0.8}, np.arange(ITEMS) < ITEMS - 3)


def small_model(**switches):
    config = HMATConfig(**{"width": 16, "heads": 2, "kv_heads": 1, "mlp": 24, "dropout": 0.0, **switches})
    return HMAT(config, (SIZE + 1,) * LEVELS, 4, ITEMS)


def small_batch(catalog, seed=0, rows=2, items=9):
    rng = np.random.default_rng(seed)
    item = rng.integers(0, ITEMS - 3, (rows, items)).astype(np.int32)
    segment = np.ones((rows, items), np.int32)
    segment[0, 4:] = 2
    segment[1, 7:] = 0
    positive = (rng.random((rows, items)) < 0.7).astype(np.float32)
    first = np.diff(segment, prepend=0, axis=1) != 0
    return {
        "item": item,
        "segment": segment,
        "codes": catalog.codes_IL[item],
        "action": rng.integers(0, 11, (rows, items)).astype(np.int32),
        "gap": rng.random((rows, items)).astype(np.float32) * 5,
        "positive": positive,
        "rank_weight": (segment > 0).astype(np.float32),
        "next_weight": positive * ~first * (segment > 0),
    }


def small_params(model, catalog, batch, seed=0):
    """Initial parameters, every one moved off its initial value so that no path is silent by being zero."""
    full = np.concatenate([catalog.codes_IL, np.arange(ITEMS)[:, None] % 4], axis=1)
    loss_fn, init_fn = make_objective(model, catalog, jnp.asarray(full))
    params = jax.jit(init_fn)(jax.random.key(seed), batch)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    moved = [x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved), loss_fn


def traced_gradient(model, catalog, full, sizes=(2, 2, 2, 1)):
    """Shapes and placements of a first step's gradient on an explicit mesh of these sizes, traced without devices."""
    loss_fn, init_fn = make_objective(model, None, None)

    def step():
        batch = {name: shard(jnp.asarray(x), SPECS.batch) for name, x in small_batch(small_catalog(), rows=4).items()}
        frozen = jax.tree.map(lambda x: shard(jnp.asarray(x), SPECS.rows), make_frozen(catalog, full))
        params = init_fn(jax.random.key(0), batch, frozen)
        return jax.grad(loss_fn, has_aux=True)(params, batch, jax.random.key(1), frozen)[0]

    mesh = jax.sharding.AbstractMesh(sizes, AXES, axis_types=(jax.sharding.AxisType.Explicit,) * len(AXES))
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.eval_shape(step)
