"""QARM's ranker, and DIN as the same without codes: click probability of a target after a user's history.

Stated (arXiv 2411.11739): codes have embedding tables of their own, are added to id features, and are used three
times: of the target, of the history under target attention, and as cross features, attention over past items that
share the target's first codes. No gradient passes codes. Ours: the base, where a past item's vector holds what the user
did with it; a causal share of positives of the user's past, the same for every switch; that cross features weigh items
as the whole history's attention does, and counts beside them; and past items among the target's nearest as the cross
feature of VQ codes.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from hisam_jax.models import target_attention
from hisam_jax.models.catalog import Catalog
from hisam_jax.models.heads import weighted_mean
from hisam_jax.models.hmat import ACTIONS, EFFECT_SCALE
from hisam_jax.models.items import id_row
from hisam_jax.models.layers import Dropout, Einsum, Embed
from hisam_jax.models.qarm_config import ALIGNED, NEIGHBOURS, QarmRankerConfig
from hisam_jax.models.target_attention import ROWS
from hisam_jax.sharding import SPECS, look_up, padded_rows, shard

Arrays = dict[str, jax.Array]


class QarmRanker(nn.Module):
    """See the module; the interface is that of a baseline in `models.registry`.

    Attributes:
        config: sizes and switches.
        vocab: level sizes, reserved code included.
        digit: not used.
        items: number of items in the catalogue.
    """

    config: QarmRankerConfig
    vocab: tuple[int, ...]
    digit: int
    items: int

    def setup(self):
        c = self.config
        self.item_table = Embed(padded_rows(self.items), c.width, spec=SPECS.rows, name="item_id")
        self.item_bias = Embed(padded_rows(self.items), 1, 0.0, spec=SPECS.rows, name="item_effect_table")
        self.actions = {name: Embed(ACTIONS, c.width, name=f"action_table_{name}") for name in c.attentions}
        self.gap = Einsum("...k,kd->...d", (2, c.width), scale=0.1, name="gap_projection")
        self.weigh = {name: AttentionWeights(c, name=f"attention_{name}") for name in c.attentions}
        if c.uses_rq:
            self.code_tables = [
                Embed(size, c.width, name=f"code_table_{level}") for level, size in enumerate(self.vocab)
            ]
        if c.uses_vq:
            self.near_table = Embed(padded_rows(self.items), c.width, spec=SPECS.rows, name="near_table")
        if c.codes == "frozen":
            self.project = Aligned(c.width, name="aligned")
        self.last = Last(c, name="last")

    def losses(self, batch: Mapping, catalog: Catalog, *, deterministic: bool) -> Arrays:
        """`ranking`: binary cross-entropy of `positive` where `rank_weight` is set."""
        logit_BN = self.clicks(batch, catalog, deterministic=deterministic)
        loss_BN = optax.sigmoid_binary_cross_entropy(logit_BN, batch["positive"])
        return {"ranking": weighted_mean(loss_BN, batch["rank_weight"], batch, "rank_weight")}

    def everything(self, batch: Mapping, catalog: Catalog) -> jax.Array:
        """Touches every parameter; only for initialisation."""
        return self.clicks(batch, catalog)

    def clicks(self, batch: Mapping, catalog: Catalog, *, deterministic: bool = True) -> jax.Array:
        """Logits `[B, N]` of every event of packed rows, each told nothing of its own action or of what follows."""
        item_BN, segment_BN = shard(batch["item"], ROWS), shard(batch["segment"], ROWS)
        vectors = self._vectors(item_BN, catalog, deterministic)
        place_BN = shard(jnp.broadcast_to(jnp.arange(item_BN.shape[1]), item_BN.shape), ROWS)
        targets = {**vectors, "place": place_BN, "segment": segment_BN, "gap": shard(batch["gap"], ROWS)}
        past = self._past(vectors, batch)
        return shard(self._logits(targets, past, deterministic), SPECS.batch)

    def candidate_clicks(self, batch: Mapping, catalog: Catalog, item_BC: jax.Array, gap_B: jax.Array) -> jax.Array:
        """Logits `[B, C]` of items that would come next; rows hold one user each."""
        past = self._past(self._vectors(batch["item"], catalog, True), batch)
        length_B1 = (batch["segment"] > 0).sum(1, keepdims=True)
        place_BC = jnp.broadcast_to(length_B1, item_BC.shape)
        gap_BC = jnp.broadcast_to(gap_B[:, None], item_BC.shape)
        targets = {"place": place_BC, "segment": jnp.ones_like(item_BC), "gap": gap_BC}
        return self._logits({**self._vectors(item_BC, catalog, True), **targets}, past, True)

    def _vectors(self, item_BN: jax.Array, catalog: Catalog, deterministic: bool) -> Arrays:
        """What is known of items: `item`, the vectors `id` and `code`, and codes to compare."""
        c = self.config
        known_BN1 = look_up(jnp.asarray(catalog.trained_I), item_BN, ROWS)[..., None]
        if c.id_dropout and not deterministic:
            known_BN1 &= jax.random.bernoulli(self.make_rng("dropout"), 1 - c.id_dropout, known_BN1.shape)
        row_BN = id_row(item_BN, self.items, self.item_table.rows)
        id_BND, bias_BN1 = (table(row_BN, ROWS) * known_BN1 for table in (self.item_table, self.item_bias))
        found, code = {"item": item_BN, "id": id_BND, "bias": EFFECT_SCALE * bias_BN1[..., 0]}, []
        if c.uses_rq:
            found["codes"] = look_up(jnp.asarray(catalog.codes_IL), item_BN, ROWS)
            code += [table(found["codes"][..., level], ROWS) for level, table in enumerate(self.code_tables)]
        if c.uses_vq:
            found["near"] = look_up(jnp.asarray(catalog.extras[NEIGHBOURS]), item_BN, ROWS)
            code.append(self._near(found["near"]))
        if c.codes == "frozen":
            code.append(self.project(look_up(jnp.asarray(catalog.extras[ALIGNED]), item_BN, ROWS)))
        return {**found, "code": sum(code)} if code else found

    def _near(self, near_BNK: jax.Array) -> jax.Array:
        """The mean of the embeddings of the nearest items `[B, N, D]`; 0 where there is none."""
        known_BNK1 = (near_BNK >= 0)[..., None]
        row_BNK = id_row(jnp.maximum(near_BNK, 0), self.items, self.near_table.rows)
        total_BND = (self.near_table(row_BNK, ROWS) * known_BNK1).sum(-2)
        return total_BND / jnp.maximum(known_BNK1.sum(-2), 1)

    def _past(self, vectors: Arrays, batch: Mapping) -> Arrays:
        """Events as later ones see them: vectors that hold the action and the time since the one before."""
        action_BN, gap_BN1 = shard(batch["action"], ROWS), shard(batch["gap"], ROWS)[..., None] / 10.0
        when_BND = self.gap(jnp.concatenate([gap_BN1, gap_BN1**2], axis=-1))
        told = {name: vectors[name] + self.actions[name](action_BN, ROWS) + when_BND for name in self.config.attentions}
        rated_BN = (action_BN > 0).astype(jnp.float32)
        liked_BN = (action_BN >= self.config.liked).astype(jnp.float32)
        stats_BN3 = jnp.stack([rated_BN, liked_BN, action_BN / 10.0], axis=-1)
        compared = {name: vectors[name] for name in ("item", "codes") if name in vectors}
        return {**compared, **told, "stats": stats_BN3, "segment": shard(batch["segment"], ROWS)}

    def _logits(self, targets: Arrays, past: Arrays, deterministic: bool) -> jax.Array:
        """Logits `[B, Q]`: what `_read` reads in blocks, then the last network."""
        c, vocab = self.config, self.vocab
        weights = {name: self.weigh[name]() for name in c.attentions}
        read = target_attention.in_blocks(lambda part: _read(c, vocab, weights, part, past), targets, c.block)
        parts = [targets["id"], *(part for part, _ in read["crosses"])]
        for name in c.attentions:
            parts += [read[name], read[name] * targets[name]]
        if "code" in targets:
            parts.append(targets["code"])
        dense = [read["dense"], *(stats for _, stats in read["crosses"])]
        parts = (jnp.concatenate(part, axis=-1) for part in (parts, dense))
        return self.last(*parts, deterministic=deterministic) + targets["bias"]


def _read(c: QarmRankerConfig, vocab: tuple[int, ...], weights: Mapping, targets: Arrays, past: Arrays) -> Arrays:
    """What a block of targets reads of the events before each: attention, cross features, the user's past."""
    seen_BQN = target_attention.allowed(targets["place"], targets["segment"], past["segment"])
    ago_BQN = target_attention.recency(targets["place"], seen_BQN.shape[-1])
    weight_BQN = {
        name: target_attention.weigh(weights[name], targets[name], past[name], ago_BQN) for name in c.attentions
    }
    read = {name: target_attention.weighted(weight, past[name], seen_BQN) for name, weight in weight_BQN.items()}
    every_BQS = _stats(c, *target_attention.pool(past["stats"], seen_BQN), 0.5, 0.5)
    share_BQ, mean_BQ = every_BQS[..., 1] + 0.5, every_BQS[..., 2] + 0.5
    gap_BQ = targets["gap"] / 10.0
    dense = [every_BQS, jnp.stack([gap_BQ, gap_BQ**2], axis=-1)]
    crosses = []
    for shared_BQN in _shared(c, vocab, targets, past):
        chosen_BQN = shared_BQN & seen_BQN
        stats_BQS = _stats(c, *target_attention.pool(past["stats"], chosen_BQN), share_BQ, mean_BQ)
        crosses.append((_cross(c, weight_BQN["id"], past["id"], chosen_BQN), stats_BQS))
    return {**read, "dense": jnp.concatenate(dense, axis=-1), "crosses": crosses}


