"""A train step as shipped configs have it, on data of that shape: HMAT beside its flat baseline, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.anchor_attention.stepping import full_rows, stepping
from benchmarks.anchor_attention.timing import interleaved
from benchmarks.common import table
from hisam_jax.config import load_config
from hisam_jax.models.catalog import Catalog, make_catalog
from hisam_jax.progress import progress
from hisam_jax.training.assembly import Configs
from hisam_jax.training.optimizer import make_optimizer

CODES, SIZE, FEATURES = 4, 256, {"text": 128, "image": 128}
CATALOGS = {"ml_1m": 3883, "ml_latest_small_ranking": 3650}  # items of what a config is for
VARIANTS = {"HMAT": {}, "HMAT, last token as anchor": {"anchor_token": False}, "flat": {"anchors": False}}
ROUNDS = 15
INTRODUCTION = f"""\
Width, layers, heads, rows, items of a row and optimizer of a shipped config; {CODES} codes of {SIZE}, two modalities of
{FEATURES["text"]} columns and as many items as the data set has that the config is for. Random data, full rows of one
user. `ml_1m` has {CODES} tokens an item and the anchor's, which the flat baseline lacks;
`ml_latest_small_ranking` has {CODES}, the target's and the action's, and HMAT the anchor's. Median of rounds in which
all take turns.
"""


def run(quick: bool = False) -> dict[str, Any]:
    """Milliseconds of a step of each variant of each config."""
    rows = []
    for name in progress(list(CATALOGS), description="shipped steps", unit="config"):
        configs = Configs.of(load_config(f"configs/{name}.py"))
        count, length = (1, 8) if quick else (configs.data.rows, configs.data.items_per_row)
        catalog, batch = _data(CATALOGS[name], count, length)
        optimizer = make_optimizer(configs.training.optimizer, configs.training.steps)
        models = {kind: dataclasses.replace(configs.model, **switches) for kind, switches in VARIANTS.items()}
        steps = {kind: stepping(model, SIZE, catalog, optimizer, batch) for kind, model in models.items()}
        seconds = interleaved(steps, (), 2 if quick else ROUNDS)
        shape = {"config": name, "items": length, "rows": count}
        rows.append(shape | {"milliseconds": {kind: 1e3 * spent for kind, spent in seconds.items()}})
    return {"seeds": [0], "rows": rows}


def _data(items: int, rows: int, length: int) -> tuple[Catalog, dict[str, np.ndarray]]:
    """A random catalogue and one batch."""
    rng, every_I = np.random.default_rng(0), np.ones(items, bool)
    codes_IL = rng.integers(0, SIZE, (items, CODES)).astype(np.int32)
    features = {m: rng.normal(size=(items, width)).astype(np.float32) for m, width in FEATURES.items()}
    batch = full_rows(rng, codes_IL, rows, length)
    action = rng.integers(1, 11, (rows, length)).astype(np.int32)
    batch |= {"action": action, "positive": (action > 6).astype(np.float32)}
    return make_catalog(codes_IL, features, dict.fromkeys(features, every_I), every_I), batch


def markdown(result: Mapping[str, Any]) -> str:
    """One row a config; ratios are of time, below 1 is faster than flat."""
    rows = []
    for row in result["rows"]:
        spent = row["milliseconds"]
        ours = [name for name in VARIANTS if name != "flat"]
        ratios = [f"{spent[name] / spent['flat']:.2f}" for name in ours]
        shown = [f"{spent[name]:,.0f}" for name in VARIANTS]
        rows.append([f"`configs/{row['config']}.py`", row["items"], row["rows"], *shown, *ratios])
    header = ("config", "items", "rows", *(f"{name}, ms" for name in VARIANTS), *(f"{n} / flat" for n in ours))
    return INTRODUCTION + "\n" + table(header, rows)
