"""`L(N, D) = E + A / N^a + B / D^b` fitted to the losses of a sweep (approach 3 of Hoffmann et al. 2022, 2203.15556).

Huber's loss of residuals of log L, L-BFGS from many starts. Intervals by a parametric bootstrap [ours]: normal noise of
the residuals' spread at the sweep's own N and D, as these were chosen, not drawn, and as a fit that passes through some
of its cells leaves residuals too small to draw from. The spread is itself drawn, as few cells tell it badly; even
so the intervals of single parameters hold a planted one somewhat less often than 95 % of the time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from hisam_jax.errors import UserError

DELTA = 1e-3  # where Huber's loss of a log residual turns from a square into a line
FEWEST_CELLS = 7  # five parameters and something to judge them by
STARTS, AGAIN = 24, 3  # L-BFGS runs of a fit, and of a resample beside the one from the fit itself
EXPONENT = (1e-3, 3.0)
NAMES = ("E", "A", "B", "a", "b")
_GRID = np.meshgrid((0.3, 0.6, 0.9), (-4.0, -2.0, -0.7), (0.1, 0.4, 1.0), (-4.0, -2.0, -0.7), (0.1, 0.4, 1.0))


@dataclasses.dataclass(frozen=True)
class Law:
    """The five numbers: losses in nats per item, N in parameters, D in items."""

    E: float
    A: float
    B: float
    a: float
    b: float

    def __call__(self, n: Any, d: Any) -> Any:
        """The loss of a model of `n` parameters after `d` items."""
        return self.E + self.A / np.asarray(n, float) ** self.a + self.B / np.asarray(d, float) ** self.b


@dataclasses.dataclass(frozen=True)
class Fit:
    """A law and how well it is known.

    Attributes:
        law: the best one.
        samples: laws of the resamples.
        cells: that it was fitted to.
        rms: root of the mean square residual of log L.
        doubts: why the parameters are not identified by these cells; empty where they are.
    """

    law: Law
    samples: tuple[Law, ...]
    cells: int
    rms: float
    doubts: tuple[str, ...]

    def interval(self, name: str) -> list[float]:
        """95 % of a parameter."""
        return interval([getattr(law, name) for law in self.samples])

    def record(self) -> dict[str, Any]:
        """As JSON."""
        parameters = {
            name: {"value": float(getattr(self.law, name)), "ci95": self.interval(name)} for name in NAMES
        }  # fmt: skip
        return {**parameters, "cells": self.cells, "rms": self.rms, "identified": not self.doubts,
                "doubts": list(self.doubts)}  # fmt: skip


def interval(values: Sequence[float]) -> list[float]:
    """95 % of the values that are finite."""
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    return [float(x) for x in np.quantile(known, (0.025, 0.975))] if len(known) else [float("nan")] * 2


def fit_law(n: np.ndarray, d: np.ndarray, loss: np.ndarray, resamples: int = 200, seed: int = 0) -> Fit:
    """The law of cells of `n` parameters that lost `loss` nats an item after `d` items.

    Raises:
        UserError: too few cells for five parameters.
    """
    n, d, loss = (np.asarray(x, float) for x in (n, d, loss))
    if len(loss) < FEWEST_CELLS:
        raise UserError(
            f"{len(loss)} finished cells", field="parts",
            expected=f"{FEWEST_CELLS} at least for a law of five parameters",
            hint="run more of the sweep, or add sizes and budgets",
        )  # fmt: skip
    problem = _Problem(np.log(n), np.log(d), np.log(loss))
    theta = problem.solve(problem.starts(STARTS))
    fitted, residual = problem.predict(theta), problem.log_loss - problem.predict(theta)
    free = max(len(loss) - len(NAMES), 1)
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(resamples):
        spread = np.sqrt(np.sum(residual**2) / rng.chisquare(free))
        again = dataclasses.replace(problem, log_loss=fitted + rng.normal(0.0, spread, len(loss)))
        near = theta + rng.normal(size=(AGAIN, len(NAMES))) * (0.3, 0.5, 0.1, 0.5, 0.1)
        samples.append(problem.law(again.solve(np.vstack([theta, near]))))
    found = problem.law(theta)
    doubts = _doubts(n, d, loss, found, samples)
    return Fit(found, tuple(samples), len(loss), float(np.sqrt(np.mean(residual**2))), tuple(doubts))


@dataclasses.dataclass(frozen=True)
class _Problem:
    """In logs and about their means, where the parameters are least entangled: theta is e, A', a, B', b."""

    log_n: np.ndarray
    log_d: np.ndarray
    log_loss: np.ndarray

    def parts(self, theta: np.ndarray) -> np.ndarray:
        """Logs of E, A / N^a and B / D^b, [..., 3, cells]."""
        e, a0, a, b0, b = (theta[..., k, None] for k in range(5))
        by_n, by_d = a0 - a * (self.log_n - self.log_n.mean()), b0 - b * (self.log_d - self.log_d.mean())
        return np.stack([e + np.zeros_like(by_n), by_n, by_d], axis=-2)

    def predict(self, theta: np.ndarray) -> np.ndarray:
        """log L of each cell."""
        return logsumexp(self.parts(theta), axis=-2)

    def objective(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Huber's loss in units of DELTA squared, and its gradient."""
        parts = self.parts(theta)
        top = parts.max(0)
        shares = np.exp(parts - top)
        total = shares.sum(0)
        residual = (top + np.log(total) - self.log_loss) / DELTA
        slope = np.clip(residual, -1.0, 1.0)
        by_n, by_d = self.log_n - self.log_n.mean(), self.log_d - self.log_d.mean()
        e, n, d = slope * shares / total / DELTA
        gradient = np.array([e.sum(), n.sum(), -(n * by_n).sum(), d.sum(), -(d * by_d).sum()])
        return float((np.abs(residual) * np.abs(slope) - slope**2 / 2).sum()), gradient

    def starts(self, count: int) -> np.ndarray:
        """The best of a grid of starts, [count, 5]."""
        e, a0, a, b0, b = (values.ravel() for values in _GRID)
        least, mean = self.log_loss.min(), self.log_loss.mean()
        theta = np.stack([least + np.log(e), mean + a0, a, mean + b0, b], axis=-1)
        error = np.abs(self.predict(theta) - self.log_loss).sum(-1)
        return theta[np.argsort(error, kind="stable")[:count]]

    def solve(self, starts: np.ndarray) -> np.ndarray:
        """The best end of L-BFGS from these starts."""
        bounds = [(None, None), (None, None), EXPONENT, (None, None), EXPONENT]
        ends = [
            minimize(self.objective, np.clip(start, [-np.inf, -np.inf, EXPONENT[0], -np.inf, EXPONENT[0]], np.inf),
                     jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500, "ftol": 1e-10})
            for start in starts
        ]  # fmt: skip
        return min(ends, key=lambda end: end.fun).x

    def law(self, theta: np.ndarray) -> Law:
        e, a0, a, b0, b = theta
        return Law(*np.exp([e, a0 + a * self.log_n.mean(), b0 + b * self.log_d.mean()]), a, b)


