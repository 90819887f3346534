"""Rows of items with their pictures as one image, for notebooks: a catalogue, a history, what shares a code."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from hisam_jax.data.dataset import Dataset
from hisam_jax.errors import UserError
from hisam_jax.evaluation.report_pictures import Pictures

WIDTH, HEADING, CAPTION, GAP = 0.92, 0.27, 0.33, 0.1  # inches: a tile's width, the texts above and below, between tiles
INK, MUTED, PAPER, MARK = "#222222", "#666666", "#eef0f2", "#d55e00"  # the last as in Okabe and Ito's palette
LETTERS, LINES = 17, 2  # of a caption


def item_grid(dataset: Dataset, rows: Mapping[str, Sequence[int]], marked: Collection[int] = ()) -> Image.Image:
    """`item_figure` as an image of 256 colours, which a notebook shows whatever it draws with and which stays small."""
    figure = item_figure(dataset, rows, marked)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return drawn.quantize(256, dither=Image.Dither.NONE)


def item_figure(dataset: Dataset, rows: Mapping[str, Sequence[int]], marked: Collection[int] = ()) -> Figure:
    """A figure with one row of pictures for each entry of `rows`, the items' titles below them.

    Args:
        dataset: whose items they are.
        rows: heading of a row -> item indices, from left to right.
        marked: items that get an orange frame, such as the one that a user took next.

    Raises:
        UserError: no items at all, or one that the dataset does not have.
    """
    _check(dataset, rows)
    height = min(1.5, WIDTH / Pictures(dataset).ratio)
    step = HEADING + height + CAPTION
    columns = max(map(len, rows.values()))
    size = columns * (WIDTH + GAP), len(rows) * step
    figure = Figure(figsize=size, dpi=80, facecolor="white")
    for down, (heading, items) in enumerate(rows.items()):
        top = size[1] - down * step
        figure.text(
            0, (top - 0.06) / size[1], heading, va="top", color=INK, fontsize=9.5, fontweight="bold", parse_math=False
        )
        for across, item in enumerate(items):
            place = across * (WIDTH + GAP), top - HEADING - height, WIDTH, height
            axes = figure.add_axes(tuple(np.divide(place, (*size, *size))))
            _tile(axes, dataset, int(item), int(item) in marked)
    return figure


def _check(dataset: Dataset, rows: Mapping[str, Sequence[int]]) -> None:
    every = [int(item) for items in rows.values() for item in items]
    expected = f"item indices, 0 to {dataset.num_items - 1}"
    if not every:
        raise UserError("no items to show", field="rows", expected=expected)
    wrong = [item for item in every if not 0 <= item < dataset.num_items]
    if wrong:
        raise UserError(f"item {wrong[0]}", path=dataset.path, field="rows", expected=expected)


def _tile(axes: Axes, dataset: Dataset, item: int, marked: bool) -> None:
    jpeg = dataset.thumbnail(item)
    title = dataset.items["title"][item] or dataset.items["item_id"][item]
    lines = textwrap.wrap(title, LETTERS) or [""]
    caption = "\n".join(lines[:LINES]) + ("…" if len(lines) > LINES else "")
    if jpeg is None:
        axes.set_facecolor(PAPER)
        axes.text(0.5, 0.5, "no picture", ha="center", va="center", color=MUTED, fontsize=7, transform=axes.transAxes)
    else:
        axes.imshow(np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")))
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(caption, color=MUTED, fontsize=6.5, labelpad=3, parse_math=False)
    axes.spines[:].set(visible=marked, color=MARK, linewidth=3)
