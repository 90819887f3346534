"""Engines over random parameters and a catalogue of any size: what is timed does not depend on what was learnt."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hisam_jax.inference import filters
from hisam_jax.inference.engine import Engine, EngineConfig, Items
from hisam_jax.inference.histories import History
from hisam_jax.models.catalog import Catalog, make_catalog
from hisam_jax.models.config import HMATConfig
from hisam_jax.models.heads import make_objective
from hisam_jax.models.hmat import HMAT
from hisam_jax.tokenizer.trie import build_trie

MODEL = {"width": 128, "heads": 4, "kv_heads": 4, "layers": 4, "mlp": 344, "features": False, "actions": True}
MODEL |= {"ranking": 1.0, "generation": 1.0, "retrieval": 1.0, "past_action": True}
LEVELS, SIZE = 4, 256
KINDS = {"HMAT": {}, "flat": {"anchors": False}}


@functools.lru_cache(maxsize=4)
def made(kind: str, items: int, config: EngineConfig, seed: int = 0) -> tuple[Engine, Items]:
    """An engine and items with random codes, all different."""
    codes_IL = different_codes(items, seed)
    engine, catalog = engine_over(codes_IL, config, seed, **KINDS[kind])
    facts = filters.ItemFacts(jnp.ones(items, bool), jnp.zeros(items, jnp.int32), jnp.ones((items, 1), jnp.uint32))
    popularity_I = jnp.asarray(np.random.default_rng(seed).random(items), jnp.float32)
    trie = build_trie(codes_IL, engine.model.vocab)
    cold_I = jnp.zeros(items, bool)
    return engine, Items(catalog, trie, facts, engine.vectors(catalog), popularity_I, cold_I)


def engine_over(codes_IL: np.ndarray, config: EngineConfig, seed: int = 0, **switches) -> tuple[Engine, Catalog]:
    """An engine with random parameters over items of these codes; `switches` of the model."""
    catalog = make_catalog(codes_IL, {}, {}, np.ones(len(codes_IL), bool))
    model = HMAT(HMATConfig(**{**MODEL, **switches}), (SIZE + 1,) * LEVELS, 0, len(codes_IL))
    _, init_fn = make_objective(model, catalog, codes_IL)
    batch = {name: np.ones((1, 4), np.int32) for name in ("item", "segment", "action")}
    floats = {name: np.ones((1, 4), np.float32) for name in ("gap", "positive", "rank_weight", "next_weight")}
    params = jax.jit(init_fn)(jax.random.key(seed), {**batch, **floats, "codes": codes_IL[batch["item"]]})
    return Engine(model, params, config), jax.tree.map(jnp.asarray, catalog)


def history(items: int, length: int, seed: int = 0) -> History:
    """Random events."""
    rng = np.random.default_rng(seed)
    item, action = rng.integers(0, items, length), rng.integers(1, 11, length)
    return History(item.astype(np.int32), action.astype(np.int32), np.ones(length, np.float32))


def different_codes(items: int, seed: int = 0) -> np.ndarray:
    """`[I, L]`: random codes, no two items alike."""
    rng, codes = np.random.default_rng(seed), np.zeros((0, LEVELS), np.int64)
    while len(codes) < items:
        codes = np.unique(np.concatenate([codes, rng.integers(0, SIZE, (2 * items, LEVELS))]), axis=0)
    return rng.permutation(codes)[:items].astype(np.int32)
