"""The three losses: ranking at every position, next-item codes, next item among all training items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hisam_jax.models.catalog import Catalog, padded
from hisam_jax.models.hmat import HMAT
from hisam_jax.models.layers import einsum
from hisam_jax.models.softmax import log_sum_exp, shut, with_one
from hisam_jax.sharding import BATCH, SPECS, look_up, shard, where

WEIGHTS = ("rank_weight", "next_weight")


def with_totals(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The batch with the sums of its weights, so that losses of its parts, summed, are the loss of the whole."""
    return {**batch, **{_total(name): jnp.maximum(batch[name].sum(), 1.0) for name in WEIGHTS if name in batch}}


def _total(name: str) -> str:
    return f"{name}_total"


def weighted_mean(values: jax.Array, weights: jax.Array, batch, name: str) -> jax.Array:
    """`sum(values * weights)` over the batch's total of the weight `name`; 0 where no weight is left."""
    total = batch.get(_total(name))
    return (values * weights).sum() / (jnp.maximum(batch[name].sum(), 1.0) if total is None else total)


def after_item(x_BN: jax.Array) -> jax.Array:
    """Shifts along items so that position n holds what stood at n + 1, the last one 0."""
    whole_BN = shard(x_BN, jax.P(BATCH))  # a shift crosses devices that split the items
    return shard(jnp.concatenate([whole_BN[:, 1:], jnp.zeros_like(whole_BN[:, :1])], axis=1), SPECS.batch)


def cross_entropy(logits_BNK: jax.Array, label_BN: jax.Array) -> jax.Array:
    """`logsumexp - logit of the label`; by a mask instead of a gather, as the classes may be split over devices."""
    is_label = jnp.arange(logits_BNK.shape[-1]) == label_BN[..., None]
    return jax.nn.logsumexp(logits_BNK, axis=-1) - where(is_label, logits_BNK, 0.0).sum(-1)


def ranking_loss(model: HMAT, state_BNTD, batch) -> jax.Array:
    """Binary cross-entropy of `positive` where `rank_weight` is set [at every position: ours]."""
    loss_BN = optax.sigmoid_binary_cross_entropy(model.click_logits(state_BNTD, batch["item"]), batch["positive"])
    return weighted_mean(loss_BN, batch["rank_weight"], batch, "rank_weight")


def generation_loss(model: HMAT, state_BNTD, batch) -> jax.Array:
    """Nats per item: code 0 from the previous item's last state, code l from the item's own token l - 1 [ours]."""
    codes_BNL, weight_BN = batch["targets"], batch["next_weight"]
    total = jnp.float32(0.0)
    for level in range(codes_BNL.shape[-1]):
        slot, code_BN, weight = model.reading_slot(level), codes_BNL[..., level], weight_BN
        if slot < 0:
            code_BN, weight = after_item(code_BN), after_item(weight)
        logits = model.code_logits(state_BNTD[:, :, slot], level)
        total += weighted_mean(cross_entropy(logits, code_BN), weight, batch, "next_weight")
    return total


def retrieval_loss(model: HMAT, state_BNTD, batch, catalog: Catalog, *, deterministic: bool) -> jax.Array:
    """Softmax cross-entropy over training items, from the previous item's last state [ours].

    Over all of them, or over a sample of them where the catalogue is larger than `softmax_items`.
    """
    user_BND, next_BN = model.user_vectors(state_BNTD), after_item(batch["item"])
    weight_BN = after_item(batch["next_weight"])
    if catalog.items > model.config.softmax_items:
        loss_BN = _sampled(model, user_BND, next_BN, weight_BN, catalog, deterministic)
    else:
        vectors_ID = shard(model.item_vectors(catalog, deterministic=deterministic), SPECS.scored)
        loss_BN = _over_all(model, user_BND, vectors_ID, catalog) - _dot(model, user_BND, vectors_ID, next_BN)
    return weighted_mean(loss_BN, weight_BN, batch, "next_weight")


def _over_all(model: HMAT, user_BND: jax.Array, vectors_ID: jax.Array, catalog: Catalog) -> jax.Array:
    """`[B, N]`: log of the sum of the exponentials of all training items' scores."""
    trained_I, dtype = shard(jnp.asarray(catalog.trained_I), SPECS.scored), model.config.compute_dtype
    return log_sum_exp(with_one(user_BND).astype(dtype), shut(vectors_ID, trained_I).astype(dtype))


def _dot(model: HMAT, user_BND: jax.Array, vectors_ID: jax.Array, item_BN: jax.Array) -> jax.Array:
    user, target = (x.astype(model.config.compute_dtype) for x in (user_BND, look_up(vectors_ID, item_BN, SPECS.batch)))
    return (user.astype(jnp.float32) * target.astype(jnp.float32)).sum(-1)


def _scores(model: HMAT, user_BND: jax.Array, vectors_CD: jax.Array) -> jax.Array:
    user, vectors = (x.astype(model.config.compute_dtype) for x in (user_BND, vectors_CD))
    return einsum("bnd,cd->bnc", user, vectors, out=SPECS.logits, preferred_element_type=jnp.float32)


