"""Cells of a sweep as a planted law would have them, without training any."""

from __future__ import annotations

from typing import Any

import numpy as np

from hisam_jax.scaling.law import Law

LAWS = {"hmat": Law(4.30, 60.0, 90.0, 0.50, 0.35), "flat": Law(4.32, 60.0, 90.0, 0.50, 0.33)}
SIZES = tuple(int(n) for n in np.geomspace(1e3, 1e6, 7))
BUDGETS = (1e10, 1e11, 1e12, 1e13)


def planted(noise: float = 2e-3, seed: int = 0, sizes=SIZES, budgets=BUDGETS, laws=LAWS) -> list[dict[str, Any]]:
    """`cell.json` of every model at five sizes of each budget, and of one size at three histories."""
    rng, cells = np.random.default_rng(seed), []
    for k, flops in enumerate(budgets):
        for n in sizes[: 5 + k] if len(sizes) > 5 else sizes:
            for model in laws:
                cells.append(cell(model, n, flops, 64, noise * rng.normal(), laws[model]))
    for history in (16, 32):
        cells += [
            cell(model, sizes[3], budgets[-1], history, 0.02 * (64 / history) ** 0.5, laws[model]) for model in laws
        ]
    return cells


def cell(model: str, n: int, flops: float, history: int, off: float, law: Law) -> dict[str, Any]:
    """One of them, its log loss off by `off`."""
    each = 30 * n + 2000 * n**0.5
    loss = float(law(n, flops / each) * np.exp(off))
    return {
        "name": f"{model}-n{n}-h{history}-c{flops:.0e}-s0", "model": model, "size": f"n{n}", "history": history,
        "flops": flops, "items": 0, "seed": 0, "d": round(flops / each), "spent": flops, "steps": 100,
        "train_loss": loss, "recall@10": float(np.exp(-loss / 2)), "recall_users": 1000, "oracle": 4.2, "uniform": 6.9,
        "loss": {"value": loss, "ci95": [loss - 0.02, loss + 0.02]},
        "n": {"network": n, "tables": 9 * n, "total": 10 * n},
        "planned": {"steps": 100, "flops": flops, "flops_per_item": each, "items": flops / each, "epochs": 0.0},
        "learning_rate": 1e-3, "seconds": 10.0, "items_per_second": 1e4, "device": "cpu x 1",
    }  # fmt: skip
