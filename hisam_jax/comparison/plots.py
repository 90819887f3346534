"""The leading metric of a dataset's rows, best first, as points with intervals; and their validation curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from hisam_jax.drawing import svg
from hisam_jax.evaluation.oracle import ORACLE

OURS, SIMPLE, INK = "#1f5fa8", "#8a8a8a", "#333333"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's, told apart by all


def leading(table: Mapping[str, Any]) -> str | None:
    """The first leading metric that any row has."""
    return next((m for m in table["lead"] if any(m in row["metrics"] for row in table["rows"].values())), None)


def forest(table: Mapping[str, Any]) -> str:
    """An SVG of the first leading metric that any row has; no oracle, which is so far off that rows would be one."""
    metric = leading(table)
    shown = {name: row["metrics"] for name, row in table["rows"].items() if name != ORACLE}
    rows = {name: metrics[metric] for name, metrics in shown.items() if metric in metrics}
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
    return svg(figure)


def curves_of(table: Mapping[str, Any]) -> dict[str, dict[str, list]]:
    """Validation metric -> row -> its points, of rows with two points or more."""
    found: dict[str, dict[str, list]] = {}
    for name, row in table["rows"].items():
        curve = row.get("curve") or {"points": []}
        if len(curve["points"]) > 1:
            found.setdefault(curve["metric"], {})[name] = curve["points"]
    return found


def curves(table: Mapping[str, Any]) -> str:
    """An SVG of what validation said of each row as it trained, an axis a metric; steps as shares of the run."""
    by_metric = curves_of(table)
    figure = Figure(figsize=(7.0, 0.3 + 3.0 * len(by_metric)), layout="constrained")
    for axes, (metric, rows) in zip(
        figure.subplots(len(by_metric), squeeze=False).flat, by_metric.items(), strict=True
    ):
        for place, (name, points) in enumerate(rows.items()):
            steps, values = zip(*points, strict=True)
            style = ("-", "--", ":")[place // len(COLOURS) % 3]
            axes.plot([step / steps[-1] for step in steps], values, style, color=COLOURS[place % len(COLOURS)],
                      marker="o", markersize=3, linewidth=1.4, label=f"{name} ({steps[-1]:,} steps)")  # fmt: skip
        axes.set_title(metric, fontsize=10, color=INK, loc="left")
        axes.set_xlabel("share of the steps", fontsize=9, color=INK)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return svg(figure)
