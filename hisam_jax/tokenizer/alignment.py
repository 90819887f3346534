"""Cross-modal geometric alignment: losses over views of the same items on one unit hypersphere.

All losses take `views`, modality -> z_BD (unit rows), and `present`, modality -> bool [B]; they return a scalar and
are 0 where too few items have the views they need. Volumes: GRAM, arXiv 2412.11959; radial kernel: VT-FSL, arXiv
2509.25033; that DST uses them, and the choice of the first modality as the anchor of a tuple, are ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

Views = Mapping[str, jax.Array]
NORM_EPS = 1e-12
MASKED = -1e9


def normalise(x_BD: jax.Array) -> jax.Array:
    """Rows scaled to unit length; zero rows stay zero, with finite gradients."""
    return x_BD * jax.lax.rsqrt(jnp.sum(x_BD * x_BD, -1, keepdims=True) + NORM_EPS)


def consensus(views: Views, present: Views) -> jax.Array:
    """h_BD: the normalised mean of the views that each item has; zero for an item with none."""
    total = sum(jnp.where(present[m][:, None], z, 0.0) for m, z in views.items())
    return normalise(total)


def two_way_cross_entropy(logits_BB: jax.Array, valid_B: jax.Array, smoothing: float) -> jax.Array:
    """Mean of row-wise and column-wise cross-entropy with the diagonal as target, over valid items only.

    The smoothing mass is spread over valid items. 0 with fewer than two of them.
    """
    count = jnp.sum(valid_B)
    ways = [_diagonal_cross_entropy(x_BB, valid_B, count, smoothing) for x_BB in (logits_BB, logits_BB.T)]
    return jnp.where(count > 1, (ways[0] + ways[1]) / 2, 0.0)


def _diagonal_cross_entropy(logits_BB: jax.Array, valid_B: jax.Array, count: jax.Array, smoothing: float) -> jax.Array:
    log_p_BB = jax.nn.log_softmax(jnp.where(valid_B[None, :], logits_BB, MASKED), axis=1)
    mean_B = jnp.sum(jnp.where(valid_B[None, :], log_p_BB, 0.0), axis=1) / jnp.maximum(count, 1)
    row_B = -(1 - smoothing) * jnp.diagonal(log_p_BB) - smoothing * mean_B
    return jnp.sum(jnp.where(valid_B, row_B, 0.0)) / jnp.maximum(count, 1)


def infonce(views: Views, present: Views, temperature: jax.Array | float) -> jax.Array:
    """Symmetric in-batch InfoNCE, averaged over modality pairs; each pair uses the items that have both."""
    pairs = list(itertools.combinations(views, 2))
    losses = [
        two_way_cross_entropy(views[a] @ views[b].T / temperature, present[a] & present[b], 0.0) for a, b in pairs
    ]
    return sum(losses) / len(pairs) if pairs else jnp.zeros(())


def squared_volume(gram_MM: jax.Array) -> jax.Array:
    """Squared volume det G [...] of the body spanned by M vectors, from Gram matrices [..., M, M]; never negative."""
    return jnp.maximum(jnp.linalg.det(gram_MM), 0.0)


def kernel(inner: jax.Array, kind: str, width: float = 1.0) -> jax.Array:
    """Gram entries from inner products of unit vectors: `linear`, or `rbf` = exp(-||x - y||^2 / (2 width^2))."""
    return inner if kind == "linear" else jnp.exp((inner - 1.0) / width**2)  # ||x - y||^2 = 2 - 2 <x, y>


def tuple_volumes(views: Views, kind: str, width: float = 1.0, eps: float = 1e-6) -> jax.Array:
    """Volumes [B, B]: entry (i, j) of the tuple (anchor view of i, all other views of j). eps sits under the root."""
    stack_MBD = jnp.stack(list(views.values()))
    anchor_BD, others_OBD = stack_MBD[0], stack_MBD[1:]
    own_B = kernel(jnp.sum(anchor_BD**2, -1), kind, width)
    cross_BBO = kernel(jnp.einsum("id,ojd->ijo", anchor_BD, others_OBD), kind, width)
    inner_BOO = kernel(jnp.einsum("ojd,pjd->jop", others_OBD, others_OBD), kind, width)
    if len(others_OBD) == 1:  # the determinant written out: two modalities are the common case
        return jnp.sqrt(jnp.maximum(own_B[:, None] * inner_BOO[:, 0, 0] - cross_BBO[..., 0] ** 2, 0.0) + eps)
    size = len(anchor_BD)
    corner_BB1 = jnp.broadcast_to(own_B[:, None, None], (size, size, 1))
    top = jnp.concatenate([corner_BB1, cross_BBO], -1)[..., None, :]
    rest = jnp.broadcast_to(inner_BOO[None], (size, *inner_BOO.shape))
    gram = jnp.concatenate([top, jnp.concatenate([cross_BBO[..., None], rest], axis=-1)], axis=-2)
    return jnp.sqrt(squared_volume(gram) + eps)


def volume_loss(
    views: Views, present: Views, temperature: float, kind: str, smoothing: float = 0.1, width: float = 1.0
) -> jax.Array:
    """Two-way cross-entropy on -Vol / temperature over in-batch tuples; only items with every view take part."""
    if len(views) < 2:
        return jnp.zeros(())
    valid_B = jnp.stack(list(present.values())).all(0)
    return two_way_cross_entropy(-tuple_volumes(views, kind, width) / temperature, valid_B, smoothing)


def alignment_loss(
    name: str, views: Views, present: Views, *, temperature: jax.Array | float, smoothing: float, width: float
) -> jax.Array:
    """The loss called `name`: none, infonce, volume or rbf_volume."""
    if name == "none" or len(views) < 2:
        return jnp.zeros(())
    if name == "infonce":
        return infonce(views, present, temperature)
    kind = {"volume": "linear", "rbf_volume": "rbf"}[name]
    return volume_loss(views, present, temperature, kind, smoothing, width)


def uniformity(x_BD: jax.Array, valid_B: jax.Array) -> jax.Array:
    """log E exp(-2 ||x - y||^2) over pairs of different valid rows (Wang and Isola 2020); 0 with fewer than two."""
    pair_BB = valid_B[:, None] & valid_B[None, :] & ~jnp.eye(len(x_BD), dtype=bool)
    inner_BB = jnp.where(pair_BB, x_BD @ x_BD.T, 0.0)
    mean = jnp.sum(jnp.where(pair_BB, jnp.exp(4.0 * (inner_BB - 1.0)), 0.0)) / jnp.maximum(jnp.sum(pair_BB), 1)
    return jnp.where(jnp.sum(pair_BB) > 0, jnp.log(jnp.where(mean > 0, mean, 1.0)), 0.0)
