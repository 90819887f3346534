"""Sizes of a sweep's models, and how the learning rate goes over from one width to another."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from hisam_jax.config import check_least
from hisam_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Size:
    """Width and depth of a model.

    Attributes:
        width, layers, heads: as `HMATConfig` has them.
        kv_heads: 0: as many as heads.
        mlp: hidden units; 0: 8/3 of the width, up to a multiple of 4.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int = 0
    mlp: int = 0

    def fields(self) -> dict[str, int]:
        """Those of a model's config."""
        mlp = self.mlp or 4 * math.ceil(self.width * 8 / 3 / 4)
        return {**dataclasses.asdict(self), "kv_heads": self.kv_heads or self.heads, "mlp": mlp}

    def check(self, name: str) -> None:
        """Refuses what no model can be.

        Raises:
            UserError: names the size.
        """
        check_least(self, f"sizes.{name}", width=1, layers=1, heads=1, kv_heads=0, mlp=0)
        if self.width % self.heads or self.heads % (self.kv_heads or self.heads) or self.width // self.heads % 4:
            raise UserError(
                f"width {self.width}, heads {self.heads}, kv_heads {self.kv_heads}", field=f"sizes.{name}.heads",
                expected="heads that divide the width into parts divisible by 4, and kv_heads that divide heads",
            )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rate:
    """How the peak learning rate goes over from one width to another: `base * (base_width / width) ** power`.

    Adam's updates of a matrix add up over its inputs, so that a rate which is right at one width is too large at a
    greater one: in proportion to the width for matrices alone (power 1; muP, arXiv 2203.03466), less where tables of
    codes and items, whose best rate does not move, share the rate. One rate serves all parameters here.

    Attributes:
        base: the rate at `base_width`.
        base_width: where `base` was found.
        power: of the rule above.
        found: rates that were found best, by width; two or more give `base` and `power` by least squares on logs, in
            place of those above.
    """

    base: float = 4e-3
    base_width: int = 64
    power: float = 0.5
    found: Mapping = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not 0 < self.base < math.inf:
            raise UserError(f"value {self.base}", field="learning_rate.base", expected="a number above 0")
        if not math.isfinite(self.power):
            raise UserError(f"value {self.power}", field="learning_rate.power", expected="a number")
        check_least(self, "learning_rate", base_width=1)
        _rates(self.found)

    @property
    def line(self) -> tuple[float, float]:
        """The rate at `base_width`, and the power of its fall."""
        if not self.found:
            return self.base, self.power
        known = [(math.log(self.base_width / width), math.log(rate)) for width, rate in _rates(self.found).items()]
        mean_x, mean_y = (sum(column) / len(known) for column in zip(*known, strict=True))
        spread = sum((x - mean_x) ** 2 for x, _ in known)
        power = sum((x - mean_x) * (y - mean_y) for x, y in known) / spread
        return math.exp(mean_y - power * mean_x), power

    def at(self, width: int) -> float:
        """The peak rate of a model of that width."""
        base, power = self.line
        return base * (self.base_width / width) ** power

    def said(self) -> str:
        """The rule in words."""
        base, power = self.line
        how = f", fitted to {len(self.found)} widths" if self.found else ""
        return f"{base:.3g} ({self.base_width} / width)^{power:.3g}{how}"


def _rates(found: Mapping[Any, Any]) -> dict[int, float]:
    """Rates by width as numbers; a config may have its widths as text.

    Raises:
        UserError: what is no width or no rate, a width twice, or one width alone.
    """
    try:
        rates = [(int(str(width)), float(rate)) for width, rate in found.items()]
        fine = all(width >= 1 and 0 < rate < math.inf for width, rate in rates)
    except (TypeError, ValueError):
        rates, fine = [], False
    if not fine or len(dict(rates)) < len(found) or len(found) == 1:
        expected = "rates above 0 by whole width, two widths at least, or none"
        raise UserError(f"value {dict(found)}", field="learning_rate.found", expected=expected)
    return dict(rates)
