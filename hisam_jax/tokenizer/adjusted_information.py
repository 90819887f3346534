"""Adjusted mutual information of two labellings, fast enough for joint codes and honest where it cannot tell.

Adjustment for chance: Vinh, Epps and Bailey 2010. Normalised by the smaller entropy: a perfect fine code of a coarse
attribute scores 1, which the usual mean of the entropies calls .76.
"""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln

from hisam_jax.tokenizer.mutual_information import entropy

PERMUTATIONS = 5
LEAST_HEADROOM = 0.05  # below it nearly every value is alone and chance alone explains the attribute


def adjusted_information(a_N: np.ndarray, b_N: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """How much two labellings tell of each other, over the items where both are >= 0.

    Returns:
        `value`: (I - E I) / (H - E I), H the smaller entropy: 0 for independent labels, 1 where one tells the other;
        `permuted`, `spread`: mean and deviation of the same after permutations, what nothing at all looks like;
        `headroom`: 1 - E I / H, how much of H chance leaves to be told. Below `LEAST_HEADROOM` the value means little;
        without any, or with a constant label, it is 0.
    """
    both_N = (a_N >= 0) & (b_N >= 0)
    a_N, b_N = (np.unique(x_N[both_N], return_inverse=True)[1] for x_N in (a_N, b_N))
    count_A, count_B = np.bincount(a_N), np.bincount(b_N)
    if min(len(count_A), len(count_B)) < 2:
        return {"value": 0.0, "permuted": 0.0, "spread": 0.0, "headroom": 0.0}
    entropies = entropy(count_A), entropy(count_B)
    chance, least = expected_information(count_A, count_B), min(entropies)
    headroom = 1 - chance / least
    if headroom < 1e-9:
        return {"value": 0.0, "permuted": 0.0, "spread": 0.0, "headroom": 0.0}

    def adjusted(other_N: np.ndarray) -> float:
        return float((sum(entropies) - _joint_entropy(a_N, other_N) - chance) / (least - chance))

    shuffled = [adjusted(rng.permutation(b_N)) for _ in range(PERMUTATIONS)]
    moments = {"permuted": float(np.mean(shuffled)), "spread": float(np.std(shuffled))}
    return {"value": adjusted(b_N), **moments, "headroom": float(headroom)}


def expected_information(count_A: np.ndarray, count_B: np.ndarray) -> float:
    """Mean mutual information in nats of two random labellings with these counts (hypergeometric model).

    It depends on the counts alone, so classes of equal size are summed once: codes have few sizes even where they are
    many.
    """
    total = int(count_A.sum())
    size_A, many_A = np.unique(count_A[count_A > 0], return_counts=True)
    size_B, many_B = np.unique(count_B[count_B > 0], return_counts=True)
    log_factorial = gammaln(np.arange(total + 1) + 1.0)
    return float(
        sum(
            many * (many_B @ _expected_terms(int(size), size_B, total, log_factorial))
            for size, many in zip(size_A, many_A, strict=True)
        )
    )


def _expected_terms(a: int, size_B: np.ndarray, total: int, log_factorial: np.ndarray) -> np.ndarray:
    """sum_n P(n) n/N log(N n / (a b)) for one class of size `a` and each class of size b, [B]; n items are in both."""
    b_B1 = size_B[:, None].astype(np.int64)
    n_1n = np.arange(1, min(a, int(size_B.max())) + 1)[None, :]
    possible = (n_1n <= b_B1) & (n_1n >= a + b_B1 - total)
    n_Bn = np.where(possible, n_1n, np.minimum(a, b_B1))
    log_p_Bn = log_factorial[a] + log_factorial[b_B1] + log_factorial[total - a] + log_factorial[total - b_B1]
    log_p_Bn = log_p_Bn - log_factorial[total] - log_factorial[n_Bn] - log_factorial[a - n_Bn]
    log_p_Bn = log_p_Bn - log_factorial[b_B1 - n_Bn] - log_factorial[total - a - b_B1 + n_Bn]
    term_Bn = n_Bn / total * np.log(total * n_Bn / (a * b_B1)) * np.exp(log_p_Bn)
    return np.where(possible, term_Bn, 0.0).sum(1)


def _joint_entropy(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Entropy in nats of the pairs; sorted rather than tabled, as joint codes have too many pairs for a table."""
    return entropy(np.unique(a_N.astype(np.int64) * (int(b_N.max()) + 1) + b_N, return_counts=True)[1])