def _doubts(n: np.ndarray, d: np.ndarray, loss: np.ndarray, law: Law, samples: Sequence[Law]) -> list[str]:
    """Why the parameters are not identified by these cells, in words."""
    doubts = []
    for name, values in (("N", n), ("D", d)):
        if len(np.unique(np.round(np.log(values), 1))) < 3:
            doubts.append(f"fewer than three values of {name}")
        elif values.max() < 4 * values.min():
            doubts.append(f"{name} ranges over less than a factor of 4")
    for name in ("a", "b"):
        low, high = interval([getattr(sample, name) for sample in samples])
        if min(low, getattr(law, name)) <= 2 * EXPONENT[0] or max(high, getattr(law, name)) >= 0.99 * EXPONENT[1]:
            doubts.append(f"the interval of {name} reaches a bound of the fit")
        elif high > 3 * low:
            doubts.append(f"{name} is known only to lie between {low:.2f} and {high:.2f}")
    low, high = interval([sample.E for sample in samples])
    if low < 0.1 * loss.min() or high - low > 0.25 * loss.min():
        doubts.append(f"E is known only to lie between {low:.2f} and {high:.2f} nats")
    return doubts


def law_of(record: Mapping[str, Any]) -> Law:
    """The law of a record."""
    return Law(**{name: record[name]["value"] for name in NAMES})
