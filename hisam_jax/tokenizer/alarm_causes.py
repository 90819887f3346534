"""Likely causes of a tokenizer that goes wrong, read from its settings and from what its metrics have been.

Only settings that the tokenizer has are named: k-means has no learning rate to lower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLLAPSED = 1e-4  # spread that is a point, on the unit scale of latents
SHRUNK = 0.01  # or this share of the greatest that it was
DRAWN = 0.2  # of the spread or the commitment that was: latents have drawn together
NOTHING = 1e-8  # reconstruction error of features that are all 0 once standardised
STEEP = 100.0  # norm of gradients that no step of a sound run has
HEAVY = 1e-3  # learning rate times weight decay that halves weights within 700 steps
FAST = 0.02  # learning rate that these networks cannot take
SWAMPS = 10  # times another weighted loss
CROWDED = 4  # training items for each code, below which codes cannot all be learnt
SAME_FEATURES = "likely cause: the features of all items are the same"
OUTLIERS = "likely cause: outliers in the features"


class Evidence:
    """The settings, and of every metric the first value, the greatest and the last."""

    def __init__(self, settings: Mapping[str, Any]):
        self.settings, self.rows = settings, 0
        self.first: dict[str, float] = {}
        self.greatest: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def add(self, row: Mapping[str, float]) -> None:
        """Takes in one row of metrics."""
        self.rows += 1
        self.last = dict(row)
        for name, value in row.items():
            self.first.setdefault(name, value)
            self.greatest[name] = max(value, self.greatest.get(name, value))

    def points(self) -> dict[str, float]:
        """Group -> the spread it should at least have, of the groups whose latents are a point."""
        found = {}
        for name, value in self.last.items():
            least = max(COLLAPSED, SHRUNK * self.greatest[name])
            if name.startswith("spread/") and value < least:
                found[name.removeprefix("spread/")] = least
        return found

    def same_features(self) -> bool:
        """Whether there was nothing to rebuild from the first step on."""
        return "loss" in self.first and self.first.get("reconstruction", 1.0) < NOTHING

    def why_not_finite(self) -> str:
        """Why training broke off."""
        rate, norm = self.settings.get("learning_rate"), self.greatest.get("gradient_norm", 0.0)
        if rate is None:
            return OUTLIERS
        if norm > STEEP:
            return f"likely cause: gradients had grown to {norm:.3g}; lower learning_rate ({rate})"
        return f"likely cause: learning_rate ({rate}) too high, or outliers in the features"

    def why_a_point(self, group: str) -> str:
        """Why the latents of a group are all the same."""
        begun = {name.partition("/")[2]: v for name, v in self.first.items() if name.startswith("spread/")}
        if self.same_features() or max(begun.values(), default=1.0) < COLLAPSED:
            return SAME_FEATURES
        if begun.get(group, 1.0) < COLLAPSED:
            return f"likely cause: the features that {group} stands for are the same in all items"
        return self.why_unstable() or self._why_swamped()

    def why_unstable(self) -> str | None:
        """What of the optimiser's settings no network can take, if anything."""
        rate, decay = self.settings.get("learning_rate"), self.settings.get("weight_decay")
        norm = self.greatest.get("gradient_norm", 0.0)
        if rate is None:
            return None
        if norm > STEEP or rate > FAST:
            return f"likely cause: learning_rate ({rate}) too high, with gradients of up to {norm:.3g}"
        if decay is not None and rate * decay > HEAVY:
            return f"likely cause: weight_decay ({decay}) takes the weights to 0 at a learning_rate of {rate}"
        return None

    def why_not_rebuilt(self) -> str:
        """Why the reconstruction error does not fall."""
        weight, rate = (self.settings.get(name) for name in ("reconstruction_weight", "learning_rate"))
        if weight == 0:
            return "likely cause: reconstruction_weight is 0"
        if points := self.points():
            return self.why_a_point(next(iter(points)))
        if weight is None or rate is None:
            return self.why_unstable() or OUTLIERS
        tuning = f"likely cause: reconstruction_weight ({weight}) too low or learning_rate ({rate}) unfit"
        return self.why_unstable() or tuning

    def why_unused(self, level: str, size: float, items: int) -> str:
        """Why codes of a level of `size` codes go unused, `items` having one."""
        group = level.partition("/")[0]
        drawn = any(self._fallen(name) for name in (f"spread/{group}", "commitment"))
        if self.same_features() or group in self.points() or drawn:
            return self.why_a_point(group)
        if items < CROWDED * size:
            return f"likely cause: too few items, {items} for {size:.0f} codes; make the level smaller"
        if self.settings.get("dead_threshold") == 0:
            return "likely cause: unused codes are not re-seeded (dead_threshold is 0)"
        if self.settings.get("codebooks") == "gradient":
            return "likely cause: codes learnt by gradient lag behind; codebooks = 'ema' follows them"
        return "likely cause: many items alike in this level; a smaller level tells them apart as well"

    def why_stale(self) -> str:
        """Why a bound of information lies below what there is."""
        steps, rate = self.settings.get("mi_steps"), self.settings.get("mi_learning_rate")
        mend = "" if steps is None or rate is None else f"; raise mi_steps ({steps}) or mi_learning_rate ({rate})"
        return f"likely cause: vCLUB's q is stale{mend}"

    def _fallen(self, name: str) -> bool:
        return name in self.last and self.last[name] < DRAWN * self.greatest[name]

    def _why_swamped(self) -> str:
        weights = {name: self.settings.get(f"{name}_weight") for name in ("commitment", "alignment", "reconstruction")}
        if None in (weights["commitment"], weights["reconstruction"]):
            return OUTLIERS
        pulls = {name: weight * self.first.get(name, 0.0) for name, weight in weights.items() if weight}
        rebuild = pulls.pop("reconstruction", 0.0)
        most = max(pulls, key=pulls.get, default="commitment")
        how = "swamps" if pulls.get(most, 0.0) > SWAMPS * rebuild else "is too much for"
        rival = f"reconstruction_weight ({weights['reconstruction']})"
        return f"likely cause: {most}_weight ({weights[most]}) {how} {rival}"
