"""The best size at each budget by a parabola through its cells (Hoffmann et al. 2022, arXiv 2203.15556, approach 2)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hisam_jax.scaling.law import interval

FEWEST_SIZES = 3
OUTSIDE = 0.1  # share of resamples without a least among the sizes, past which a budget says nothing of the power


@dataclasses.dataclass(frozen=True)
class Bowl:
    """A parabola of the loss in log N at one budget.

    Attributes:
        flops: the budget.
        coefficients: of log N squared, log N and 1.
        n: the size of least loss, by the parabola.
        loss: there.
        inside: whether that lies among the sizes that were run and is a least.
        n_ci95: of `n`, the ends of the sizes standing for a least beyond them; None where no cells are left over to
            tell the noise.
        outside: share of the resamples whose least is not among the sizes.
    """

    flops: float
    coefficients: tuple[float, float, float]
    n: float
    loss: float
    inside: bool
    n_ci95: list[float] | None
    outside: float

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {**dataclasses.asdict(self), "coefficients": list(self.coefficients)}


def fit_bowls(
    flops: Sequence[float], n: np.ndarray, loss: np.ndarray, resamples: int = 200, seed: int = 0
) -> tuple[list[Bowl], dict[str, Any]]:
    """A parabola for each budget of three sizes or more, and `N* = k C^p` through those that have their least inside.

    Intervals by normal noise of the parabolas' residuals, pooled over budgets and its spread drawn too, as few cells
    tell it; none where no parabola has a cell to spare.

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
    drawn, beyond = np.full((resamples, len(budgets)), np.nan), np.zeros((resamples, len(budgets)), bool)
    for r in range(resamples if spare else 0):
        spread = noise * np.sqrt(spare / rng.chisquare(spare))
        for k, c in enumerate(budgets):
            x = log_n[flops == c]
            again = np.polyfit(x, np.polyval(curves[c], x) + rng.normal(0.0, spread, len(x)), 2)
            least = _least(again, x)
            beyond[r, k] = not np.isfinite(least)
            drawn[r, k] = _better_end(again, x) if beyond[r, k] else least
    bowls = [
        _bowl(c, curves[c], log_n[flops == c], drawn[:, k], float(beyond[:, k].mean())) for k, c in enumerate(budgets)
    ]
    return bowls, _power(bowls, drawn)


def _least(curve: np.ndarray, x: np.ndarray) -> float:
    """Where a parabola is least, nan where that is not among `x`."""
    at = -curve[1] / (2 * curve[0]) if curve[0] > 0 else np.nan
    return at if x.min() <= at <= x.max() else np.nan


def _better_end(curve: np.ndarray, x: np.ndarray) -> float:
    ends = np.array([x.min(), x.max()])
    return float(ends[np.argmin(np.polyval(curve, ends))])


def _bowl(flops: float, curve: np.ndarray, x: np.ndarray, drawn: np.ndarray, outside: float) -> Bowl:
    at, inside = _least(curve, x), True
    if not np.isfinite(at):
        at, inside = _better_end(curve, x), False
    ends = [math.exp(end) for end in interval(drawn)] if np.isfinite(drawn).any() else None
    coefficients = tuple(float(c) for c in curve)
    return Bowl(float(flops), coefficients, float(np.exp(at)), float(np.polyval(curve, at)), inside, ends, outside)


def _power(bowls: Sequence[Bowl], drawn: np.ndarray) -> dict[str, Any]:
    """`k` and `p` of `N* = k C^p`; empty for fewer than two budgets that can tell."""
    inside = np.array([bowl.inside and bowl.outside <= OUTSIDE for bowl in bowls], bool)
    if inside.sum() < 2:
        return {}
    log_c = np.log([bowl.flops for bowl in bowls])[inside]
    p, log_k = np.polyfit(log_c, np.log([bowl.n for bowl in bowls])[inside], 1)
    known = drawn[:, inside]
    ends = interval(np.polyfit(log_c, known.T, 1)[0]) if np.isfinite(known).all() and len(known) else None
    return {"k": float(np.exp(log_k)), "p": {"value": float(p), "ci95": ends}, "budgets": int(inside.sum())}
