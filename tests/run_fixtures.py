"""Two runs beside each other: what they logged, and whether their trees are the same bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from hisam_jax.training.metrics import read_metrics
from hisam_jax.training.watching import TIMES

UNEQUAL = ("seconds", "items_per_second", *TIMES)  # what no two runs share


def lines(workdir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without their times."""
    rows = read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in UNEQUAL} for row in rows]


def equal(first: Any, second: Any) -> bool:
    """Whether two trees of arrays are equal in every bit."""
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), first, second))
