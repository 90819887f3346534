"""Operations of one request, counted as `hisam_jax.scaling.flops` counts a pass: products and allowed pairs."""

from __future__ import annotations

from hisam_jax.models.config import HMATConfig
from hisam_jax.scaling.flops import Vocabulary, block_weights, forward_flops


def read_flops(config: HMATConfig, vocabulary: Vocabulary, items: int) -> int:
    """Of reading a whole history."""
    parts = forward_flops(config, vocabulary, [items], positions=0)
    return parts["blocks"] + parts["attention"]


def append_flops(config: HMATConfig, vocabulary: Vocabulary, items: int) -> int:
    """Of one more item over a state of `items`."""
    return _continued(config, vocabulary, items, config.tokens(len(vocabulary.levels)))


def rank_flops(config: HMATConfig, vocabulary: Vocabulary, items: int, candidates: int) -> int:
    """Of click logits of candidates over a state of `items`; with actions on, up to the target token."""
    levels = len(vocabulary.levels)
    tokens = levels + 1 if config.actions else config.tokens(levels)
    return candidates * (_continued(config, vocabulary, items, tokens) + 2 * config.width)


def _continued(config: HMATConfig, vocabulary: Vocabulary, items: int, tokens: int) -> int:
    kept = items if config.anchors else items * config.tokens(len(vocabulary.levels))
    pairs = tokens * kept + tokens * (tokens + 1) // 2
    attention = 4 * pairs * config.heads * config.head_width
    return config.layers * (2 * tokens * block_weights(config) + attention)
