"""What DST's codes tell of one another while it trains: the bound that is minimised and the fit of its `q` [ours].

Each batch holds two halves, drawn from two halves of the items that never mix; each half has a `q` of its own and is
judged by the other's. A `q` that knows its items by heart then says nothing of the others, while within one half it
would take every single item's code for information and drive the codes to noise.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hisam_jax.tokenizer import mutual_information, quantization
from hisam_jax.tokenizer.dst import Arrays, Forward
from hisam_jax.tokenizer.dst_config import SHARED, DSTConfig, Layout
from hisam_jax.tokenizer.quantization import Quantized

Clubs = dict[str, list[Any]]  # `a|b` -> the parameters of q(b | a) fitted to each half


def pairs_of(cfg: DSTConfig, layout: Layout) -> tuple[tuple[str, str], ...]:
    """Pairs of groups whose mutual information is bounded: shared with each specific, optionally specific ones."""
    specific = [name for name, sizes in layout.groups if name != SHARED and sizes]
    if len(layout.widths) < 2:
        return ()
    pairs = [(SHARED, m) for m in specific]
    if cfg.mi_specific_weight > 0:
        pairs += [(a, b) for i, a in enumerate(specific) for b in specific[i + 1 :]]
    return tuple(pairs)


def init_clubs(cfg: DSTConfig, layout: Layout, rng: np.random.Generator) -> Clubs:
    """Fresh parameters of every pair's two `q`."""
    sizes = dict(layout.groups)

    def fresh(group: str) -> Any:
        if cfg.mi_estimator == "categorical":
            return mutual_information.init_categorical(rng, cfg.width, sizes[group], cfg.mi_hidden)
        return mutual_information.init_conditional(rng, cfg.width, cfg.width, cfg.mi_hidden)

    return {f"{a}|{b}": [fresh(b), fresh(b)] for a, b in pairs_of(cfg, layout)}


def bounds(
    cfg: DSTConfig, layout: Layout, clubs: Clubs, passed: Forward, books: Mapping[str, Any], weight: Arrays
) -> Arrays:
    """vCLUB's bound in nats per pair, named `mi/a|b`: the mean over halves, each by the other's q, clamped at 0."""
    score = mutual_information.code_vclub
    if cfg.mi_estimator == "gaussian":
        score = functools.partial(mutual_information.vclub, bound=cfg.mi_log_variance)
    found = {}
    for a, b in pairs_of(cfg, layout):
        first, second = halves(cfg, a, b, passed, books, weight)
        club = clubs[f"{a}|{b}"]
        found[f"mi/{a}|{b}"] = jnp.maximum((score(club[0], *second) + score(club[1], *first)) / 2, 0.0)
    return found


def log_likelihood(cfg: DSTConfig, clubs: Clubs, samples: Mapping[tuple[str, str], Any]) -> jax.Array:
    """Mean log-likelihood of every q on its own half, in nats, summed over pairs; what `q` climbs."""
    score = mutual_information.code_log_likelihood
    if cfg.mi_estimator == "gaussian":
        score = functools.partial(mutual_information.log_likelihood, bound=cfg.mi_log_variance)
    every = [
        score(q, *half) for (a, b), both in samples.items() for q, half in zip(clubs[f"{a}|{b}"], both, strict=True)
    ]
    return sum(every) / 2


def samples_of(
    cfg: DSTConfig, layout: Layout, passed: Forward, books: Mapping[str, Any], weight: Arrays
) -> dict[tuple[str, str], Any]:
    """Detached halves of every pair."""
    found = {(a, b): halves(cfg, a, b, passed, books, weight) for a, b in pairs_of(cfg, layout)}
    return jax.lax.stop_gradient(found)


def halves(
    cfg: DSTConfig, a: str, b: str, passed: Forward, books: Mapping[str, Any], weight: Arrays
) -> tuple[Any, Any]:
    """(x, y, weight) of both halves of a batch: x is what group `a` says, y the codes or the latents of `b`."""
    both_B = weight[a] * weight[b]
    fixed = a == SHARED and not cfg.mi_shared_gradient
    x_BD = unit_spread(jax.lax.stop_gradient(passed.sums[a]) if fixed else passed.sums[a], both_B)
    if cfg.mi_estimator == "categorical":
        y = soft_codes(passed.quantized[b], books[b], both_B, cfg.mi_temperature)
    else:
        y = unit_spread(passed.sums[b], both_B)
    middle = len(both_B) // 2
    first, second = (
        jax.tree.map(lambda v, p=part: v[p], (x_BD, y, both_B)) for part in (slice(middle), slice(middle, None))
    )
    return first, second


def soft_codes(
    quantized: Quantized, books: Sequence[jax.Array], weight_B: jax.Array, temperature: float
) -> list[jax.Array]:
    """Share [B, K_l] of each code: a softmax of negative squared distances, in units of the mean one to the nearest."""
    shares = []
    for x_BD, vectors_KD in zip(quantized.residuals_LND, books, strict=True):
        distance_BK = quantization.squared_distances(x_BD, jax.lax.stop_gradient(vectors_KD))
        unit = quantization.masked_mean(jax.lax.stop_gradient(distance_BK.min(1)), weight_B) + 1e-6
        shares.append(jax.nn.softmax(-distance_BK / (temperature * unit)))
    return shares


def unit_spread(q_BD: jax.Array, weight_B: jax.Array) -> jax.Array:
    """Rows of weight 1 centred and scaled to variance 1 a column on average, the gradient of the scale included.

    Information does not depend on scale but a Gaussian `q` of bounded variance does: without this the cheapest way to
    lower its bound is to shrink what is quantised to a point, and what it tells of everything else with it.
    """
    count = jnp.maximum(jnp.sum(weight_B), 1)
    centred_BD = jnp.where(weight_B[:, None] > 0, q_BD - weight_B @ q_BD / count, 0.0)
    return centred_BD * jax.lax.rsqrt(jnp.sum(centred_BD**2) / (count * q_BD.shape[-1]) + 1e-6)