def _sampled(model: HMAT, user_BND, next_BN, weight_BN, catalog: Catalog, deterministic: bool) -> jax.Array:
    """Sampled softmax: half of the negatives are targets of this batch, half uniform items.

    Scores are corrected by the log of how often an item is expected among the candidates (log-q: Bengio and Senecal
    2008; the mixture: Yang et al. 2020), the target's own like the others'; a candidate that is the target is left out.
    """
    negatives = model.config.negatives
    place_key, item_key = jax.random.split(model.make_rng("dropout"))
    flat_item, flat_weight = (shard(x, SPECS.whole).reshape(-1) for x in (next_BN, weight_BN))
    chosen = jax.random.categorical(place_key, jnp.where(flat_weight > 0, 0.0, -1e30), shape=(negatives // 2,))
    uniform = jax.random.randint(item_key, (negatives - negatives // 2,), 0, catalog.items)
    item_C = jnp.concatenate([flat_item[chosen], uniform])
    vectors_CD = model.scored(model.item_encoder(item_C, catalog, deterministic=deterministic, spec=SPECS.scored))
    vectors_BND = model.scored(model.item_encoder(next_BN, catalog, deterministic=deterministic))

    def log_expected(item_x, spec):
        frequency = look_up(jnp.asarray(catalog.frequency_I), item_x, spec)
        return jnp.log(negatives // 2 * frequency + uniform.size / catalog.items)

    target_BN = (user_BND * vectors_BND).sum(-1) - log_expected(next_BN, SPECS.batch)
    logits_BNC = _scores(model, user_BND, vectors_CD) - log_expected(item_C, SPECS.scored)
    item_C = shard(item_C, SPECS.scored)
    trained_C = look_up(jnp.asarray(catalog.trained_I), item_C, SPECS.scored)
    logits_BNC = where(trained_C & (item_C != next_BN[..., None]), logits_BNC, -1e30)
    return jnp.logaddexp(target_BN, jax.nn.logsumexp(logits_BNC, axis=-1)) - target_BN


def losses(model: HMAT, batch, catalog: Catalog, *, deterministic: bool) -> dict[str, jax.Array]:
    """Each trained head's loss by name; called inside `apply`."""
    state_BNTD, _ = model(batch, catalog, deterministic=deterministic)
    config, result = model.config, {}
    if config.ranking:
        result["ranking"] = ranking_loss(model, state_BNTD, batch)
    if config.generation:
        result["generation"] = generation_loss(model, state_BNTD, batch)
    if config.retrieval:
        result["retrieval"] = retrieval_loss(model, state_BNTD, batch, catalog, deterministic=deterministic)
    return result


class Frozen(NamedTuple):
    """What a step reads and never changes: an argument of the step, so that it is split as the parameters are.

    Attributes:
        catalog: item tables.
        full_codes_IL: int32 targets of generation, the tie-break digit last where there is one.
    """

    catalog: Catalog
    full_codes_IL: jax.Array


def make_frozen(catalog: Catalog, full_codes_IL: np.ndarray) -> Frozen:
    """Host arrays with as many rows as the id table has (`sharding.padded_rows`)."""
    catalog = padded(catalog)
    codes_IL = np.asarray(full_codes_IL)
    return Frozen(catalog, np.pad(codes_IL, ((0, catalog.items - len(codes_IL)), (0, 0))))


def make_objective(
    model: nn.Module, catalog: Catalog | None, full_codes_IL: jax.Array | None
) -> tuple[Callable, Callable]:
    """`(loss_fn(params, batch, key, frozen), init_fn(key, batch, frozen))` over plain dicts of parameters.

    `frozen` may be left out where everything is on one device: it is then made of the arguments, which may be None
    where it never is.

    Args:
        model: the module.
        catalog: frozen item tables.
        full_codes_IL: int32 targets of generation, the tie-break digit last where there is one.
    """
    usual = None if catalog is None else make_frozen(catalog, full_codes_IL)

    def with_targets(batch: Mapping, frozen: Frozen) -> dict:
        return {**batch, "targets": look_up(jnp.asarray(frozen.full_codes_IL), batch["item"], SPECS.batch)}

    def loss_fn(params, batch, key, frozen: Frozen = usual):
        parts = model.apply(
            {"params": params},
            with_targets(batch, frozen),
            frozen.catalog,
            deterministic=False,
            rngs={"dropout": key},
            method=losses if isinstance(model, HMAT) else "losses",
        )
        weights = {name: getattr(model.config, name) for name in parts}
        total = sum(weights[name] * part for name, part in parts.items())
        return total, {f"loss/{name}": part for name, part in parts.items()}

    def init_fn(key, batch, frozen: Frozen = usual):
        batch = with_targets(batch, frozen)
        return model.init({"params": key}, batch, frozen.catalog, method="everything")["params"]

    return loss_fn, init_fn
