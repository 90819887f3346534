"""Tables and figures in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(part) for part in line) + " |" for line in lines) + "\n"


def interval(found: Mapping[str, Any] | None, digits: int = 4, seeds: bool = True) -> str:
    """A metric with its interval and the spread of its seeds; empty where there is none."""
    if not found:
        return ""
    low, high = found["ci95"]
    text = f"{found['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    if seeds and len(found.get("seeds", ())) > 1:
        mean = sum(found["seeds"]) / len(found["seeds"])
        spread = (sum((x - mean) ** 2 for x in found["seeds"]) / (len(found["seeds"]) - 1)) ** 0.5
        text += f" ± {spread:.{digits}f}"
    return text
