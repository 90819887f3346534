"""What anchor attention must compute and move at least: pairs that the mask allows, FLOPs, exponentials, bytes."""

from __future__ import annotations

import dataclasses

import numpy as np

from hisam_jax.kernels.anchor_attention.core import Rule
from hisam_jax.kernels.anchor_attention.tiles import Sizes


@dataclasses.dataclass(frozen=True)
class Work:
    """Least work of one pass.

    Attributes:
        flops: of matrix products, a multiply-add counts 2.
        exponentials: one a pair.
        bytes: every operand read once and every result written once.
    """

    flops: int
    exponentials: int
    bytes: int


def local_pairs(items: int, tokens: int) -> int:
    """Query-key pairs inside items: a token reads its item's tokens up to itself."""
    return items * tokens * (tokens + 1) // 2


def anchor_pairs(items: int, tokens: int, anchors: int, rule: Rule, first: int | None = None) -> int:
    """Pairs of a query token and an earlier item's anchor, in one segment; without `first`, of the last items."""
    first = anchors - items if first is None else first
    item_N = first + np.arange(items, dtype=np.int64)
    start_N = np.zeros_like(item_N) if rule.window is None else np.maximum(item_N - rule.window, 0)
    read_N = np.maximum(np.minimum(item_N, anchors) - start_N, 0)
    return int(read_N.sum()) * (tokens - 1 if rule.strict else tokens)


def allowed_pairs(items: int, tokens: int, anchors: int, rule: Rule, first: int | None = None) -> int:
    """Query-key pairs that one head of one row reads when all items are of one segment."""
    return local_pairs(items, tokens) + anchor_pairs(items, tokens, anchors, rule, first)


def forward_work(batch: int, sizes: Sizes, rule: Rule) -> Work:
    """Two products a pair; queries, keys, values and anchors in, output and float32 log-sum-exp out."""
    pairs = batch * sizes.heads * allowed_pairs(sizes.items, sizes.tokens, sizes.anchors, rule)
    own, lse = batch * (2 * _queries(sizes) + _keys(sizes)), batch * sizes.items * sizes.tokens * sizes.heads * 4
    return Work(4 * sizes.width * pairs, pairs, own * sizes.bytes + lse)


def backward_work(batch: int, sizes: Sizes, rule: Rule) -> Work:
    """Five products a pair, scores among them again; `forward`'s operands, d_out, lse and delta in, gradients out."""
    pairs = batch * sizes.heads * allowed_pairs(sizes.items, sizes.tokens, sizes.anchors, rule)
    own, rows = batch * (3 * _queries(sizes) + 2 * _keys(sizes)), batch * sizes.items * sizes.tokens * sizes.heads
    return Work(10 * sizes.width * pairs, pairs, own * sizes.bytes + 8 * rows)


def _queries(sizes: Sizes) -> int:
    return sizes.items * sizes.tokens * sizes.heads * sizes.width


def _keys(sizes: Sizes) -> int:
    cached = max(sizes.anchors - sizes.items, 0)  # the items' own anchors are among their tokens
    return 2 * (sizes.items * sizes.tokens + cached) * sizes.kv_heads * sizes.width
