"""SASRec (Kang and McAuley 2018, arXiv 1808.09781): one token an item, causal self-attention, by ids or with content.

Trained by its own loss, one negative a place, or by the softmax over all training items, which lifts it well above its
published figures (Klenitskiy and Vasilev 2023, arXiv 2309.07602).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from hisam_jax.config import check_least, check_shares
from hisam_jax.errors import UserError
from hisam_jax.models.catalog import Catalog
from hisam_jax.models.heads import after_item, weighted_mean
from hisam_jax.models.items import projected_features, row_reader
from hisam_jax.models.layers import Dropout, Embed
from hisam_jax.models.negatives import draw_negatives
from hisam_jax.models.softmax import NONE, log_sum_exp, shut, with_one
from hisam_jax.sharding import BATCH, SPECS, look_up, padded_rows, shard, where


@dataclasses.dataclass(frozen=True)
class SASRecConfig:
    """Sizes and the loss.

    Attributes:
        width: of the embeddings and of every block.
        layers: number of blocks.
        heads: of the attention; divide `width`.
        mlp: hidden units of the point-wise feed-forward; the paper has `width` of them.
        dropout: on embeddings, attention weights and both residual branches.
        positions: learned positions, at least `data.window`; they count from a user's first item in the row.
        loss: `bce`: the next item against one that the user's window does not hold, each by binary cross-entropy;
            `cross_entropy`: softmax over all items with training events.
        features: add a projection of each modality's features to an item's embedding, as HMAT does [ours: the paper has
            ids alone]; items without training events are then found by them.
        retrieval: weight of that loss, the only one.
        dtype: of the computation; parameters, softmax and scores stay float32.
    """

    width: int = 64
    layers: int = 2
    heads: int = 1
    mlp: int = 64
    dropout: float = 0.2
    positions: int = 50
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    features: bool = False
    retrieval: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        check_least(self, "model", width=1, layers=1, heads=1, mlp=1, positions=2)
        if self.width % self.heads:
            raise UserError(f"{self.heads}", field="model.heads", expected=f"a divisor of width, {self.width}")
        check_shares(self, "model", "dropout")
        if not self.retrieval > 0:
            raise UserError(f"value {self.retrieval}", field="model.retrieval", expected="more than 0: the only head")

    @property
    def ranking(self) -> float:
        return 0.0

    @property
    def generation(self) -> float:
        return 0.0

    @property
    def kv_heads(self) -> int:
        return self.heads

    @property
    def anchors(self) -> bool:
        """Every item reads every earlier one, so that a mesh cannot split the items of a row."""
        return False

    @property
    def compute_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.dtype)


class SASRec(nn.Module):
    """See `models.registry` for the methods; `vocab` and `digit` are of IDs, which it does not read.

    An item without training events has no embedding. By ids alone that is a zero vector as input and, as a zero would
    beat a negative score, a score of -1e30: it is never found. Queries and item vectors are one wider than the model
    for that.
    """

    config: SASRecConfig
    vocab: tuple[int, ...]
    digit: int
    items: int

    def setup(self):
        c = self.config
        self.item_encoder = Embed(padded_rows(self.items), c.width, spec=SPECS.rows)
        self.content = Content(c.width) if c.features else None
        self.positions = Embed(c.positions, c.width)
        self.blocks = [SASRecBlock(c) for _ in range(c.layers)]
        self.final_norm = nn.LayerNorm(dtype=jnp.float32)

    @nn.compact
    def states(self, batch, catalog: Catalog, *, deterministic: bool = True) -> jax.Array:
        """float32 `[B, N, D]`: of each place, the query for what comes next."""
        c = self.config
        segment_BN = shard(batch["segment"], jax.P(BATCH))
        place_BN = places(segment_BN)
        item_BND = self._vectors(batch["item"], catalog) * c.width**0.5
        x_BND = shard(item_BND, jax.P(BATCH)) + look_up(self.positions.table, place_BN, jax.P(BATCH))
        x_BND = Dropout(c.dropout, deterministic)(x_BND).astype(c.compute_dtype)
        for block in self.blocks:
            x_BND = block(x_BND, segment_BN, deterministic)
        return shard(self.final_norm(x_BND), SPECS.batch)

    def losses(self, batch, catalog: Catalog, *, deterministic: bool) -> dict[str, jax.Array]:
        """`{"retrieval": nats per next item}`."""
        state_BND = self.states(batch, catalog, deterministic=deterministic)
        next_BN, weight_BN = after_item(batch["item"]), after_item(batch["next_weight"])
        score_BN = (state_BND * self._vectors(next_BN, catalog)).sum(-1)
        if self.config.loss == "bce":
            loss_BN = jax.nn.softplus(-score_BN) + self._against_one(state_BND, batch, catalog)
        else:
            loss_BN = log_sum_exp(with_one(state_BND), shard(self._training_vectors(catalog), SPECS.scored)) - score_BN
        return {"retrieval": weighted_mean(loss_BN, weight_BN, batch, "next_weight")}

    def item_vectors(self, catalog: Catalog) -> jax.Array:
        """`[I, D + 1]`: the vector, then 0, or -1e30 for an item that was never trained and has no features here."""
        if not self._reads_features(catalog):
            return self._training_vectors(catalog)
        open_I = shard(jnp.asarray(catalog.trained_I), SPECS.rows)
        for values_IF in catalog.features.values():
            open_I |= shard(jnp.asarray(values_IF), SPECS.rows).any(-1)
        return shut(self._vectors(None, catalog), open_I)

    def users_of(self, batch, catalog: Catalog) -> jax.Array:
        """`[B, D + 1]`: the state of each row's last event, then 1."""
        state_BND = self.states(batch, catalog)
        last_B = jnp.maximum((batch["segment"] > 0).sum(1) - 1, 0)
        return with_one(jnp.take_along_axis(state_BND, last_B[:, None, None], axis=1)[:, 0])

    def everything(self, batch, catalog: Catalog) -> jax.Array:
        """Touches every parameter; only for initialisation."""
        return self.states(batch, catalog)

    def _reads_features(self, catalog: Catalog) -> bool:
        return self.config.features and catalog.feature_width > 0

    def _vectors(self, item_BN: jax.Array | None, catalog: Catalog) -> jax.Array:
        """Item vectors without the closing column, `[B, N, D]`; of the whole catalogue, `[I, D]`, for None."""
        of = row_reader(item_BN)
        whole = item_BN is None
        ids = of(self.item_encoder.table[: catalog.items]) if whole else self.item_encoder(item_BN, SPECS.batch)
        vectors = ids * of(catalog.trained_I)[..., None]
        return vectors + self.content(catalog, of) if self._reads_features(catalog) else vectors

    def _training_vectors(self, catalog: Catalog) -> jax.Array:
        return shut(self._vectors(None, catalog), shard(jnp.asarray(catalog.trained_I), SPECS.rows))

    def _against_one(self, state_BND, batch, catalog: Catalog) -> jax.Array:
        key, trained_I = self.make_rng("dropout"), shard(jnp.asarray(catalog.trained_I), SPECS.whole)
        item_BN, there_BN = draw_negatives(key, batch["item"], batch["segment"], trained_I)
        score_BN = (state_BND * self._vectors(item_BN, catalog)).sum(-1)
        return jax.nn.softplus(score_BN) * there_BN


