"""The three losses: ranking at every position, next-item codes, next item among all training items."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from hisam_jax.models.catalog import Catalog
from hisam_jax.models.hmat import HMAT


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean under weights; 0 where no weight is left."""
    return (values * weights).sum() / jnp.maximum(weights.sum(), 1.0)


def before_item(x_BN: jax.Array) -> jax.Array:
    """Shifts along items so that position n holds what stood at n - 1 (position 0 repeats itself)."""
    return jnp.concatenate([x_BN[:, :1], x_BN[:, :-1]], axis=1)


def ranking_loss(model: HMAT, state_BNTD, batch) -> jax.Array:
    """Binary cross-entropy of `positive` where `rank_weight` is set [at every position: ours]."""
    loss_BN = optax.sigmoid_binary_cross_entropy(model.click_logits(state_BNTD), batch["positive"])
    return weighted_mean(loss_BN, batch["rank_weight"])


def generation_loss(model: HMAT, state_BNTD, batch) -> jax.Array:
    """Nats per item: code 0 from the previous item's last state, code l from the item's own token l - 1 [ours]."""
    codes_BNL = batch["targets"]
    first_BND = before_item(state_BNTD[:, :, -1])
    total_BN = 0.0
    for level in range(codes_BNL.shape[-1]):
        slot = model.reading_slot(level)
        state_BND = first_BND if slot < 0 else state_BNTD[:, :, slot]
        logits = model.code_logits(state_BND, level)
        total_BN += optax.softmax_cross_entropy_with_integer_labels(logits, codes_BNL[..., level])
    return weighted_mean(total_BN, batch["next_weight"])


def retrieval_loss(model: HMAT, state_BNTD, batch, catalog: Catalog, *, deterministic: bool) -> jax.Array:
    """Full-softmax cross-entropy over training items, from the previous item's last state [ours]."""
    user_BND = before_item(model.user_vectors(state_BNTD))
    vectors_ID = model.item_vectors(catalog, deterministic=deterministic)
    dtype = model.config.compute_dtype
    logits_BNI = jnp.einsum(
        "bnd,id->bni", user_BND.astype(dtype), vectors_ID.astype(dtype), preferred_element_type=jnp.float32
    )
    logits_BNI = jnp.where(catalog.trained_I, logits_BNI, -1e30)
    loss_BN = optax.softmax_cross_entropy_with_integer_labels(logits_BNI, batch["item"])
    return weighted_mean(loss_BN, batch["next_weight"])


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


def make_objective(model: HMAT, catalog: Catalog, full_codes_IL: jax.Array) -> tuple[Callable, Callable]:
    """`(loss_fn(params, batch, key), init_fn(key, batch))` for the trainer, over plain dicts of parameters.

    Args:
        model: the module.
        catalog: frozen item tables.
        full_codes_IL: int32 targets of generation, the tie-break digit last where there is one.
    """

    def with_targets(batch: Mapping) -> dict:
        return {**batch, "targets": jnp.take(full_codes_IL, batch["item"], axis=0)}

    def loss_fn(params, batch, key):
        parts = model.apply(
            {"params": params},
            with_targets(batch),
            catalog,
            deterministic=False,
            rngs={"dropout": key},
            method=losses,
        )
        weights = {name: getattr(model.config, name) for name in parts}
        total = sum(weights[name] * part for name, part in parts.items())
        return total, {f"loss/{name}": part for name, part in parts.items()}

    def init_fn(key, batch):
        return model.init({"params": key}, with_targets(batch), catalog, method="everything")["params"]

    return loss_fn, init_fn
