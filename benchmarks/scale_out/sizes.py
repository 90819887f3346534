"""Every shipped size on every target."""

from __future__ import annotations

from typing import Any

from benchmarks.common import table
from benchmarks.scale_out.compiled import HEADINGS, NOTE, compiled, row

SIZES, TARGETS = ("hmat_10m", "hmat_100m", "hmat_1b", "hmat_8b"), ("v5e:16x16", "v5p:4x4x4", "h100:8", "h100:64")


def run(quick: bool = False) -> dict[str, Any]:
    """A report for each size and target."""
    cells = [(size, target) for size in SIZES for target in TARGETS][: 1 if quick else None]
    return {"cells": [{"size": size, "target": target, **compiled(size, target)} for size, target in cells]}


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    rows = [[cell["size"], cell["target"], _parameters(cell), *row(cell)] for cell in result["cells"]]
    return NOTE + "\n" + table(["config", "target", "parameters", *HEADINGS], rows)


def _parameters(cell: dict[str, Any]) -> str:
    return f"{cell['parameters']['network'] / 1e6:,.0f} M" if "parameters" in cell else "–"
