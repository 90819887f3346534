"""What a budget is best spent on, by the fitted law, and what that would give: `N*(C)`, `D*(C)`, `L(C)`.

Training an item costs `u N + v sqrt(N)` operations [ours]: products with weights grow with N, the softmax over items
and attention with the width, so with its square root at a given depth. Both are fitted to what the cells cost.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar, nnls

from hisam_jax.chips import CHIPS
from hisam_jax.errors import UserError
from hisam_jax.scaling.ceiling import Ceiling
from hisam_jax.scaling.law import Fit, Law, interval

MFU = 0.3  # share of a chip's peak that a training step uses, where nothing else is said
FAR = 10.0  # times the largest budget of the sweep, past which a prediction is a guess
_RANGE = 40.0  # of log N about the cells', in which the best is looked for


@dataclasses.dataclass(frozen=True)
class Target:
    """A budget to predict for.

    Attributes:
        flops: useful operations of training.
        said: as it was asked for.
    """

    flops: float
    said: str


def target_of_flops(flops: float) -> Target:
    """A budget in operations.

    Raises:
        UserError: none that can be.
    """
    if not (flops > 0 and math.isfinite(flops)):
        raise UserError(f"value {flops}", field="--flops", expected="a number above 0, such as 1e18")
    return Target(float(flops), f"{flops:.3g} FLOPs")


def target_of_chips(hours: float, device: str, mfu: float = MFU, ceiling: Ceiling | None = None) -> Target:
    """A budget in hours of one chip of a kind, of whose bfloat16 peak a share `mfu` is of use, at most the ceiling's.

    Raises:
        UserError: an unknown chip, hours that are none, a share that is none, a ceiling of another chip.
    """
    if device not in CHIPS:
        raise UserError(f"value {device!r}", field="--device", expected=" or ".join(CHIPS))
    for name, value, most in (("--chip-hours", hours, math.inf), ("--mfu", mfu, 1.0)):
        if not 0 < value <= most or not math.isfinite(value):
            expected = "above 0" + (", at most 1" if most == 1 else "")
            raise UserError(f"value {value}", field=name, expected=expected)
    if ceiling is not None and ceiling.device != device:
        raise UserError(f"value {device!r}", field="--device", expected=f"{ceiling.device}, whose step --compiled has")
    chip, unit, why = CHIPS[device], "hour" if hours == 1 else "hours", ""
    if ceiling is not None and ceiling.share < mfu:
        mfu, why = ceiling.share, f", the most by {ceiling.said}"
    used = f"{chip.flops / 1e12:,.0f} TFLOP/s peak, {100 * mfu:.3g}% of it used{why}"
    return Target(hours * 3600 * chip.flops * mfu, f"{hours:,g} {unit} of one {chip.name} ({used})")


@dataclasses.dataclass(frozen=True)
class CostOfItem:
    """Useful operations of training on one item, by parameters: `u N + v sqrt(N)`.

    Attributes:
        worst: the largest relative error on the cells.
    """

    u: float
    v: float
    worst: float

    def __call__(self, n: Any) -> Any:
        return self.u * np.asarray(n, float) + self.v * np.sqrt(n)


def fit_cost(n: np.ndarray, flops_per_item: np.ndarray) -> CostOfItem:
    """Least squares of relative errors, neither part below 0."""
    columns = np.stack([n / flops_per_item, np.sqrt(n) / flops_per_item], axis=1)
    (u, v), _ = nnls(columns, np.ones(len(n)))
    return CostOfItem(float(u), float(v), float(np.abs(columns @ (u, v) - 1).max()))


@dataclasses.dataclass(frozen=True)
class Best:
    """What a budget is best spent on."""

    n: float
    d: float
    loss: float


def best_of(law: Law, cost: CostOfItem, flops: float, around: float) -> Best:
    """The least loss over all N with `D = flops / cost(N)`; `around` is an N to look about."""

    def loss(log_n: float) -> float:
        n = math.exp(log_n)
        return float(law(n, flops / cost(n)))

    middle = math.log(around)
    found = minimize_scalar(loss, bounds=(middle - _RANGE, middle + _RANGE), method="bounded", options={"xatol": 1e-4})
    n = math.exp(found.x)
    return Best(n, float(flops / cost(n)), float(found.fun))


def predict(fit: Fit, cost: CostOfItem, flops: float, around: float) -> dict[str, Any]:
    """The best of a budget, each figure with its interval over the fit's resamples."""
    best = best_of(fit.law, cost, flops, around)
    samples = [best_of(law, cost, flops, around) for law in fit.samples]
    return {
        name: {"value": getattr(best, name), "ci95": interval([getattr(one, name) for one in samples])}
        for name in ("n", "d", "loss")
    }


def is_far(flops: float, budgets: Sequence[float]) -> bool:
    """Whether a budget lies so far from those that were run that a law may not hold there."""
    return not min(budgets) / FAR <= flops <= FAR * max(budgets)


def warnings_of(target: Target, budgets: Sequence[float], fit: Fit) -> list[str]:
    """Why a prediction is not to be relied on; empty where nothing speaks against it."""
    found, far = [], is_far(target.flops, budgets)
    if far and target.flops > max(budgets):
        found.append(
            f"{target.flops / max(budgets):,.0f} times the largest budget that was run: "
            "an extrapolation far past the data, whose interval does not cover that the law may not hold there"
        )
    elif far:
        found.append(f"{min(budgets) / target.flops:,.0f} times below the smallest budget that was run")
    return found + ([f"the fit is not identified: {'; '.join(fit.doubts)}"] if fit.doubts else [])


def exponent(fit: Fit, cost: CostOfItem, budgets: Sequence[float], around: float) -> dict[str, Any]:
    """The slope of log N* and of log D* against log C between the least and the largest budget."""
    low, high = min(budgets), max(budgets)
    if not high > low:
        return {}
    span = math.log(high / low)

    def slopes(law: Law) -> tuple[float, float]:
        first, last = (best_of(law, cost, flops, around) for flops in (low, high))
        return math.log(last.n / first.n) / span, math.log(last.d / first.d) / span

    value, samples = slopes(fit.law), [slopes(law) for law in fit.samples]
    return {
        name: {"value": value[k], "ci95": interval([one[k] for one in samples])} for k, name in enumerate(("n", "d"))
    }
