"""The report's charts as inline SVG whose colours are CSS variables, so that they follow the page into the dark."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

# A colour that matplotlib draws with -> the CSS variable it becomes.
INK, MUTED, LINE = "#010101", "#020202", "#030303"
SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005", "#0a0006")
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line"} | {c: f"--series-{i + 1}" for i, c in enumerate(SERIES)}
NAMED = {"retrieval": SERIES[0], "generation": SERIES[1], "ranking": SERIES[2], "total": SERIES[5]}
_WIDTH, _HEIGHT = 5.4, 2.7  # inches at 72 units each
_FONT = 9.5


def lines(
    name: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    label: str,
    tones: Mapping[str, int] | None = None,
    dashed: Collection[str] = (),
) -> str:
    """Label -> (x, y) curves over training steps, named at their ends.

    Args:
        name: unique on the page.
        series: what to draw, in the order of the palette; non-finite values leave gaps.
        label: what the vertical axis shows.
        tones: place in the palette of curves that have a colour elsewhere on the page.
        dashed: curves told apart from others of the same colour.
    """
    axes = _axes(label, "step")
    ends = []
    for index, (title, (x, y)) in enumerate(series.items()):
        colour = SERIES[tones[title]] if tones else NAMED.get(title, SERIES[index % len(SERIES)])
        marker, style = "o" if len(x) < 12 else "", (0, (4, 2)) if title in dashed else "-"
        axes.plot(x, y, color=colour, linewidth=1.8, solid_capstyle="round", marker=marker, ms=3.5, linestyle=style)
        ends.append((float(y[-1]), x[-1], colour))
    axes.margins(x=0.01, y=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _name_ends(axes, list(series), ends)
    return _svg(name, axes.figure)


def histogram(name: str, values: np.ndarray, label: str, counted: str) -> str:
    """How many of `values` (whole numbers >= 1) fall into bins that widen with the value where the range is long."""
    axes = _axes(counted, label)
    top = int(values.max(initial=1))
    if top > 60:
        edges = np.unique(np.geomspace(max(1, values.min(initial=1)), top + 1, 33).round())
        axes.set_xscale("log")
    else:
        edges = np.arange(0.5, top + 1.5)
    counts, edges = np.histogram(values, edges)
    axes.bar(edges[:-1], counts, np.diff(edges) * 0.88, align="edge", color=SERIES[0])
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(lambda *_: "")
    return _svg(name, axes.figure)


def rank_size(name: str, counts: np.ndarray, label: str, ranked: str) -> str:
    """Counts in falling order over their rank, both on log axes: how long the tail is."""
    axes = _axes(label, ranked)
    falling = np.sort(counts[counts > 0])[::-1]
    rank = np.arange(1, len(falling) + 1)
    axes.fill_between(rank, falling, 0.8, color=SERIES[1], alpha=0.16, linewidth=0)
    axes.plot(rank, falling, color=SERIES[1], linewidth=1.8)
    axes.set(xscale="log", yscale="log", ylim=(0.8, None))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(EngFormatter(sep=""))
        axis.set_minor_formatter(lambda *_: "")
    return _svg(name, axes.figure)


def usage(name: str, counts: np.ndarray, colour: int) -> str:
    """Sparkline of how many items take each code, most used first; no axes."""
    figure = Figure(figsize=(3.0, 0.62), facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.fill_between(np.arange(len(counts)), np.sort(counts)[::-1], step="mid", color=SERIES[colour], linewidth=0)
    axes.set(xlim=(-0.5, max(0.5, len(counts) - 0.5)), ylim=(0, max(1, counts.max(initial=1))))
    axes.axis("off")
    return _svg(name, figure)


def _axes(y_label: str, x_label: str) -> Axes:
    axes = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained", facecolor="none").subplots()
    axes.set_facecolor("none")
    axes.set_xlabel(x_label, color=MUTED, fontsize=_FONT, loc="right")
    axes.set_title(y_label, color=MUTED, fontsize=_FONT, loc="left", pad=10)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(which="both", colors=MUTED, labelsize=_FONT, length=0, pad=5)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(_tick)
    return axes


def _tick(value: float, _: int) -> str:
    """1500 -> 1.5k, but 0.025 as it is."""
    return f"{value:.3g}" if abs(value) < 1000 else EngFormatter(sep="")(value)


def _name_ends(axes: Axes, names: list[str], ends: list[tuple[float, float, str]]) -> None:
    """Writes each curve's name beside its last point, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    gap, previous = (high - low) * 0.085, -np.inf
    order, places = np.argsort([end[0] for end in ends], kind="stable"), {}
    for index in order:
        places[index] = previous = max(ends[index][0], previous + gap)
    limit = high
    for index in order[::-1]:  # what was pushed over the top comes down again
        places[index] = min(places[index], limit)
        limit = places[index] - gap
    for index in order:
        _, x, colour = ends[index]
        axes.annotate(
            names[index],
            (x, places[index]),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=_FONT,
            fontweight="bold",
            annotation_clip=False,
        )


def _svg(name: str, figure: Figure) -> str:
    """The figure as an `<svg>` without namespaces, links or fixed size, its ids prefixed by `name`."""
    stream = io.StringIO()
    FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1))
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text
