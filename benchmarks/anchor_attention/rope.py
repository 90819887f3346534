"""Hierarchical RoPE stays outside the kernel: what share of attention's time and bytes it takes there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.anchor_attention import rivals
from benchmarks.anchor_attention.timing import interleaved
from benchmarks.common import table
from hisam_jax.kernels.anchor_attention import anchor_attention, count
from hisam_jax.kernels.anchor_attention.core import Rule
from hisam_jax.kernels.anchor_attention.tiles import Sizes
from hisam_jax.models.rope import rotate, rotation

ITEMS, TOKENS, HEADS, WIDTH = (50, 256, 1024), 8, 4, 64
INTRODUCTION = """\
Anchor attention on queries and keys as they are, and on rotated ones, in one compiled program (which lets the compiler
fuse the rotation into what reads it). Bytes: queries and keys read and written once more, as a share of the least that
attention itself moves, forward; a fused rotation would save at most that.
"""


def run(quick: bool = False) -> dict[str, Any]:
    """Seconds with and without rotation."""
    rows = []
    for items in (16,) if quick else ITEMS:
        keys = jax.random.split(jax.random.key(0), 3)
        x = tuple(jax.random.normal(key, (1, items, TOKENS, HEADS, WIDTH)) for key in keys)
        row: dict[str, Any] = {"items": items, "tokens": TOKENS}
        for name, wrap in (("forward", rivals.forward), ("both", rivals.forward_and_backward)):
            row[name] = interleaved({"plain": wrap(anchor_attention), "rotated": wrap(_rotated)}, x, 2 if quick else 9)
        sizes = Sizes(items, TOKENS, HEADS, HEADS, WIDTH, items, 4)
        moved = 4 * items * TOKENS * HEADS * WIDTH * 4
        rows.append(row | {"bytes_share": moved / count.forward_work(1, sizes, Rule()).bytes})
    return {"rows": rows}


def _rotated(q, k, v) -> jax.Array:
    item_BN = jnp.broadcast_to(jnp.arange(q.shape[1]), q.shape[:2])
    turns = rotation(item_BN, jnp.arange(TOKENS), WIDTH, mode="hierarchical", slots=TOKENS)
    return anchor_attention(rotate(q, turns), rotate(k, turns), v)


def markdown(result: Mapping[str, Any]) -> str:
    """One row a length."""
    rows = []
    for row in result["rows"]:
        times = [f"{row[name][kind] * 1e3:.2f}" for name in ("forward", "both") for kind in ("plain", "rotated")]
        shares = [f"{row[name]['rotated'] / row[name]['plain'] - 1:.0%}" for name in ("forward", "both")]
        rows.append([f"{row['items']:,} x {row['tokens']}", *times, *shares, f"{row['bytes_share']:.0%}"])
    header = ("items x tokens", "forward, ms", "rotated", "forward and backward, ms", "rotated", "more, forward")
    return INTRODUCTION + "\n" + table((*header, "more, both", "bytes, forward"), rows)
