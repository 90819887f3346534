"""Padding after packing, and how even shards are, for histories whose lengths follow Zipf's law."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.common import table
from hisam_jax.config import build
from hisam_jax.models.config import HMATConfig
from hisam_jax.scaling.configs import scaling_config
from hisam_jax.scaling.flops import Vocabulary, forward_flops

USERS, LONGEST, EXPONENT, ROW, SHARDS, ROWS = 100_000, 512, 1.2, 512, 64, 4


def run(quick: bool = False) -> dict[str, Any]:
    """Spread of the work of one step over shards, packed as the pipeline packs, and one user a row."""
    rng = np.random.default_rng(0)
    chances = 1.0 / np.arange(1, LONGEST + 1) ** EXPONENT
    lengths_U = 1 + rng.choice(LONGEST, USERS // (20 if quick else 1), p=chances / chances.sum())
    packed, alone = _first_fit(lengths_U, ROW, 64), [[int(n)] for n in lengths_U]
    return {"padding": {"packed": _padding(packed), "one user a row": _padding(alone)},
            "spread": {"packed": _spread(packed), "one user a row": _spread(alone)}}  # fmt: skip


def _first_fit(lengths_U: np.ndarray, row: int, bins: int) -> list[list[int]]:
    """The first open row with room takes a history; where none has, the fullest is done."""
    rows: list[list[int]] = []
    held, room = [[] for _ in range(bins)], np.full(bins, row)
    for length in lengths_U:
        fits = np.flatnonzero(room >= length)
        if not len(fits):
            full = int(np.argmin(room))
            rows.append(held[full])
            held[full], room[full] = [], row
            fits = np.array([full])
        held[fits[0]].append(int(length))
        room[fits[0]] -= length
    return rows


def _padding(rows: list[list[int]]) -> float:
    return 1 - sum(map(sum, rows)) / (len(rows) * ROW)


def _spread(rows: list[list[int]]) -> dict[str, float]:
    """Work of the busiest shard over the mean, of steps of SHARDS x ROWS rows, in useful operations."""
    config = scaling_config(width=768, layers=14, heads=6, mlp=2048, learning_rate=1e-3).model
    model, vocabulary = build(HMATConfig, config.to_dict(), "model"), Vocabulary(20_000, (256,) * 4)
    work = np.array([sum(forward_flops(model, vocabulary, row, positions=0).values()) for row in rows], np.float64)
    steps = work[: len(work) // (SHARDS * ROWS) * SHARDS * ROWS].reshape(-1, SHARDS, ROWS).sum(-1)
    ratio = steps.max(1) / steps.mean(1)
    return {"mean": float(ratio.mean()), "worst": float(ratio.max())}


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    rows = [
        [name, f"{result['padding'][name]:.1%}", f"{spread['mean']:.3f}", f"{spread['worst']:.3f}"]
        for name, spread in result["spread"].items()
    ]
    said = (
        f"{USERS:,} histories of 1 to {LONGEST} items, exponent {EXPONENT}; rows of {ROW} items, {SHARDS} shards of "
        f"{ROWS} rows a step. Busiest shard: its useful operations, attention included, over the mean of its step. "
        "A packed step computes all its slots, whatever is in them; only attention skips other users' blocks.\n\n"
    )
    return said + table(["rows", "padding", "busiest shard, mean of steps", "worst step"], rows)
