"""The leading metric of a dataset's rows, best first, as points with intervals."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

OURS, SIMPLE, INK = "#1f5fa8", "#8a8a8a", "#333333"


def leading(table: Mapping[str, Any]) -> str | None:
    """The first leading metric that any row has."""
    return next((m for m in table["lead"] if any(m in row["metrics"] for row in table["rows"].values())), None)


def forest(table: Mapping[str, Any]) -> str:
    """An SVG of the first leading metric that any row has."""
    metric = leading(table)
    rows = {name: row["metrics"][metric] for name, row in table["rows"].items() if metric in row["metrics"]}
    names = sorted(rows, key=lambda name: rows[name]["value"])
    figure = Figure(figsize=(7.0, 0.8 + 0.27 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    for place, name in enumerate(names):
        found, colour = rows[name], OURS if "seeds" in table["rows"][name] else SIMPLE
        axes.plot(found["ci95"], [place, place], color=colour, linewidth=1.6, solid_capstyle="round")
        axes.plot(found["value"], place, "o", color=colour, markersize=5)
        for one in found.get("seeds", ()):
            axes.plot(one, place, "|", color=colour, markersize=8, alpha=0.6)
    axes.set_yticks(range(len(names)), names, fontsize=9, color=INK)
    axes.set_xlabel(f"{metric}, 95 % interval over users; bars: seeds", fontsize=9, color=INK)
    axes.set_title(table["title"], fontsize=10, color=INK, loc="left")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="both", length=0)
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()
