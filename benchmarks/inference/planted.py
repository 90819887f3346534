"""A million items whose next one follows planted chances, and a small model trained to foretell it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.inference.models import LEVELS, SIZE, different_codes, engine_over
from hisam_jax.inference.engine import Engine, EngineConfig
from hisam_jax.models.catalog import Catalog
from hisam_jax.models.heads import make_objective
from hisam_jax.progress import progress
from hisam_jax.tokenizer.trie import Trie, build_trie

LENGTH, RANK, PEAK, BIAS = 17, 8, 1.6, 1.0
SWITCHES = {"width": 64, "heads": 2, "kv_heads": 2, "layers": 2, "mlp": 172, "dropout": 0.0, "actions": False}
SWITCHES |= {"ranking": 0.0, "retrieval": 0.0, "item_id": False, "past_action": False, "time_gap": False}


class Planted:
    """Items and the law of what follows what.

    A next item's code at each level is drawn among the codes that exist behind its prefix, by how popular the code is
    and by a product of factors of rank `RANK` of the last item's code and of the code itself.

    Args:
        items: of the catalogue, random codes, no two alike.
        seed: of all.
    """

    def __init__(self, items: int, seed: int = 0):
        rng = np.random.default_rng([seed, 7])
        self.codes_IL = different_codes(items, seed)
        self.trie = build_trie(self.codes_IL, (SIZE + 1,) * LEVELS)
        self.tree: Trie = jax.tree.map(np.asarray, self.trie)
        left, right = rng.normal(size=(2, LEVELS, SIZE, RANK))
        bias_LK = BIAS * rng.normal(size=(LEVELS, 1, SIZE))
        self.score_LKK = PEAK * np.einsum("lar,lbr->lab", left, right) / RANK**0.5 * 1.5 + bias_LK

    def sequences(self, count: int, length: int, seed: int) -> np.ndarray:
        """int32 `[count, length]` items."""
        rng = np.random.default_rng([seed, 11])
        out = np.empty((count, length), np.int32)
        out[:, 0] = rng.integers(0, len(self.codes_IL), count)
        for at in range(1, length):
            out[:, at] = self._next(rng, out[:, at - 1])
        return out

    def _next(self, rng: np.random.Generator, last_S: np.ndarray) -> np.ndarray:
        node_S = np.zeros(len(last_S), np.int64)
        for level in range(LEVELS):
            starts, fanout = self.tree.starts[level], self.tree.fanouts[level]
            child_SF = starts[node_S][:, None] + np.arange(fanout)
            exists = child_SF < starts[node_S + 1][:, None]
            code_SF = self.tree.codes[level][np.where(exists, child_SF, 0)]
            score_SF = self.score_LKK[level][self.codes_IL[last_S, level][:, None], code_SF]
            drawn = np.argmax(np.where(exists, score_SF + rng.gumbel(size=score_SF.shape), -np.inf), axis=1)
            node_S = child_SF[np.arange(len(node_S)), drawn]
        return self.tree.item_order[self.tree.leaf_start[node_S]]


def learnt(
    planted: Planted, config: EngineConfig, steps: int, rows: int = 32
) -> tuple[Engine, Catalog, dict[str, Any]]:
    """A generation model of `steps` updates on fresh sequences, and its loss in nats an item at the end."""
    engine, catalog = engine_over(planted.codes_IL, config, **SWITCHES)
    loss_fn, _ = make_objective(engine.model, catalog, planted.codes_IL)
    rate = optax.warmup_cosine_decay_schedule(0.0, 4e-3, max(1, steps // 20), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    @jax.jit
    def update(params, state, batch, key):
        (loss, _), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, key)
        change, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, change), state, loss

    params, losses = engine.params, []
    state = optimizer.init(params)
    item_SN = planted.sequences(rows * min(steps, 60), LENGTH, seed=1)
    order = np.random.default_rng(0)
    for step in progress(range(steps), total=steps, description="training", unit="step"):
        chosen = order.permutation(len(item_SN))[:rows]
        params, state, loss = update(params, state, _batch(item_SN[chosen], planted.codes_IL), jax.random.key(step))
        losses.append(loss)
    engine = Engine(engine.model, params, config)
    nats = float(jnp.stack(losses[-max(1, steps // 10) :]).mean())
    return engine, catalog, {"steps": steps, "nats": nats, "parameters": sum(x.size for x in jax.tree.leaves(params))}


def _batch(item_SN: np.ndarray, codes_IL: np.ndarray) -> dict[str, np.ndarray]:
    ones, whole = np.ones(item_SN.shape, np.float32), np.ones(item_SN.shape, np.int32)
    batch = {"item": item_SN, "segment": whole, "action": whole, "codes": codes_IL[item_SN]}
    return batch | {"gap": ones, "positive": ones, "rank_weight": ones, "next_weight": ones}
