"""How large a model or a tokenizer is and what training it costs, from its config alone.

Parameters of HMAT and its flat twin are those of the modules, exactly; operations are those of `scaling.flops`. Both
are held against XLA's own program in the tests.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from hisam_jax.kernels.hstu_attention import BUCKETS
from hisam_jax.models.config import HMATConfig
from hisam_jax.models.hmat import ACTIONS
from hisam_jax.scaling.flops import Vocabulary, train_flops
from hisam_jax.sharding import padded_rows
from hisam_jax.tokenizer.dst_config import SHARED, DSTConfig, Layout
from hisam_jax.tokenizer.dst_information import pairs_of


@dataclasses.dataclass(frozen=True)
class TrainCost:
    """Useful operations of training.

    Attributes:
        step, item, token: of a step, and of it by items and by their tokens.
    """

    step: int
    item: float
    token: float


def train_cost(config: HMATConfig, vocabulary: Vocabulary, lengths: Sequence[int]) -> TrainCost:
    """What a step over histories of these lengths takes."""
    step, items = train_flops(config, vocabulary, lengths), sum(lengths)
    return TrainCost(step, step / items, step / (items * config.tokens(len(vocabulary.levels))))


def parameters(config: HMATConfig, vocabulary: Vocabulary) -> dict[str, int]:
    """`network` without, and `tables` of codes and item ids with the projections of features into them."""
    width = config.width
    network = config.layers * _block(config, config.tokens(len(vocabulary.levels)))
    kinds = 3 * (config.has_anchor_token or config.actions)  # of tokens that are no codes
    network += (kinds + ACTIONS + 3 * config.time_gap + 1) * width  # actions, the gap's projection, the final norm
    rows = config.item_id_rows or padded_rows(vocabulary.items)
    if config.ranking:
        network += width + 1 + config.item_effect * rows
    if config.generation:
        network += width * (sum(vocabulary.vocab) + vocabulary.digit)
    if config.retrieval:
        network += (not config.tied_query) * width**2 + config.cosine
    tables = width * sum(vocabulary.vocab) + config.item_id * rows * width
    tables += config.features * width * sum(vocabulary.features.values())
    return {"network": network, "tables": tables}


def _block(config: HMATConfig, tokens: int) -> int:
    width, head = config.width, config.head_width
    queries, keys = config.heads * head, config.kv_heads * head
    if config.block == "hstu":
        products = width * (2 * queries + 2 * keys) + queries * width
        return products + width + 2 * queries + config.heads * (BUCKETS + tokens**2)
    products = width * (queries + 2 * keys) + queries * width + 3 * width * config.mlp
    return products + 2 * width + 2 * head * config.qk_norm


def dst_flops(cfg: DSTConfig, layout: Layout, rows: int) -> dict[str, int]:
    """Operations of a step of DST's training over a batch of `rows` items, by part.

    What needs no gradient has none: features, codebooks that are moving averages, what a stop cuts off.
    """
    widths, groups = dict(layout.widths), dict(layout.groups)
    parts = {"networks": sum(_networks(cfg, rows, width) for width in widths.values())}
    parts["codes"] = sum(_product(rows, cfg.width, size) for sizes in groups.values() for size in sizes)
    parts["alignment"] = _alignment(cfg, rows, len(widths))
    parts["uniformity"] = 3 * len(widths) * _product(rows, cfg.width, rows)
    parts["information"] = sum(_information(cfg, rows, groups[b], a) for a, b in pairs_of(cfg, layout))
    return parts


def dst_parameters(cfg: DSTConfig, layout: Layout) -> dict[str, int]:
    """`network` of encoders, decoders and vCLUB's q, and `tables` of codes."""
    context, tables = 1 + cfg.shared_context, sum(sum(sizes) for _, sizes in layout.groups) * cfg.width
    network = 1 + sum(2 * _q(cfg, sizes) for _, sizes in _told(cfg, layout))
    for _, width in layout.widths:
        network += _mlp(width, cfg.hidden, cfg.width) + _mlp(cfg.width, cfg.hidden, width)
        if cfg.residual == "feature":
            network += _mlp(width + cfg.shared_context * cfg.width, cfg.hidden, cfg.width)
            network += _mlp(context * cfg.width, cfg.hidden, width)
    return {"network": network, "tables": tables}


def _told(cfg: DSTConfig, layout: Layout) -> list[tuple[str, tuple[int, ...]]]:
    groups = dict(layout.groups)
    return [(a, groups[b]) for a, b in pairs_of(cfg, layout)]


def _q(cfg: DSTConfig, sizes: Sequence[int]) -> int:
    outs = sum(sizes) if cfg.mi_estimator == "categorical" else 2 * cfg.width
    return (cfg.width + 1) * cfg.mi_hidden + (cfg.mi_hidden + 1) * outs


def _mlp(inner: int, hidden: int, out: int) -> int:
    return (inner + 1) * hidden + (hidden + 1) * out


def _product(*sizes: int) -> int:
    return 2 * math.prod(sizes)


def _networks(cfg: DSTConfig, rows: int, width: int) -> int:
    """P and D, and with `feature` residuals F and G, of one modality."""
    hidden, d = cfg.hidden, cfg.width
    total = 2 * _product(rows, width, hidden) + 3 * _product(rows, hidden, d)
    total += 3 * (_product(rows, d, hidden) + _product(rows, hidden, width))
    if cfg.residual == "feature":
        first = 2 if cfg.residual_stop_gradient else 3
        total += first * _product(rows, width + cfg.shared_context * d, hidden) + 3 * _product(rows, hidden, d)
        total += 3 * (_product(rows, (1 + cfg.shared_context) * d, hidden) + _product(rows, hidden, width))
    return total


def _alignment(cfg: DSTConfig, rows: int, views: int) -> int:
    if cfg.alignment == "none" or views < 2:
        return 0
    pairs = views * (views - 1) // 2 if cfg.alignment == "infonce" else views - 1
    return 3 * pairs * _product(rows, cfg.width, rows)


def _information(cfg: DSTConfig, rows: int, sizes: Sequence[int], said_by: str) -> int:
    """One pair's bound, and the steps of its q."""
    outs = sum(sizes) if cfg.mi_estimator == "categorical" else 2 * cfg.width
    first, last = _product(rows, cfg.width, cfg.mi_hidden), _product(rows, cfg.mi_hidden, outs)
    fixed = said_by == SHARED and not cfg.mi_shared_gradient
    bound = (1 if fixed else 2) * (first + last)
    soft = 2 * _product(rows, cfg.width, sum(sizes)) if cfg.mi_estimator == "categorical" else 0
    return bound + soft + cfg.mi_steps * (2 * first + 3 * last)
