"""Beam search over a million items beside exact scoring of them all: what beams miss."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.common import interval, table
from benchmarks.inference.exact import exact_top
from benchmarks.inference.planted import LENGTH, PEAK, RANK, SWITCHES, Planted, learnt
from hisam_jax.evaluation.intervals import Bootstrap, means
from hisam_jax.inference import steps as serving
from hisam_jax.inference.engine import Engine, EngineConfig
from hisam_jax.inference.histories import History, pad_histories
from hisam_jax.models.catalog import Catalog
from hisam_jax.progress import progress

CATALOG, USERS, STEPS, TOP, WHOLE = 1_000_000, 128, 300, 10, 1
WIDTHS: tuple[int | tuple[int, ...], ...] = (10, 20, 50, 100, 200, 400)
WIDTHS += ((50, 200, 50, 20), (100, 200, 200, 20), (50, 400, 400, 20))


def run(quick: bool = False) -> dict[str, Any]:
    """Exact top lists of users, and what beams of each width find of them and of the planted next item."""
    planted = Planted(5_000 if quick else CATALOG)
    config = EngineConfig(rows=(1,), lengths=(LENGTH,), candidates=(1,))
    engine, catalog, training = learnt(planted, config, 10 if quick else STEPS)
    item_UN = planted.sequences(4 if quick else USERS, LENGTH, seed=2)
    rows = []
    for row, item_N in enumerate(progress(item_UN, total=len(item_UN), description="users", unit="user")):
        rows.append(_user(planted, engine, catalog, item_N, row < WHOLE))
    return {"seeds": [0], "items": len(planted.codes_IL), "training": training, "users": rows}


def _user(planted: Planted, engine: Engine, catalog: Catalog, item_N: np.ndarray, whole: bool) -> dict[str, Any]:
    """Places of the exact top and of the target in each list; `whole` proves the exact list by reading every prefix."""
    read_BD, cache, items_B = _read(planted, engine, catalog, item_N[:-1])
    lists = {}
    for width in WIDTHS:
        leaf, logp = _search(engine.model, engine.params, planted.trie, cache, read_BD, items_B, width)
        lists[str(width)] = np.asarray(leaf)[0, :TOP], np.asarray(logp)[0, :TOP]
    least = max(float(logp[-1]) for _, logp in lists.values())
    top = functools.partial(exact_top, engine.model, engine.params, planted.tree, cache, read_BD, items_B, TOP)
    leaf, logp, followed = top(least)
    if whole:
        every, _, _ = top()
        if every.tolist() != leaf.tolist():
            raise AssertionError(f"reading every prefix found {every}, reading those in question {leaf}")
    target = int(np.flatnonzero(planted.tree.item_order == item_N[-1])[0])  # one item a leaf
    target = int(np.searchsorted(planted.tree.leaf_start, target, side="right")) - 1
    found = {name: len(set(mine.tolist()) & set(leaf.tolist())) / TOP for name, (mine, _) in lists.items()}
    hits = {name: bool(target in mine) for name, (mine, _) in {**lists, "exact": (leaf, logp)}.items()}
    return {"followed": followed, "best": float(logp[0]), "tenth": float(logp[-1]), "found": found, "hits": hits}


def _read(planted: Planted, engine: Engine, catalog: Catalog, past_N: np.ndarray):
    ones = np.ones(len(past_N), np.int32)
    batch = pad_histories([History(past_N, ones, ones.astype(np.float32))], planted.codes_IL, LENGTH, 1)
    read_BD, cache = _histories(engine.model, engine.params, catalog, batch)
    return read_BD, cache, np.array([len(past_N)], np.int32)


_histories = jax.jit(serving.read_histories, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 6))
def _search(model, params, trie, cache, read_BD, items_B, width: int | Sequence[int]):
    return serving.generate(model, params, trie, cache, read_BD, items_B, None, beams=width)


def markdown(result: Mapping[str, Any]) -> str:
    """One row a width, the exact list last."""
    users, training = result["users"], result["training"]
    number = np.arange(len(users))

    def mean(values: Sequence[float]) -> str:
        return interval(means({"x": np.array(values, float)}, number, Bootstrap())["x"])

    exact = np.array([user["hits"]["exact"] for user in users], float)
    rows = []
    for name in [*users[0]["found"], "exact"]:
        hits = np.array([user["hits"][name] for user in users], float)
        found = mean([user["found"].get(name, 1.0) for user in users]) if name != "exact" else "1"
        rows.append([name.strip("()"), found, mean(hits), mean(exact - hits) if name != "exact" else ""])
    followed = np.array([user["followed"] for user in users])
    said = (
        f"{result['items']:,} items of random codes, {len(users)} users with {LENGTH - 1} items each. The next "
        "item's codes are drawn level by level among those that exist behind the prefix, by popularity of each "
        f"code and by a product of rank {RANK} (scale {PEAK}) with the last item's code. The model, "
        f"{SWITCHES['layers']} layers of width {SWITCHES['width']}, learnt for {training['steps']} steps: "
        f"{training['nats']:.2f} nats an item at the end, uniform {4 * np.log(257):.1f}. Exact: every prefix "
        f"whose log-probability is not below that of the tenth item found by any beams ({followed.mean():,.0f} "
        f"prefixes a user, at most {followed.max():,}); no other can lead to one of the ten best. For "
        f"{min(WHOLE, len(users))} user it was checked by reading all of them.\n\n"
    )
    heads = ("beams, or beams by level", "share of the exact top 10", "recall@10 of the planted item", "recall lost")
    return said + table(heads, rows)
