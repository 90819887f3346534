"""Generating from a million items: what the trie and the filters cost a decoding step."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import table
from benchmarks.inference.models import LEVELS, MODEL, different_codes, engine_over, history
from hisam_jax.inference.beam_search import beam_search
from hisam_jax.inference.engine import EngineConfig, Wanted
from hisam_jax.inference.filters import ItemFacts, allowed
from hisam_jax.inference.user_state import stacked
from hisam_jax.tokenizer.trie import Places, Trie, build_trie

CATALOG, BEAMS, ITEMS, HIDDEN = 1_000_000, 50, 50, 100
SMALL = {"ranking": 0.0, "retrieval": 0.0, "item_id": False}
LARGE = SMALL | {"width": 512, "heads": 8, "kv_heads": 8, "layers": 8, "mlp": 1376}
CELLS = (("small", SMALL, 1, 40), ("small", SMALL, 16, 20), ("large", LARGE, 1, 10), ("large", LARGE, 16, 3))
LOOPS = 50  # walks of the trie inside one program, so that starting it does not count
Work = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Constants:
    """What beam search asks of a trie, answered by arithmetic: the same shapes, no table is read, all exists."""

    sizes: tuple[int, ...]
    fanouts: tuple[int, ...]

    @classmethod
    def like(cls, trie: Trie) -> Constants:
        """As wide as a trie."""
        return cls(trie.sizes, trie.fanouts)

    @classmethod
    def unconstrained(cls, trie: Trie) -> Constants:
        """Every code follows every prefix, as without a trie."""
        return cls(trie.sizes, trie.sizes)

    def branches(self, node_x: jax.Array, level: int, allowed: Any = None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """As `Trie.branches`."""
        fanout = self.fanouts[level]
        code_xF = jnp.broadcast_to(jnp.arange(fanout, dtype=jnp.int32), (*node_x.shape, fanout))
        return code_xF, code_xF, jnp.ones(code_xF.shape, bool)


def run(quick: bool = False) -> dict[str, Any]:
    """Medians of whole generations, of the same without masks, and of masks alone, by model and users."""
    size = 2000 if quick else CATALOG
    codes_IL, facts = different_codes(size), _facts(size)
    trie = build_trie(codes_IL, (257,) * LEVELS)
    rows = [
        {"model": name, "users": users, "rounds": rounds, **_cell(codes_IL, trie, facts, switches, users, rounds)}
        for name, switches, users, rounds in (CELLS if not quick else (("small", SMALL, 2, 2),))
    ]
    return {"seeds": [0], "items": size, "fanouts": trie.fanouts, "rows": rows}


def _facts(size: int) -> ItemFacts:
    rng = np.random.default_rng(1)
    added_I, words_I1 = rng.integers(1, 20_000, size, np.int32), rng.integers(0, 2**32, (size, 1), np.uint32)
    return ItemFacts(jnp.asarray(rng.random(size) < 0.98), jnp.asarray(added_I), jnp.asarray(words_I1))


def _cell(codes_IL: np.ndarray, trie: Trie, facts: ItemFacts, switches: Mapping[str, Any], users: int, rounds: int):
    config = EngineConfig(rows=(users,), lengths=(ITEMS,), candidates=(1,), k=BEAMS, beams=BEAMS, sharing=1)
    engine, catalog = engine_over(codes_IL, config, **switches)
    items = _Items(catalog, facts, codes_IL)
    states = engine.read(items, [history(len(codes_IL), ITEMS, seed) for seed in range(users)])
    cache, items_B, read_BD = stacked(states, users, ITEMS, 1)
    wanted = [Wanted(np.arange(HIDDEN) + user, 100, np.array([255], np.uint32)) for user in range(users)]
    request = engine.filter_of(items, wanted, users)
    once = jax.jit(lambda trie, facts, request: trie.allowed(allowed(facts, request)))
    places = once(trie, facts, request)

    @functools.partial(jax.jit, static_argnames="mask")
    def generate(params, trie, cache, read_BD, items_B, places, mask=None):
        def search(module):
            return beam_search(module, read_BD, cache, items_B, mask or trie, beams=BEAMS, allowed=places)

        return engine.model.apply({"params": params}, method=search)

    arguments = (engine.params, trie, cache, read_BD, items_B)
    walk = functools.partial(_walks, trie, _nodes(trie, users))
    work = {
        "trie and filters": lambda: generate(*arguments, places),
        "trie": lambda: generate(*arguments, None),
        "constants": lambda: generate(*arguments, None, mask=Constants.like(trie)),
        "unconstrained": lambda: generate(*arguments, None, mask=Constants.unconstrained(trie)),
        "masks alone": lambda: walk(places),
        "masks alone, constants": lambda: walk(None, mask=Constants.like(trie)),
        "filters once": lambda: once(trie, facts, request),
    }
    return {"seconds": _timed(work, rounds)}


@dataclasses.dataclass(frozen=True)
class _Items:
    """What reading histories and filters ask of `Items`."""

    catalog: Any
    facts: ItemFacts
    codes_IL: np.ndarray


def _nodes(trie: Trie, users: int) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    above = [rng.integers(0, count, (users, BEAMS)) for count in trie.nodes[:-1]]
    return [jnp.asarray(node, jnp.int32) for node in (np.zeros((users, 1)), *above)]


@functools.partial(jax.jit, static_argnames="mask")
def _walks(trie: Trie, nodes: list[jax.Array], places: Places | None, mask: Constants | None = None) -> jax.Array:
    """`LOOPS` times the look-ups of one generation's levels; each starts from what the one before found."""

    def walk(_, total):
        for level, node in enumerate(nodes):
            there = jnp.maximum(node, jnp.minimum(total, 0))
            child, code, exists = (mask or trie).branches(there, level, places)
            total += jnp.where(exists, child + code, 0).sum() & 1
        return total

    return jax.lax.fori_loop(0, LOOPS, walk, jnp.int32(0))