def _cross(c: QarmRankerConfig, weight_BQN: jax.Array, past_BND: jax.Array, chosen_BQN: jax.Array) -> jax.Array:
    """[B, Q, D]: past events that share something with the target, by the switch `cross`."""
    if c.cross == "attention":
        return target_attention.weighted(weight_BQN, past_BND, chosen_BQN)
    total_BQD, count_BQ = target_attention.pool(past_BND, chosen_BQN)
    return total_BQD / jnp.maximum(count_BQ, 1)[..., None]


def _shared(c: QarmRankerConfig, vocab: tuple[int, ...], targets: Arrays, past: Arrays) -> list[jax.Array]:
    """bool [B, Q, N] of each cross feature: past items that share the first codes, or are among the nearest."""
    chosen = []
    if c.uses_rq:
        reserved = tuple(size - 1 for size in vocab)
        for depth in c.depths:
            codes = targets["codes"][..., :depth], past["codes"][..., :depth], reserved[:depth]
            chosen.append(target_attention.same_codes(*codes))
    if c.uses_vq:
        chosen.append(target_attention.among(targets["near"], past["item"]))
    return chosen


def _stats(c: QarmRankerConfig, total_BQ3: jax.Array, count_BQ: jax.Array, share_BQ, mean_BQ) -> jax.Array:
    """[B, Q, 4]: log count; share of positives and mean action, less what they are smoothed to; if any is rated."""
    rated_BQ, liked_BQ, action_BQ = jnp.moveaxis(total_BQ3, -1, 0)
    weight_BQ = rated_BQ + c.smoothing
    share = (liked_BQ + c.smoothing * share_BQ) / weight_BQ - share_BQ
    mean = (action_BQ + c.smoothing * mean_BQ) / weight_BQ - mean_BQ
    return jnp.stack([jnp.log1p(count_BQ) / 5.0, share, mean, (rated_BQ > 0).astype(share.dtype)], axis=-1)