class Content(nn.Module):
    """`[..., width]`: the sum of an item's projected features; `of` picks rows of a table."""

    width: int

    @nn.compact
    def __call__(self, catalog: Catalog, of: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return sum(projected_features(self.width, catalog, of).values())


class SASRecBlock(nn.Module):
    """`x + dropout(attention(norm(x)))`, then `x + dropout(feed-forward(norm(x)))`."""

    config: SASRecConfig

    @nn.compact
    def __call__(self, x_BND: jax.Array, segment_BN: jax.Array, deterministic: bool) -> jax.Array:
        c = self.config
        drop, dtype = Dropout(c.dropout, deterministic), c.compute_dtype
        y_BND = nn.LayerNorm(dtype=dtype, name="norm_attention")(x_BND)
        x_BND = x_BND + drop(self._attend(y_BND, segment_BN, drop))
        y_BND = nn.LayerNorm(dtype=dtype, name="norm_mlp")(x_BND)
        hidden_BNF = drop(jax.nn.relu(nn.Dense(c.mlp, dtype=dtype, name="in")(y_BND)))
        return x_BND + drop(nn.Dense(c.width, dtype=dtype, name="out")(hidden_BNF))

    def _attend(self, y_BND: jax.Array, segment_BN: jax.Array, drop: Dropout) -> jax.Array:
        """As the paper has it: no biases, no projection behind it."""
        c = self.config
        shape = (*y_BND.shape[:2], c.heads, c.width // c.heads)
        q, k, v = (
            nn.Dense(c.width, use_bias=False, dtype=c.compute_dtype, name=name)(y_BND).reshape(shape) for name in "qkv"
        )
        scores = jnp.einsum("bnhk,bmhk->bhnm", q, k, preferred_element_type=jnp.float32) * shape[-1] ** -0.5
        mask_BNN = segment_BN[:, :, None] == segment_BN[:, None]  # padding reads padding, and nothing reads it
        mask_BNN &= jnp.tril(jnp.ones(mask_BNN.shape[1:], bool))
        weights = jax.nn.softmax(where(mask_BNN[:, None], scores, NONE), axis=-1)
        return jnp.einsum("bhnm,bmhk->bnhk", drop(weights).astype(v.dtype), v).reshape(y_BND.shape)


def places(segment_BN: jax.Array) -> jax.Array:
    """int32 `[B, N]`: how many items of the same segment come before each; a segment is a run of equal numbers."""
    index_N = jnp.arange(segment_BN.shape[1], dtype=jnp.int32)
    begins_BN = jnp.concatenate([jnp.ones_like(segment_BN[:, :1]), jnp.diff(segment_BN, axis=1)], axis=1) != 0
    return index_N - jax.lax.cummax(jnp.where(begins_BN, index_N, 0), axis=1)


def train_flops(config: SASRecConfig, catalog: Catalog, lengths: Sequence[int]) -> int:
    """Operations of a training step on histories of these lengths, by the rules of `scaling.flops`."""
    read, width = sum(lengths), config.width
    softmax = config.loss == "cross_entropy"
    weights = config.layers * (3 * width**2 + 2 * width * config.mlp)
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    scored = catalog.items if softmax else 2
    forward = 2 * read * (weights + width * scored) + 4 * pairs * width * config.layers
    described = read + (catalog.items if softmax else read)
    return 3 * forward + 2 * 2 * described * width * catalog.feature_width * config.features
