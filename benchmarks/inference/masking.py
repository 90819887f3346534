"""Generating from a million items: what the trie and filters cost a step, and what beams lose to exact scoring."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import table
from benchmarks.inference.models import history, made
from hisam_jax.inference import steps
from hisam_jax.inference.engine import EngineConfig, Wanted
from hisam_jax.inference.filters import allowed
from hisam_jax.inference.user_state import stacked

CATALOG, BEAMS, ITEMS, ROUNDS = 1_000_000, 50, 50, 15


def run(quick: bool = False) -> dict[str, Any]:
    """Medians of whole generations with filters, without them, and of their parts alone."""
    size, rounds = (2000, 2) if quick else (CATALOG, ROUNDS)
    config = EngineConfig(rows=(1,), lengths=(ITEMS,), candidates=(1,), k=BEAMS, beams=BEAMS, sharing=1)
    engine, items = made("HMAT", size, config)
    states = engine.read(items, [history(size, ITEMS)])
    cache, items_B, read_BD = stacked(states, 1, ITEMS, 1)
    request = engine.filter_of(items, [Wanted(np.arange(100))], 1)
    model, params, trie = engine.model, engine.params, items.trie

    @jax.jit
    def open_(params, trie, cache, read_BD, items_B):
        return steps.generate(model, params, trie, cache, read_BD, items_B, None, beams=BEAMS)

    @jax.jit
    def filtered(params, trie, cache, read_BD, items_B, facts, request):
        fit_BI = allowed(facts, request)
        return steps.generate(model, params, trie, cache, read_BD, items_B, fit_BI, beams=BEAMS)

    @jax.jit
    def before(trie, facts, request):
        return trie.allowed_before(allowed(facts, request))

    node_BW = jnp.asarray(np.random.default_rng(0).integers(0, trie.nodes[-2], (1, BEAMS)), jnp.int32)
    found = before(trie, items.facts, request)

    @jax.jit
    def step(trie, found, node_BW):
        child, code, exists = trie.branches(node_BW, len(trie.sizes) - 1)
        return child, code, exists & trie.is_allowed(found, child, len(trie.sizes) - 1)

    work = {
        "generation": lambda: open_(params, trie, cache, read_BD, items_B),
        "with filters": lambda: filtered(params, trie, cache, read_BD, items_B, items.facts, request),
        "filters, once": lambda: before(trie, items.facts, request),
        "trie and filters, a step": lambda: step(trie, found, node_BW),
    }
    return {"seeds": [0], "items": size, "levels": len(trie.sizes), "seconds": _timed(work, rounds)}


def _timed(work: Mapping[str, Any], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for call in work.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in work.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def markdown(result: Mapping[str, Any]) -> str:
    """One row a piece of work."""
    seconds = result["seconds"]
    one = seconds["generation"] / result["levels"]
    share = seconds["trie and filters, a step"] / one
    rows = [[name, f"{1e3 * value:.2f}"] for name, value in seconds.items()]
    said = (
        f"{result['items']:,} items, {BEAMS} beams, a history of {ITEMS} items, one user. Filters once: the request's "
        f"conditions over all items, and their running sum. A step's walk of the trie, filters looked up, is "
        f"{share:.2%} of a decoding step.\n\n"
    )
    return said + table(("work", "ms, median"), rows)
