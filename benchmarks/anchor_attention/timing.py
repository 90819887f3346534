"""Seconds of compiled functions that take turns, so that a ratio sees one machine in one state."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

LONG = 2.0  # seconds; what takes longer is run once after compilation, everything else `rounds` times


def once(function: Callable, *arguments: Any) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - started


def best_seconds(function: Callable, *arguments: Any, rounds: int = 5) -> float:
    """The least of some calls after one that compiles."""
    once(function, *arguments)
    return min(once(function, *arguments) for _ in range(rounds))


def interleaved(functions: Mapping[str, Callable], arguments: tuple, rounds: int) -> dict[str, float]:
    """Name -> median seconds; the first call of each compiles and does not count."""
    first = {}
    for name, function in functions.items():
        once(function, *arguments)
        first[name] = [once(function, *arguments)]
    for _ in range(rounds - 1):
        for name, function in functions.items():
            if first[name][0] < LONG:
                first[name].append(once(function, *arguments))
    return {name: statistics.median(seconds) for name, seconds in first.items()}
