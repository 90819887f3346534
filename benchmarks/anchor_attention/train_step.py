"""A whole train step, optimizer included: HMAT beside the flat baseline of the same width and depth."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.anchor_attention.stepping import full_rows, stepping
from benchmarks.anchor_attention.timing import interleaved
from benchmarks.common import table
from hisam_jax.models.catalog import make_catalog
from hisam_jax.models.config import HMATConfig
from hisam_jax.progress import progress
from hisam_jax.training.optimizer import OptimizerConfig, make_optimizer

ITEMS, CODES, SIZE, CATALOG = (50, 200, 512), (4, 6), 256, 2000
EVENTS = 1024  # items of a step at least
MODEL = {"width": 128, "heads": 4, "kv_heads": 4, "layers": 4, "mlp": 344, "features": False}
VARIANTS = {
    "HMAT": {},
    "HMAT, last code as anchor": {"anchor_token": False},
    "flat, dense": {"anchors": False, "attention": "dense"},
    "flat, chunks": {"anchors": False},
}
ROUNDS = 5
INTRODUCTION = f"""\
Width {MODEL["width"]}, {MODEL["heads"]} heads, {MODEL["layers"]} layers, codes of {SIZE}, generation and retrieval
heads over {CATALOG:,} items, AdamW; random data, rows of one user, {EVENTS:,} items or more a step. HMAT has one token
an item more than the flat baseline, the anchor; with `anchor_token=False` the last code's token is the anchor, as the
flat baseline's last token takes the anchor's part, and both have as many. Flat attention is run dense and in causal
chunks; ratios are to the faster. Median of rounds in which all take turns. Dense scores past 2 GiB are left out.
"""


def run(quick: bool = False) -> dict[str, Any]:
    """Items a second of each variant at each size."""
    cells = list(itertools.product((16,) if quick else ITEMS, (4,) if quick else CODES))
    rows = []
    for items, codes in progress(cells, description="train step", unit="size"):
        rows.append({"items": items, "codes": codes, "rows": max(1, EVENTS // items)} | _measure(items, codes, quick))
    return {"seeds": [0], "rows": rows}


def _measure(items: int, codes: int, quick: bool) -> dict[str, Any]:
    rows, steps = max(1, EVENTS // items), {}
    for name, switches in VARIANTS.items():
        scores = rows * MODEL["heads"] * (items * codes) ** 2 * 4
        if switches.get("attention") != "dense" or scores <= 2**31:
            steps[name] = _step(rows, items, codes, switches)
    seconds = interleaved(steps, (), 2 if quick else ROUNDS)
    return {"items_per_second": {name: rows * items / spent for name, spent in seconds.items()}}


def _step(rows: int, items: int, codes: int, switches: Mapping[str, Any]) -> Callable[[], Any]:
    """One compiled step on random data of that size."""
    rng = np.random.default_rng(0)
    codes_IL = rng.integers(0, SIZE, (CATALOG, codes)).astype(np.int32)
    catalog = make_catalog(codes_IL, {}, {}, np.ones(CATALOG, bool))
    batch = full_rows(rng, codes_IL, rows, items)
    return stepping(HMATConfig(**{**MODEL, **switches}), SIZE, catalog, make_optimizer(OptimizerConfig(), 1000), batch)


def markdown(result: Mapping[str, Any]) -> str:
    """One row a size."""
    rows = []
    for row in result["rows"]:
        speed = row["items_per_second"]
        best = max(speed[name] for name in speed if name.startswith("flat"))
        ratios = [f"{speed[name] / best:.2f}" for name in VARIANTS if name.startswith("HMAT")]
        shown = [f"{speed[name]:,.0f}" if name in speed else "" for name in VARIANTS]
        rows.append([f"{row['items']:,}", row["codes"], row["rows"], *shown, *ratios])
    header = (
        "items",
        "codes",
        "rows",
        *(f"{name}, items/s" for name in VARIANTS),
        "HMAT over flat",
        "last code as anchor over flat",
    )
    return INTRODUCTION + "\n" + table(header, rows)
