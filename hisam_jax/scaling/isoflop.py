"""The best size at each budget by a parabola through its cells (Hoffmann et al. 2022, arXiv 2203.15556, approach 2)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hisam_jax.scaling.law import interval

FEWEST_SIZES = 3


@dataclasses.dataclass(frozen=True)
class Bowl:
    """A parabola of the loss in log N at one budget.

    Attributes:
        flops: the budget.
        coefficients: of log N squared, log N and 1.
        n: the size of least loss, by the parabola.
        loss: there.
        inside: whether that lies among the sizes that were run and is a least.
        n_ci95: of `n`; None where no cells are left over to tell the noise.
    """

    flops: float
    coefficients: tuple[float, float, float]
    n: float
    loss: float
    inside: bool
    n_ci95: list[float] | None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {**dataclasses.asdict(self), "coefficients": list(self.coefficients)}


def fit_bowls(
    flops: Sequence[float], n: np.ndarray, loss: np.ndarray, resamples: int = 200, seed: int = 0
) -> tuple[list[Bowl], dict[str, Any]]:
    """A parabola for each budget of three sizes or more, and `N* = k C^p` through those that have their least inside.

    Intervals by normal noise of the parabolas' residuals, pooled over budgets; none where no parabola has a cell to
    spare.

    Args:
        flops: each cell's budget.
        n: its parameters.
        loss: its held-out loss, nats per item.
    """
    flops, log_n, loss = np.asarray(flops, float), np.log(np.asarray(n, float)), np.asarray(loss, float)
    budgets = [c for c in np.unique(flops) if len(np.unique(log_n[flops == c])) >= FEWEST_SIZES]
    curves = {c: np.polyfit(log_n[flops == c], loss[flops == c], 2) for c in budgets}
    residuals = [loss[flops == c] - np.polyval(curves[c], log_n[flops == c]) for c in budgets]
    spare = sum(len(part) - 3 for part in residuals)
    noise = np.sqrt(sum(np.sum(part**2) for part in residuals) / spare) if spare else np.nan
    rng = np.random.default_rng(seed)
    drawn = np.full((resamples, len(budgets)), np.nan)
    for k, c in enumerate(budgets if spare else ()):
        x = log_n[flops == c]
        for r in range(resamples):
            again = np.polyfit(x, np.polyval(curves[c], x) + rng.normal(0.0, noise, len(x)), 2)
            drawn[r, k] = _least(again, x)
    bowls = [_bowl(c, curves[c], log_n[flops == c], drawn[:, k]) for k, c in enumerate(budgets)]
    return bowls, _power(bowls, drawn)


def _least(curve: np.ndarray, x: np.ndarray) -> float:
    """Where a parabola is least, nan where that is not among `x`."""
    at = -curve[1] / (2 * curve[0]) if curve[0] > 0 else np.nan
    return at if x.min() <= at <= x.max() else np.nan


def _bowl(flops: float, curve: np.ndarray, x: np.ndarray, drawn: np.ndarray) -> Bowl:
    at, inside = _least(curve, x), True
    if not np.isfinite(at):
        at, inside = x[np.argmin(np.polyval(curve, x))], False
    ends = [math.exp(end) for end in interval(drawn)] if np.isfinite(drawn).any() else None
    coefficients = tuple(float(c) for c in curve)
    return Bowl(float(flops), coefficients, float(np.exp(at)), float(np.polyval(curve, at)), inside, ends)


def _power(bowls: Sequence[Bowl], drawn: np.ndarray) -> dict[str, Any]:
    """`k` and `p` of `N* = k C^p`; empty for fewer than two budgets."""
    inside = np.array([bowl.inside for bowl in bowls], bool)
    if inside.sum() < 2:
        return {}
    log_c = np.log([bowl.flops for bowl in bowls])[inside]
    p, log_k = np.polyfit(log_c, np.log([bowl.n for bowl in bowls])[inside], 1)
    samples = []
    for row in drawn[:, inside]:
        known = np.isfinite(row)
        samples.append(np.polyfit(log_c[known], row[known], 1)[0] if known.sum() > 1 else np.nan)
    ends = interval(samples) if np.isfinite(samples).any() else None
    return {"k": float(np.exp(log_k)), "p": {"value": float(p), "ci95": ends}, "budgets": int(inside.sum())}
