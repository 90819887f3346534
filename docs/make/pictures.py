"""Draws docs/pictures/anchor_mask.svg: `python docs/make/pictures.py`. The mask is the tests' own truth.

Two matrices over the same items: what a query token (row) may read (column), with anchors and in the flat baseline.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from hisam_jax.kernels.anchor_attention.reference import anchor_mask

OUT = Path(__file__).parents[1] / "pictures" / "anchor_mask.svg"
ITEMS, CODES, SIDE = 6, ("shared", "shared", "text", "image"), 336
INK, FAINT, CARD = "#1f2d2b", "#e4e9e8", "#ffffff"
COLOURS = {"shared": "#00796b", "text": "#3f51b5", "image": "#8e24aa", "anchor": "#ff7043"}
SHORT = {"shared": "S", "text": "T", "image": "I", "anchor": "A"}
OWN, FAR = "#80b8b0", COLOURS["anchor"]


def masks() -> tuple[np.ndarray, np.ndarray]:
    """bool [S, S] of HMAT, whose items end with an anchor, and of the flat baseline, which has codes alone."""
    ours = np.asarray(anchor_mask(jnp.ones((1, ITEMS), jnp.int32), len(CODES) + 1, strict=False))[0]
    return ours, np.tri(ITEMS * len(CODES), dtype=bool)


def draw() -> str:
    """The picture as SVG."""
    ours, flat = masks()
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 570" role="img" font-family="system-ui, sans-serif" '
        f'fill="{INK}"><title>Token groups of items and what each token may read</title>'
        f'<rect width="880" height="570" rx="12" fill="{CARD}"/>',
        _text(40, 40, "A history is read item by item; every item ends with an anchor", 19, weight=600),
        *_history(40, 58),
        *_matrix(40, 196, ours, len(CODES) + 1, "HMAT: own item, earlier anchors"),
        *_matrix(500, 196, flat, len(CODES), "Flat baseline: every earlier token"),
    ]
    return "\n".join(parts) + "\n</svg>\n"


def _history(x: int, y: int) -> Iterable[str]:
    group, token = 134, 24
    for item in range(ITEMS):
        left = x + item * group
        yield f'<rect x="{left}" y="{y}" width="{group - 8}" height="48" rx="7" fill="{FAINT}"/>'
        for slot, kind in enumerate((*CODES, "anchor")):
            place = left + 4 + slot * token
            yield f'<rect x="{place}" y="{y + 6}" width="20" height="20" rx="4" fill="{COLOURS[kind]}"/>'
            yield _text(place + 10, y + 20, SHORT[kind], 12, "#ffffff", "middle", 600)
        yield _text(left + (group - 8) / 2, y + 42, f"item {item + 1}", 12, anchor="middle")
    names = {"shared": "shared codes", "text": "text code", "image": "image code", "anchor": "anchor"}
    for place, (kind, name) in enumerate(names.items()):
        yield f'<rect x="{x + place * 140}" y="{y + 66}" width="14" height="14" rx="3" fill="{COLOURS[kind]}"/>'
        yield _text(x + place * 140 + 20, y + 78, name, 13)


def _matrix(x: int, y: int, mask_SS: np.ndarray, tokens: int, title: str) -> Iterable[str]:
    cell = SIDE / len(mask_SS)
    yield _text(x, y - 12, title, 16, weight=600)
    yield f'<rect x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" fill="{FAINT}"/>'
    for row, column in zip(*np.nonzero(mask_SS), strict=True):
        colour = OWN if row // tokens == column // tokens else FAR if tokens > len(CODES) else "#b9c4c2"
        box = f'x="{x + column * cell:.1f}" y="{y + row * cell:.1f}" width="{cell - 1:.1f}" height="{cell - 1:.1f}"'
        yield f'<rect {box} fill="{colour}"/>'
    yield _text(x, y + SIDE + 24, f"{mask_SS.sum()} query-key pairs; rows read, columns are read", 13)


def _text(x: float, y: float, text: str, size: int, fill: str = INK, anchor: str = "start", weight: int = 400) -> str:
    style = f'font-size="{size}" fill="{fill}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{text}</text>'


if __name__ == "__main__":
    OUT.write_text(draw())
    print(OUT)
