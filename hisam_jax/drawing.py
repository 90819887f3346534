"""A figure of matplotlib as text."""

from __future__ import annotations

import io

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure


def svg(figure: Figure) -> str:
    """The picture as SVG, the same whenever it is drawn."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "hisam"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()
