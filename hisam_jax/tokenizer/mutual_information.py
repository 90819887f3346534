"""How much two codes tell of one another: bounds to minimise (vCLUB) and an independent estimate to watch.

vCLUB: Cheng et al. 2020, arXiv 2006.12013; the estimators and their networks are ours (the paper states only that
mutual information is minimised). `q(y | x)` is either a Gaussian of latents, whose mean and tanh-bounded log-variance
an MLP gives, or one categorical distribution of codes a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, jax.Array | np.ndarray]


def init_conditional(rng: np.random.Generator, width_x: int, width_y: int, hidden: int) -> Params:
    """Parameters of q(y | x)."""
    shapes = {"input": (width_x, hidden), "mean": (hidden, width_y), "log_variance": (hidden, width_y)}
    weights = {f"{name}_w": initial(rng, shape) for name, shape in shapes.items()}
    return weights | {f"{name}_b": initial(rng, shape[1:]) for name, shape in shapes.items()}


def initial(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """float32: a matrix of variance 1 / rows, or a bias of zeros."""
    return (rng.normal(size=shape) * shape[0] ** -0.5 if len(shape) == 2 else np.zeros(shape)).astype(np.float32)


def conditional(params: Params, x_BD: jax.Array, bound: float) -> tuple[jax.Array, jax.Array]:
    """Mean and log-variance [B, E] of q(y | x), the latter within +-bound."""
    hidden_BH = jax.nn.relu(x_BD @ params["input_w"] + params["input_b"])
    log_variance_BE = jnp.tanh(hidden_BH @ params["log_variance_w"] + params["log_variance_b"])
    return hidden_BH @ params["mean_w"] + params["mean_b"], bound * log_variance_BE


def log_likelihood(
    params: Params, x_BD: jax.Array, y_BE: jax.Array, weight_B: jax.Array, bound: float = 1.0
) -> jax.Array:
    """Mean log q(y | x) in nats, without its constant, over rows of weight 1."""
    mean_BE, log_variance_BE = conditional(params, x_BD, bound)
    row_B = -0.5 * jnp.sum((y_BE - mean_BE) ** 2 * jnp.exp(-log_variance_BE) + log_variance_BE, -1)
    return jnp.sum(row_B * weight_B) / jnp.maximum(jnp.sum(weight_B), 1)


def vclub(params: Params, x_BD: jax.Array, y_BE: jax.Array, weight_B: jax.Array, bound: float = 1.0) -> jax.Array:
    """The bound E_p(x,y)[log q(y|x)] - E_p(x)p(y)[log q(y|x)] in nats; 0 with fewer than two rows; may be negative.

    The second expectation runs over all pairs of the batch, by moments: mean_j (y_j - mu)^2 = (ybar - mu)^2 + var y.
    """
    count = jnp.maximum(jnp.sum(weight_B), 1)
    mean_BE, log_variance_BE = conditional(params, x_BD, bound)
    average_E = weight_B @ y_BE / count
    variance_E = weight_B @ (y_BE - average_E) ** 2 / count
    own_BE = (y_BE - mean_BE) ** 2
    others_BE = (average_E - mean_BE) ** 2 + variance_E
    row_B = 0.5 * jnp.sum((others_BE - own_BE) * jnp.exp(-log_variance_BE), -1)
    return jnp.sum(row_B * weight_B) / count


def init_categorical(rng: np.random.Generator, width_x: int, sizes: Sequence[int], hidden: int) -> Params:
    """Parameters of q(code | x) of each level: one hidden layer for all, a head of `sizes[l]` logits each."""
    weights = {"input_w": initial(rng, (width_x, hidden)), "input_b": initial(rng, (hidden,))}
    for level, size in enumerate(sizes):
        weights |= {f"head{level}_w": initial(rng, (hidden, size)), f"head{level}_b": initial(rng, (size,))}
    return weights


def log_probabilities(params: Params, x_BD: jax.Array, levels: int) -> list[jax.Array]:
    """log q(code | x) of each level, [B, K_l]."""
    hidden_BH = jax.nn.relu(x_BD @ params["input_w"] + params["input_b"])
    heads = [(params[f"head{level}_w"], params[f"head{level}_b"]) for level in range(levels)]
    return [jax.nn.log_softmax(hidden_BH @ weight_HK + bias_K) for weight_HK, bias_K in heads]


def code_log_likelihood(params: Params, x_BD: jax.Array, shares: Sequence[jax.Array], weight_B: jax.Array) -> jax.Array:
    """Mean over rows of weight 1, sum over levels, of E log q(code | x) in nats; soft codes `shares[l]` [B, K_l]."""
    row_B = jnp.zeros(len(x_BD))
    for share_BK, log_q_BK in zip(shares, log_probabilities(params, x_BD, len(shares)), strict=True):
        row_B = row_B + jnp.sum(share_BK * log_q_BK, -1)
    return jnp.sum(row_B * weight_B) / jnp.maximum(jnp.sum(weight_B), 1)


def code_vclub(params: Params, x_BD: jax.Array, shares: Sequence[jax.Array], weight_B: jax.Array) -> jax.Array:
    """The bound of soft codes in nats, summed over levels; its second expectation runs over all pairs of the batch.

    It sees any dependence of a code on x, where a Gaussian sees that of a latent's mean and variance alone. With the
    true q it is the information plus KL(p(x) p(code) || p(x, code)): far above the information where q is sure.
    """
    count, bound = jnp.maximum(jnp.sum(weight_B), 1), jnp.zeros(())
    for share_BK, log_q_BK in zip(shares, log_probabilities(params, x_BD, len(shares)), strict=True):
        average_K = weight_B @ log_q_BK / count
        bound = bound + jnp.sum(jnp.sum(share_BK * (log_q_BK - average_K), -1) * weight_B) / count
    return bound


def excess_information(a_N: np.ndarray, b_N: np.ndarray, rng: np.random.Generator, permutations: int = 3) -> float:
    """Plug-in mutual information of two codes in nats, less its mean under permutation: near 0 when independent.

    Shares nothing with vCLUB's `q`, which can go stale and fool its reader.
    """
    if len(a_N) < 2:
        return 0.0
    chance = [plug_in_information(a_N, rng.permutation(b_N)) for _ in range(permutations)]
    return plug_in_information(a_N, b_N) - float(np.mean(chance))


def plug_in_information(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Mutual information of the empirical distribution of two non-negative integer codes, in nats."""
    joint = np.bincount(a_N.astype(np.int64) * (int(b_N.max()) + 1) + b_N)
    return entropy(np.bincount(a_N)) + entropy(np.bincount(b_N)) - entropy(joint)


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the distribution that `counts` are in proportion to."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())