def _timed(work: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """All take turns in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for call in work.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in work.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds of a step by piece, medians over rounds, and shares of the step."""
    of = {name: 1e3 * np.array(times) / LEVELS for name, times in row["seconds"].items()}
    alone = float(np.median(of["masks alone"]) - np.median(of["masks alone, constants"])) / LOOPS
    step = float(np.median(of["trie and filters"]))
    return {
        "step": step,
        "alone": alone,
        "share": alone / step,
        "difference": float(np.median(1 - of["constants"] / of["trie and filters"])),
        "unconstrained": float(np.median(of["unconstrained"])),
        "once": LEVELS * float(np.median(of["filters once"])),
    }


def markdown(result: Mapping[str, Any]) -> str:
    """One row a model and number of users."""
    rows = []
    for row in result["rows"]:
        found = _figures(row)
        rows.append([
            row["model"], row["users"], f"{found['step']:.2f}", f"{found['alone']:.3f}", f"{found['share']:.2%}",
            f"{found['difference']:+.1%}", f"{found['unconstrained']:.2f}", f"{found['once']:.2f}",
            f"{found['once'] / (found['once'] + LEVELS * found['step']):.1%}",
        ])  # fmt: skip
    heads = ("model", "users", "step, ms", "masks, ms a step", "share of the step", "with less without")
    heads += ("step without a trie, ms", "filters, ms a request", "share of the request")
    said = (
        f"{result['items']:,} items, {LEVELS} codes an item, {BEAMS} beams, histories of {ITEMS} items, float32; "
        f"at most {', '.join(map(str, result['fanouts']))} children a node by level. Small: {MODEL['layers']} "
        f"layers of width {MODEL['width']}; large: {LARGE['layers']} of {LARGE['width']}, {LARGE['heads']} heads. "
        "A step is a quarter of a generation in one program. Masks: the walk of the trie with the request's "
        f"filters looked up (exists, allowed, child, code), {LOOPS} generations' look-ups inside one program, "
        "less the same program with arithmetic in place of every look-up. With less without: whole generations "
        "with the trie and filters against the same program with that arithmetic, where masks of a hundredth or "
        "less drown in what else a shared machine does. STATIC, the best published, reports 0.25 % of a step. "
        "Without a trie: every code follows every prefix. Filters, once a request: stock, age and attributes of "
        f"every item, {HIDDEN} hidden ones, bits in the trie's order and their running count.\n\n"
    )
    return said + table(heads, rows)
