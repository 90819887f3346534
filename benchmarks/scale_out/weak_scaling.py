"""The 100 M model with one row of 512 items a chip, from one chip to 256."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.common import table
from benchmarks.scale_out.compiled import HEADINGS, NOTE, compiled, row

CHIPS = {1: "v5e:1x1", 8: "v5e:2x4", 64: "v5e:8x8", 256: "v5e:16x16"}
WAYS = {"data": "--config.mesh.data=0", "fsdp": "--config.mesh.fsdp={}"}


def run(quick: bool = False) -> dict[str, Any]:
    """A report for each number of chips, whole copies and split state."""
    cells = []
    for chips, topology in list(CHIPS.items())[: 1 if quick else None]:
        for way, flag in WAYS.items():
            if chips == 1 and way == "fsdp":
                continue
            rows = (f"--config.data.rows={chips}", f"--config.data.streams={min(chips, 64)}", flag.format(chips))
            cells.append({"chips": chips, "way": way, **compiled("hmat_100m", topology, rows)})
    return {"cells": cells}


def markdown(result: dict[str, Any]) -> str:
    """The table, and what limits each."""
    rows = [[str(cell["chips"]), cell["way"], *row(cell)] for cell in result["cells"]]
    said = "\n".join(_limits(cell) for cell in result["cells"] if "error" not in cell)
    return NOTE + "\n" + table(["chips", "rows split by", *HEADINGS], rows) + "\n" + said


def _limits(cell: dict[str, Any]) -> str:
    """What the three floors are, and how many rows a chip would make arithmetic the largest."""
    floor = {name: 1e3 * seconds for name, seconds in cell["floor_seconds"].items() if name != "limit"}
    parts = ", ".join(f"{name} {ms:.1f} ms" for name, ms in floor.items())
    start = f"- {cell['chips']} chips, `{cell['way']}`: {parts}"
    needed = math.ceil(max(floor["memory"], floor.get("links", 0)) / floor["arithmetic"])
    if needed <= 1:
        return start + "; arithmetic limits it already with one row a chip."
    return start + f"; from {needed} rows a chip on, arithmetic would, as the others do not grow with rows."
