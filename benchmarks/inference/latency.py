"""Ranking candidates for one user: HMAT and the flat baseline, each with its cache and without."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.common import table
from benchmarks.inference.flops import append_flops, rank_flops, read_flops
from benchmarks.inference.models import KINDS, LEVELS, MODEL, SIZE, history, made
from hisam_jax.inference.engine import EngineConfig
from hisam_jax.models.config import HMATConfig
from hisam_jax.progress import progress
from hisam_jax.scaling.flops import Vocabulary

HISTORIES, CANDIDATES, CATALOG = (50, 300, 1000), (1, 100, 1000), 20_000
REQUESTS, SLOWEST = 40, 12.0  # requests of a cell, and seconds after which it has seen enough
PRICE = 0.04  # dollars a core and hour
CORES = 2
INTRODUCTION = f"""\
One user a request, float32, {MODEL["layers"]} layers of width {MODEL["width"]}, {MODEL["heads"]} heads, {LEVELS} codes
an item, target and action tokens. A request appends the latest event to the user's state and ranks the candidates over
it; without a cache it reads the whole history and then ranks. All four take turns at every request. The flat baseline
keeps keys and values of every token, HMAT those of anchors. Dollars: a million requests at {PRICE} dollars a core and
hour, {CORES} cores, by the median. GFLOP: products with weights and allowed pairs of the request, counted from the
shapes, 2 a multiply-add. Parameters are random: what is timed does not depend on them. What both find, cached and not,
after the same training: part `recall`.
"""
VARIANTS = ("HMAT, cache", "HMAT, no cache", "flat, cache", "flat, no cache")


def run(quick: bool = False) -> dict[str, Any]:
    """Seconds of every request of each variant, by history and candidates."""
    rows = []
    cells = list(itertools.product((16,) if quick else HISTORIES, (1, 4) if quick else CANDIDATES))
    for items, candidates in progress(cells, description="ranking", unit="cell"):
        rows.append(_cell(items, candidates, 3 if quick else REQUESTS))
    return {"seeds": [0], "rows": rows}


def _cell(items: int, candidates: int, requests: int) -> dict[str, Any]:
    config = EngineConfig(rows=(1,), lengths=(items + 1,), candidates=(candidates,))
    past, size = history(CATALOG, items), {}
    work: dict[str, Callable[[], Any]] = {}
    for kind in ("HMAT", "flat"):
        engine, catalogue = made(kind, CATALOG, config)
        state = engine.read(catalogue, [past])[0]
        size[kind] = state.bytes
        work |= _variants(kind, engine, catalogue, state, past, candidates)
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for name in VARIANTS:
        work[name]()
    began = time.perf_counter()
    while len(seconds["HMAT, cache"]) < requests and time.perf_counter() - began < 4 * SLOWEST:
        for name in VARIANTS:
            start = time.perf_counter()
            work[name]()
            seconds[name].append(time.perf_counter() - start)
    return {"items": items, "candidates": candidates, "seconds": seconds, "bytes": size}


def _variants(kind: str, engine, catalogue, state, past, candidates: int) -> dict[str, Callable[[], Any]]:
    item = [np.random.default_rng(1).integers(0, CATALOG, candidates)]
    last = past.latest(1)

    def cached() -> Any:
        return engine.rank(catalogue, engine.append(catalogue, [state], last), item, "ranking")

    def whole() -> Any:
        return engine.rank(catalogue, engine.read(catalogue, [past]), item, "ranking")

    return {f"{kind}, cache": cached, f"{kind}, no cache": whole}


def gigaflops(variant: str, items: int, candidates: int) -> float:
    """Of one request: the state grows by an item or is read whole, then candidates are ranked over it."""
    kind, form = variant.split(", ")
    config, vocabulary = HMATConfig(**{**MODEL, **KINDS[kind]}), Vocabulary(CATALOG, (SIZE,) * LEVELS)
    cached = form == "cache"
    state = append_flops(config, vocabulary, items) if cached else read_flops(config, vocabulary, items)
    return (state + rank_flops(config, vocabulary, items + cached, candidates)) / 1e9


def markdown(result: Mapping[str, Any]) -> str:
    """One row a variant and cell, and what HMAT saves."""
    rows, saved = [], []
    for row in result["rows"]:
        of = {name: np.percentile(row["seconds"][name], [50, 95, 99]) for name in VARIANTS}
        for name in VARIANTS:
            middle = of[name][0]
            kept = f"{row['bytes'][name.split(',')[0]] / 1024:,.0f}" if "no cache" not in name else ""
            dollars = middle * 1e6 / 3600 * PRICE * CORES
            rows.append([
                f"{row['items']:,}", f"{row['candidates']:,}", name, *(f"{1e3 * x:.1f}" for x in of[name]),
                f"{1 / middle:,.0f}", f"{row['candidates'] / middle:,.0f}", kept,
                f"{gigaflops(name, row['items'], row['candidates']):.3g}", f"{dollars:.2f}",
            ])  # fmt: skip
        lower = 1 - of["HMAT, cache"][0] / of["flat, cache"][0]
        ratio = row["bytes"]["HMAT"] / row["bytes"]["flat"]
        saved.append([f"{row['items']:,}", f"{row['candidates']:,}", f"{lower:.0%}", f"{ratio:.2f}"])
    heads = (
        "items",
        "candidates",
        "model",
        "p50, ms",
        "p95",
        "p99",
        "requests/s",
        "candidates/s",
        "KiB a user",
        "GFLOP",
        "$",
    )
    said = "\nMedian latency that HMAT with cache saves over flat with cache, and its keys and values over flat's:\n\n"
    return INTRODUCTION + "\n" + table(heads, rows) + said + table(("items", "candidates", "saved", "bytes"), saved)
