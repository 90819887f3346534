"""Model FLOP utilisation of a training step against the machine's own matrix rate, measured in the same run."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import table
from hisam_jax.compilation.report import configs_for
from hisam_jax.config import load_config
from hisam_jax.models.catalog import make_catalog
from hisam_jax.models.heads import make_frozen, make_objective, with_totals
from hisam_jax.models.hmat import HMAT
from hisam_jax.scaling.flops import Vocabulary, train_flops
from hisam_jax.training.optimizer import make_optimizer
from hisam_jax.training.state import init_state, make_train_step

CELLS = {"10 M": ("configs/hmat_10m.py", 256, 2), "100 M": ("configs/hmat_100m.py", 128, 1)}  # items, rows
ITEMS, REPEATS = 2000, 3


def run(quick: bool = False) -> dict[str, Any]:
    """Seconds of a step, the best of a few, and the rate of the best square product."""
    rate = _matrix_rate(512 if quick else 2048)
    cells = [_cell(name, *cell, rate, quick) for name, cell in list(CELLS.items())[: 1 if quick else None]]
    return {"matrix_rate": rate, "cells": cells}


def _matrix_rate(size: int) -> float:
    """Float32 operations a second of a product of two square matrices."""
    x = jnp.ones((size, size))
    product = jax.jit(lambda x: x @ x)
    return 2 * size**3 / _best(lambda: product(x))


def _best(work) -> float:
    jax.block_until_ready(work())
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - start)
    return min(times)


def _cell(name: str, path: str, items: int, rows: int, rate: float, quick: bool) -> dict[str, Any]:
    configs, _ = configs_for(load_config(path), "cpu", None)
    config = dataclasses.replace(configs.model, dtype="float32", softmax_items=ITEMS, item_id_rows=0)
    config = dataclasses.replace(config, layers=1) if quick else config
    rng, levels = np.random.default_rng(0), (256,) * 4
    codes_IL = rng.integers(0, 256, (ITEMS, len(levels))).astype(np.int32)
    catalog = make_catalog(codes_IL, {}, {}, np.ones(ITEMS, bool))
    loss_fn, init_fn = make_objective(HMAT(config, tuple(n + 1 for n in levels), 0, ITEMS), catalog, codes_IL)
    item = rng.integers(0, ITEMS, (rows, items)).astype(np.int32)
    floats = {n: np.ones(item.shape, np.float32) for n in ("gap", "positive", "rank_weight", "next_weight")}
    batch = {
        "item": item,
        "segment": np.ones_like(item),
        "action": np.zeros_like(item),
        "codes": codes_IL[item],
        **floats,
    }
    tx, frozen = make_optimizer(configs.training.optimizer, 100), make_frozen(catalog, codes_IL)
    state = jax.jit(lambda *args: init_state(init_fn, tx, 0, *args))(batch, frozen)
    step = jax.jit(make_train_step(loss_fn, tx, 1, with_totals))
    seconds = _best(lambda: step(state, batch, frozen)[1])
    useful = train_flops(config, Vocabulary(ITEMS, levels), [items] * rows)
    return {
        "name": name,
        "items": items,
        "rows": rows,
        "seconds": seconds,
        "flops": useful,
        "share": useful / seconds / rate,
    }


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    rows = [
        [
            c["name"],
            f"{c['rows']} x {c['items']}",
            f"{c['seconds']:.2f}",
            f"{c['flops'] / 1e9:.0f}",
            f"{c['share']:.1%}",
        ]
        for c in result["cells"]
    ]
    said = (
        f"Float32, {ITEMS} items, blocks recomputed. The machine's rate, by a square product in the same run: "
        f"{result['matrix_rate'] / 1e9:.0f} GFLOP/s. Useful operations only. On accelerators: not measured.\n\n"
    )
    return said + table(["parameters", "rows x items", "seconds a step", "useful GFLOP", "of the matrix rate"], rows)
