"""A sweep's pictures: isoFLOP parabolas, loss and Recall against FLOPs and history, the best size and data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hisam_jax.comparison.plots import INK, OURS, SIMPLE
from hisam_jax.scaling.fits import best_cells, recall_of

COLOURS = (OURS, "#c2571a", "#2d7d46", "#7a4fa3")
ORACLE = "#b08900"


def figures(result: Mapping[str, Any]) -> dict[str, Figure]:
    """Every picture that the finished cells allow, by name."""
    found = {"isoflop": _isoflop(result)}
    found |= {"loss": _against_flops(result, "loss"), "recall": _against_flops(result, "recall@10")}
    if any(entry["law"] for entry in result["models"].values()):
        found["frontier"] = _frontier(result)
    if result["histories"]:
        found["history"] = _history(result)
    return found


def _panels(count: int, width: float = 4.6, height: float = 3.6) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width * count, height), layout="constrained")
    axes = [figure.add_subplot(1, count, k + 1) for k in range(count)]
    for one in axes:
        one.grid(color="#e4e4e4", linewidth=0.6)
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=8, length=2, colors=INK)
    return figure, axes


def _named(axes: Axes, x: str, y: str, title: str = "") -> None:
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.set_title(title, fontsize=10, color=INK, loc="left")


def _legend(axes: Axes, size: int) -> None:
    if axes.get_legend_handles_labels()[0]:  # none where all cells saw their data more than once
        axes.legend(fontsize=size, frameon=False)


def _points(axes: Axes, x: Iterable[float], found: Sequence[Mapping[str, Any]], colour: str, **style: Any) -> None:
    value = np.array([one["value"] for one in found])
    low, high = np.array([one["ci95"] for one in found]).T
    errors = np.clip([value - low, high - value], 0.0, None)
    axes.errorbar(list(x), value, errors, fmt="o", color=colour, markersize=4, elinewidth=0.9, **style)


def _isoflop(result: Mapping[str, Any]) -> Figure:
    names = list(result["models"])
    figure, panels = _panels(len(names))
    budgets = sorted({cell["flops"] for cell in result["cells"] if cell["flops"]})
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, len(budgets)))
    for axes, model in zip(panels, names, strict=True):
        bowls = {bowl["flops"]: bowl for bowl in result["models"][model]["isoflop"]["bowls"]}
        for budget, shade in zip(budgets, shades, strict=True):
            cells = [cell for cell in _of(result, model) if cell["flops"] == budget]
            if cells:
                n = [cell["n"][result["parameters"]] for cell in cells]
                _points(axes, n, [cell["loss"] for cell in cells], shade, label=f"{budget:.3g} FLOPs")
                _bowl(axes, bowls.get(budget), n, shade)
        axes.set_xscale("log")
        _named(axes, f"parameters ({result['parameters']})", "held-out nats per item", model)
    _same_y(panels)
    _legend(panels[-1], 7)
    return figure


def _bowl(axes: Axes, bowl: Mapping[str, Any] | None, n: Sequence[float], colour: Any) -> None:
    if bowl is None:
        return
    x = np.geomspace(min(n), max(n), 60)
    axes.plot(x, np.polyval(bowl["coefficients"], np.log(x)), color=colour, linewidth=1.1)
    if bowl["inside"]:
        axes.plot(bowl["n"], bowl["loss"], "*", color=colour, markersize=11, markeredgecolor="white")


def _of(result: Mapping[str, Any], model: str) -> list[Mapping[str, Any]]:
    return [c for c in result["cells"] if c["model"] == model and c["history"] == result["history"]]


def _same_y(panels: Sequence[Axes]) -> None:
    low, high = min(axes.get_ylim()[0] for axes in panels), max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(low, high)


def _against_flops(result: Mapping[str, Any], metric: str) -> Figure:
    figure, (axes,) = _panels(1, 6.4, 4.2)
    of = recall_of if metric == "recall@10" else lambda cell: cell["loss"]
    for (model, entry), colour in zip(result["models"].items(), COLOURS, strict=False):
        cells = _of(result, model)
        axes.plot([c["spent"] for c in cells], [of(c)["value"] for c in cells], ".", color=colour, alpha=0.3)
        best = best_cells(result["cells"], model, result["history"])
        if best:
            _points(axes, [c["spent"] for c in best], [of(c) for c in best], colour, label=f"{model}, best of a budget")
        if metric == "loss" and entry["law"]:
            _curve(axes, entry["frontier"], "loss", colour, f"{model}, by the law")
    if metric == "loss" and result["oracle"] is not None:
        axes.axhline(result["oracle"], color=ORACLE, linewidth=1, linestyle="--", label="the generator's own")
    axes.set_xscale("log")
    _named(axes, "useful FLOPs of training", "Recall@10" if metric == "recall@10" else "held-out nats per item")
    _legend(axes, 8)
    return figure


def _curve(axes: Axes, curve: Sequence[Mapping[str, Any]], name: str, colour: str, label: str) -> None:
    x = [point["flops"] for point in curve]
    low, high = np.array([point[name]["ci95"] for point in curve]).T
    axes.plot(x, [point[name]["value"] for point in curve], color=colour, linewidth=1.2, label=label)
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _frontier(result: Mapping[str, Any]) -> Figure:
    figure, panels = _panels(2)
    for (model, entry), colour in zip(result["models"].items(), COLOURS, strict=False):
        for axes, name in zip(panels, ("n", "d"), strict=True):
            if entry["law"]:
                _curve(axes, entry["frontier"], name, colour, f"{model}, law")
        bowls = [bowl for bowl in entry["isoflop"]["bowls"] if bowl["inside"]]
        found = [{"value": bowl["n"], "ci95": bowl["n_ci95"] or [bowl["n"]] * 2} for bowl in bowls]
        if found:
            _points(panels[0], [b["flops"] for b in bowls], found, colour, label=f"{model}, parabolas", capsize=2)
    for axes, name in zip(panels, (f"best parameters ({result['parameters']})", "best items to train on"), strict=True):
        axes.set_xscale("log")
        axes.set_yscale("log")
        _named(axes, "useful FLOPs of training", name)
    _legend(panels[0], 7)
    return figure


def _history(result: Mapping[str, Any]) -> Figure:
    figure, panels = _panels(2)
    colours = dict(zip(result["models"], COLOURS, strict=False))
    kinds = sorted({(group["size"], group["flops"], group["items"]) for group in result["histories"]})
    styles = dict(zip(kinds, ("-", "--", ":", "-."), strict=False))
    for group in result["histories"]:
        colour = colours.get(group["model"], SIMPLE)
        much = f"{group['flops']:.3g} FLOPs" if group["flops"] else f"{group['items']:,} items"
        style = styles.get((group["size"], group["flops"], group["items"]), "-")
        x = [cell["history"] for cell in group["cells"]]
        for axes, name in zip(panels, ("loss", "recall@10"), strict=True):
            found = [cell[name] for cell in group["cells"]]
            _points(axes, x, found, colour, label=f"{group['model']}, {group['size']}, {much}")
            axes.plot(x, [one["value"] for one in found], style, color=colour, linewidth=1)
    for axes, name in zip(panels, ("held-out nats per item", "Recall@10"), strict=True):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        _named(axes, "items of history that a model reads", name)
    _legend(panels[0], 7)
    return figure