class AttentionWeights(nn.Module):
    """The parameters of `target_attention.weigh`."""

    config: QarmRankerConfig

    @nn.compact
    def __call__(self) -> Arrays:
        width, units = self.config.width, self.config.attention_units
        normal, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
        # Products of two small embeddings start near 0: a larger scale lets them count from the first step.
        kinds = {"target": normal, "past": normal, "product": nn.initializers.normal(1.0)}
        weights = {name: self.param(name, init, (width, units), jnp.float32) for name, init in kinds.items()}
        weights["recency"] = self.param("recency_bias", zeros, (target_attention.RECENCIES, units), jnp.float32)
        weights["bias"] = self.param("bias", zeros, (units,), jnp.float32)
        weights["out"] = self.param("out", nn.initializers.normal(units**-0.5), (units,), jnp.float32)
        return weights | {"base": self.param("base_bias", nn.initializers.ones, (), jnp.float32)}


class Aligned(nn.Module):
    """Frozen aligned vectors `[..., F]` projected to `[..., D]`."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Einsum("...f,fd->...d", (x.shape[-1], self.width), scale=0.3, name="projection")(x)


class Last(nn.Module):
    """The network from all that is known of a target, vectors and what is `dense`, to a logit."""

    config: QarmRankerConfig

    @nn.compact
    def __call__(self, x: jax.Array, dense: jax.Array, *, deterministic: bool) -> jax.Array:
        c, drop = self.config, Dropout(self.config.dropout, deterministic)
        for layer, units in enumerate((c.mlp, c.mlp // 2)):
            x = drop(x) if layer else jnp.concatenate([drop(x), dense], axis=-1)
            bias = self.param(f"bias_{layer}", nn.initializers.zeros, (units,), jnp.float32)
            x = jax.nn.silu(Einsum("...d,de->...e", (x.shape[-1], units), name=f"hidden_{layer}")(x) + bias)
        logit = Einsum("...d,d->...", (x.shape[-1],), name="logit")(x)
        return logit + self.param("logit_bias", nn.initializers.zeros, (), jnp.float32)
