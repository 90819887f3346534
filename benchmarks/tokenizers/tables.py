"""What the tables of this benchmark share."""

from __future__ import annotations


def rate(value: float | None) -> str:
    """A share or a correlation, three places."""
    return "" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return "" if value is None else f"{value:.1%}"
