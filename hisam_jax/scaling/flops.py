"""Useful floating-point operations of a step: products with weights, allowed attention pairs, softmaxes over items.

A multiply-add counts 2; a training step counts three times its forward pass (features of items, which have no
gradient, twice), and nothing that is computed again. Norms, rotations and element-wise work are left out, as is usual
(PaLM, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from hisam_jax.kernels.anchor_attention.core import Rule
from hisam_jax.kernels.anchor_attention.count import allowed_pairs
from hisam_jax.models.config import HMATConfig


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What of the catalogue a model's size and cost depend on.

    Attributes:
        items: of the catalogue.
        levels: codes of each level, the reserved one not counted.
        digit: size of the tie-break code, 0 for none.
        features: width of each modality's features.
    """

    items: int
    levels: Sequence[int]
    digit: int = 0
    features: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def vocab(self) -> tuple[int, ...]:
        """Level sizes, the reserved code included."""
        return tuple(size + 1 for size in self.levels)


def block_weights(config: HMATConfig) -> int:
    """Weights of one block's products."""
    heads = config.heads * config.head_width
    groups = config.kv_heads * config.head_width
    if config.block == "hstu":
        return config.width * (3 * heads + 2 * groups)
    return config.width * (2 * heads + 2 * groups + 3 * config.mlp)


def forward_flops(
    config: HMATConfig, vocabulary: Vocabulary, lengths: Sequence[int], positions: int | None = None
) -> dict[str, int]:
    """Operations of one forward pass, by part.

    Args:
        config: of the model.
        vocabulary: of the catalogue.
        lengths: items of each history that is read, whatever row it is packed in.
        positions: items whose heads are read; None: all.
    """
    items = sum(lengths)
    positions = items if positions is None else positions
    tokens = config.tokens(len(vocabulary.levels))
    blocks = 2 * items * tokens * config.layers * block_weights(config)
    pairs = sum(_pairs(config, length, tokens) * count for length, count in _counted(lengths))
    parts = {"blocks": blocks, "attention": 4 * pairs * config.heads * config.head_width * config.layers}
    parts["items"] = 2 * items * config.width * sum(vocabulary.features.values()) * config.features
    if config.generation:
        sizes = sum(vocabulary.vocab) + vocabulary.digit
        parts["generation"] = 2 * positions * config.width * sizes
    if config.retrieval:
        sampled = vocabulary.items > config.softmax_items
        candidates = config.negatives if sampled else vocabulary.items
        projected = 0 if config.tied_query else config.width
        parts["retrieval"] = 2 * positions * config.width * (projected + candidates)
        parts["items"] += 2 * candidates * config.width * sum(vocabulary.features.values()) * config.features
    if config.ranking:
        parts["ranking"] = 2 * positions * config.width
    return parts


def train_flops(config: HMATConfig, vocabulary: Vocabulary, lengths: Sequence[int]) -> int:
    """Useful operations of a training step: forward, and backward once for weights and once for what they multiply."""
    parts = forward_flops(config, vocabulary, lengths)
    return 3 * sum(parts.values()) - parts["items"]


@functools.lru_cache(maxsize=4096)
def _pairs(config: HMATConfig, items: int, tokens: int) -> int:
    if not config.anchors:
        return items * tokens * (items * tokens + 1) // 2
    return allowed_pairs(items, tokens, items, Rule(config.strict, config.window or None))


def _counted(lengths: Sequence[int]) -> list[tuple[int, int]]:
    found: dict[int, int] = {}
    for length in lengths:
        found[int(length)] = found.get(int(length), 0) + 1
    return sorted(found.items())
