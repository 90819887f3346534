"""HMAT: item groups of code tokens and an anchor, memory-anchor attention, one state per token."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from hisam_jax.models.blocks import Block, Cache
from hisam_jax.models.catalog import Catalog
from hisam_jax.models.config import HMATConfig
from hisam_jax.models.hstu import HSTUBlock
from hisam_jax.models.items import ItemEncoder, id_row
from hisam_jax.models.layers import Dropout, Einsum, Embed, RMSNorm
from hisam_jax.models.rope import rotation
from hisam_jax.sharding import BATCH, SPECS, padded_rows, shard

LOG_SCALE = 2.7  # of cosines, at the start: a temperature of .067
EFFECT_SCALE = 10.0  # a number a rating: Adam moves every parameter alike, and an item is met in few steps
ACTIONS = 11  # 0 unknown, 1..10: half stars


def _recomputed(block: type[nn.Module], remat: str) -> type[nn.Module]:
    if remat == "none":
        return block
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "products" else None
    return nn.remat(block, prevent_cse=False, static_argnums=(7,), policy=policy)


class HMAT(nn.Module):
    """Hierarchical Memory-Anchor Transformer, or the flat baseline when `config.anchors` is off.

    An item's group is `[codes, anchor]`, or with actions on `[codes, target, action, anchor]`; without an anchor token,
    as in the flat baseline, the last token takes the anchor's part: it receives the item vector and is read out.

    Attributes:
        config: sizes and switches.
        vocab: level sizes, reserved code included.
        digit: size of the tie-break code, 0 where there is none; predicted last and never an input.
        items: number of items in the catalogue.
    """

    config: HMATConfig
    vocab: tuple[int, ...]
    digit: int
    items: int

    def setup(self):
        c = self.config
        self.item_encoder = ItemEncoder(c, self.vocab, self.items)
        self.special = Embed(3, c.width)  # anchor, target, action
        self.action_table = Embed(ACTIONS, c.width)
        self.gap_projection = Einsum("...k,kd->...d", (3, c.width), scale=0.1)
        self.blocks = _recomputed(HSTUBlock if c.block == "hstu" else Block, c.remat)
        self.final_norm = RMSNorm()
        if c.ranking:
            self.click = Einsum("...d,d->...", (c.width,))
            self.click_bias = self.param("click_bias", nn.initializers.zeros, ())
            if c.item_effect:
                self.item_effect = Embed(c.item_id_rows or padded_rows(self.items), 1, 0.0, spec=SPECS.rows)
        if c.generation:
            sizes = (*self.vocab, self.digit) if self.digit else self.vocab
            self.next_code = [Einsum("...d,dk->...k", (c.width, size), scale=0.5, spec=SPECS.matrix) for size in sizes]
        if c.retrieval:
            if c.cosine:
                self.log_scale = self.param("log_scale", nn.initializers.constant(LOG_SCALE), ())
            if not c.tied_query:
                self.user_projection = Einsum("...d,de->...e", (c.width, c.width), spec=SPECS.matrix)

    @property
    def slots(self) -> int:
        """Tokens per item."""
        return self.config.tokens(len(self.vocab))

    def reading_slot(self, level: int) -> int:
        """The token of an item from whose state its code `level` is predicted; -1 is the item before's last state.

        Without anchor token and actions the last code's token carries the whole item: the digit is read one earlier.
        """
        blind = self.config.has_anchor_token or self.config.actions
        return min(level - 1, len(self.vocab) - (1 if blind else 2))

    def embed(self, batch: Mapping[str, jax.Array], catalog: Catalog, *, deterministic: bool = True) -> jax.Array:
        """Input tokens `[B, N, T, D]` of item groups: codes, then target and action, then the anchor."""
        c = self.config
        tokens = [self.item_encoder.code_embeddings(batch["codes"])]
        vector_BND = self.item_encoder(batch["item"], catalog, deterministic=deterministic)
        context_BND = self._gap(batch["gap"]) if c.time_gap else 0.0
        action_BND = self.action_table(batch["action"], SPECS.batch)
        summary_BND = vector_BND * (c.width**0.5 if c.tied_query else 1.0) + context_BND
        if c.past_action and (c.actions or not c.ranking):
            summary_BND = summary_BND + action_BND  # with actions off the ranking logit is read here: no answer inside
        if c.actions:
            target = self.special(jnp.int32(1)) + vector_BND + context_BND
            action = self.special(jnp.int32(2)) + action_BND
            tokens.append(jnp.stack([target, action], axis=2))
        if c.has_anchor_token:
            tokens.append((self.special(jnp.int32(0)) + summary_BND)[:, :, None])
        x_BNTD = jnp.concatenate(tokens, axis=2)
        if not c.has_anchor_token:
            x_BNTD = x_BNTD.at[:, :, -1].add(summary_BND)
        return x_BNTD

    @nn.compact
    def run(self, x_BNTD, item_BN, segment_BN, cache: Cache | None = None, *, deterministic: bool = True):
        """Blocks and final norm: `(state_BNTD, Cache)`. With `cache` the items continue a history, each on its own."""
        c = self.config
        x_BNTD = Dropout(c.dropout, deterministic)(x_BNTD).astype(c.compute_dtype)
        stack = nn.scan(
            self.blocks,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
            length=c.layers,
        )
        past = None if cache is None else (cache.k, cache.v)
        index_BM = None if cache is None else cache.index_BM
        mode = c.rope if c.anchors or c.rope == "none" else "flat"
        mode = "none" if c.block == "hstu" else mode  # it has a bias by distance
        turns = rotation(item_BN, jnp.arange(x_BNTD.shape[2]), c.head_width, mode=mode, slots=self.slots)
        places = item_BN, turns, segment_BN, index_BM, self.slots
        x_BNTD, (k, v) = stack(c, deterministic, name="blocks")(x_BNTD, past, *places)
        index_BN, repeats = jnp.where(segment_BN > 0, item_BN, -1), k.shape[2] // segment_BN.shape[1]
        index_BM = index_BN if repeats == 1 else jnp.repeat(shard(index_BN, jax.P(BATCH)), repeats, axis=1)
        return self.final_norm(x_BNTD), Cache(k, v, index_BM)

    def __call__(self, batch: Mapping[str, jax.Array], catalog: Catalog, *, deterministic: bool = True):
        """States of packed histories.

        Args:
            batch: `item`, `segment`, `action` int32 `[B, N]`, `codes` int32 `[B, N, L]`, `gap` float32 `[B, N]`.
            catalog: frozen item tables.

        Returns:
            `(state_BNTD, Cache)` after the final norm.
        """
        x_BNTD = self.embed(batch, catalog, deterministic=deterministic)
        item_BN = shard(jnp.broadcast_to(jnp.arange(x_BNTD.shape[1]), x_BNTD.shape[:2]), SPECS.batch)
        return self.run(x_BNTD, item_BN, batch["segment"], deterministic=deterministic)

    def click_logits(self, state_BNTD: jax.Array, item_BN: jax.Array) -> jax.Array:
        """`[B, N]`: read from the target token with actions on, else from the group's last token."""
        slot = len(self.vocab) if self.config.actions else -1
        logit_BN = self.click(state_BNTD[:, :, slot].astype(jnp.float32)) + self.click_bias
        if not self.config.item_effect:
            return logit_BN
        row_BN = id_row(item_BN, self.items, self.item_effect.rows)
        effect_BN = EFFECT_SCALE * self.item_effect(row_BN, SPECS.batch)[..., 0]
        return logit_BN + effect_BN * (item_BN < self.items)  # one that came later has none

    def code_logits(self, state_xD: jax.Array, level: int) -> jax.Array:
        """Logits over one level's own vocabulary, from the state before that code."""
        return self.next_code[level](state_xD.astype(jnp.float32))

    def user_vectors(self, state_BNTD: jax.Array) -> jax.Array:
        """`[B, N, D]`: the group's last state as a query over item vectors."""
        user_BND = state_BNTD[:, :, -1].astype(jnp.float32)
        if not self.config.tied_query:
            user_BND = self.user_projection(user_BND)
        return jnp.exp(self.log_scale) * self.scored(user_BND) if self.config.cosine else user_BND

    def scored(self, vectors_xD: jax.Array) -> jax.Array:
        """Vectors as retrieval multiplies them: of unit length where scores are cosines."""
        if not self.config.cosine:
            return vectors_xD
        return vectors_xD * jax.lax.rsqrt((vectors_xD**2).sum(-1, keepdims=True) + 1e-6)

    def item_vectors(self, catalog: Catalog, *, deterministic: bool = True) -> jax.Array:
        """`[I, D]`: the vectors that retrieval scores with, those that the anchors receive."""
        return self.scored(self.item_encoder(None, catalog, deterministic=deterministic))

    def _gap(self, gap_BN: jax.Array) -> jax.Array:
        scaled = gap_BN / 10.0  # log1p(hours): 10 is about two and a half years
        return self.gap_projection(jnp.stack([scaled, scaled**2, (gap_BN > 0).astype(jnp.float32)], axis=-1))

    def everything(self, batch, catalog):
        """Touches every parameter; only for initialisation."""
        state, _ = self(batch, catalog)
        c = self.config
        outputs = [self.click_logits(state, batch["item"])] if c.ranking else []
        if c.generation:
            outputs += [self.code_logits(state[:, :, 0], level) for level in range(len(self.next_code))]
        if c.retrieval:
            outputs += [self.user_vectors(state), self.item_vectors(catalog)]
        return outputs
