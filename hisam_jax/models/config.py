"""Sizes and switches of the Hierarchical Memory-Anchor Transformer and its flat baseline."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp

from hisam_jax.config import check_least, check_shares
from hisam_jax.errors import UserError
from hisam_jax.kernels.anchor_attention import IMPLEMENTATIONS


@dataclasses.dataclass(frozen=True)
class HMATConfig:
    """One record for HMAT and, with `anchors=False`, for the flat baseline of the same width and depth.

    Attributes:
        width: model width D.
        layers: number of blocks.
        heads: query heads; `width` is `heads * head_width`.
        kv_heads: key/value heads; divides `heads`.
        mlp: hidden units of the gated MLP.
        dropout: on embeddings, hidden units and residual branches.
        id_dropout: share of items whose item-id embedding is hidden in a training step, so that content must do.
        code_dropout: share of items whose code embeddings are hidden from their item vector in a training step.
        anchors: memory-anchor attention [stated]; False is full causal attention over all code tokens.
        block: `transformer`, or `hstu` for the flat baseline: gated pointwise attention (arXiv 2402.17152), a bias by
            distance, which has no use for `mlp`, `rope` and `qk_norm`.
        anchor_token: the anchor is a token of its own behind the codes [stated]; False: the group's last token carries
            the item vector and is the anchor, one token an item less [ours]. The flat baseline never has one.
        strict: anchors do not read earlier anchors [AnLLM's form].
        rope: `hierarchical` [stated], `flat` or `none`; the flat baseline uses `flat`.
        qk_norm: RMSNorm on queries and keys [ours].
        actions: target and action tokens in each group [ours]; needed to rank without reading the answer.
        item_id: item-id embedding in the item vector [ours].
        item_id_rows: rows of its hashed table; 0 is one row an item.
        item_effect: a number of each item's own in its click logit, from 0 [ours]: what all users agree on reaches the
            logit without a way through the blocks.
        cosine: retrieval scores are cosines times a learned scale, so that an item's length does not speak for how
            often it was sold (as NISER, arXiv 1909.04276); else dot products.
        tied_query: the user vector is the last state itself, in the space of item vectors, and the anchor is given the
            item's vector times sqrt(width), so that a step begins as a walk among similar items, as SASRec's does; else
            the user vector is a projection of the state [ours]. Without retrieval only the input's scale is left of it.
        features: projected modality features in the item vector [ours].
        codes: code embeddings in the item vector [ours].
        time_gap: log time since the user's previous event, in the anchor (and in the target token).
        past_action: the item's own action in its anchor.
        ranking, generation, retrieval: weights of the heads; 0 leaves a head out.
        dtype: of the computation; parameters and softmax stay float32.
        window: items back that anchors are read from, 0 for no bound [ours]; needs `anchors`.
        attention: implementation of anchor attention, None for the platform's; of the flat baseline, None for chunks or
            `dense`. It does not govern what continues a cache, which is always plain XLA.
        remat: what the backward pass recomputes of a block: `none`, `all`, or all but the `products` with weights.
        softmax_items: the largest catalogue whose retrieval loss is over all items; past it the softmax is sampled.
        negatives: candidates of the sampled softmax.
    """

    width: int = 64
    layers: int = 2
    heads: int = 2
    kv_heads: int = 2
    mlp: int = 172
    dropout: float = 0.1
    id_dropout: float = 0.0
    code_dropout: float = 0.0
    anchors: bool = True
    block: Literal["transformer", "hstu"] = "transformer"
    anchor_token: bool = True
    strict: bool = False
    rope: Literal["hierarchical", "flat", "none"] = "hierarchical"
    qk_norm: bool = True
    actions: bool = False
    item_id: bool = True
    item_id_rows: int = 0
    item_effect: bool = False
    cosine: bool = False
    tied_query: bool = False
    features: bool = True
    codes: bool = True
    time_gap: bool = True
    past_action: bool = True
    ranking: float = 0.0
    generation: float = 1.0
    retrieval: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    window: int = 0
    attention: str | None = None
    remat: Literal["none", "all", "products"] = "none"
    softmax_items: int = 200_000
    negatives: int = 8192

    def __post_init__(self):
        check_least(self, "model", width=1, layers=1, heads=1, kv_heads=1, mlp=1)
        check_least(self, "model", item_id_rows=0, ranking=0, generation=0, retrieval=0, window=0)
        check_least(self, "model", softmax_items=0, negatives=2)
        self._check_attention()
        check_shares(self, "model", "dropout", "id_dropout", "code_dropout")
        if self.width % self.heads or self.heads % self.kv_heads or (self.width // self.heads) % 4:
            raise UserError(
                f"width {self.width}, heads {self.heads}, kv_heads {self.kv_heads}",
                field="model.heads",
                expected="heads that divide width into parts divisible by 4, and kv_heads that divide heads",
            )
        if not (self.item_id or self.features or self.codes):
            raise UserError(
                "an item vector of nothing", field="model.item_id", expected="item_id, features or codes on"
            )
        if not (self.ranking or self.generation or self.retrieval):
            raise UserError("no head has a weight", field="model.retrieval", expected="at least one weight above 0")

    def _check_attention(self) -> None:
        if self.window and not self.anchors:
            raise UserError(f"window {self.window}", field="model.anchors", expected="True with a window")
        if self.block == "hstu" and self.anchors:
            raise UserError("'hstu' with anchors", field="model.block", expected="model.anchors=False beside it")
        known = IMPLEMENTATIONS if self.anchors else ("dense",)
        if self.attention is not None and self.attention not in known:
            raise UserError(f"{self.attention!r}", field="model.attention", expected=f"None or {' or '.join(known)}")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def compute_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.dtype)

    def tokens(self, levels: int) -> int:
        """Tokens per item T: codes, target and action where they are on, the anchor where there is one."""
        return levels + 2 * self.actions + self.has_anchor_token

    @property
    def has_anchor_token(self) -> bool:
        """Whether a group ends with a token that is neither a code nor an action."""
        return self.anchors and self.anchor_token
