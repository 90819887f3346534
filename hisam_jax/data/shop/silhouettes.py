"""Thirty-two product shapes and eight emblems as drawing instructions on a grid of 100 x 100.

An instruction is `(layer, shape, numbers)`. Layers: `body` carries colour and pattern, `trim` is a darker shade,
`gap` cuts through both. Shapes: `box` x0 y0 x1 y1 radius, `oval` x0 y0 x1 y1, `poly` x y ..., `arc` x0 y0 x1 y1
from to width (degrees), `line` width x y ...
"""

from __future__ import annotations

import math

_Drawing = tuple[tuple[str, str, tuple[float, ...]], ...]


def _star(points: int, outer: float, inner: float) -> tuple[float, ...]:
    spokes = [(inner if i % 2 else outer, math.pi * i / points - math.pi / 2) for i in range(2 * points)]
    return tuple(50 + radius * trig(angle) for radius, angle in spokes for trig in (math.cos, math.sin))


# In the order of `vocabulary.KINDS`; the products stand around (46, 46), the badge has the lower right corner.
SILHOUETTES: tuple[_Drawing, ...] = (
    # drinkware
    (
        ("trim", "arc", (56, 32, 86, 66, -90, 90, 7)),
        ("body", "box", (16, 20, 68, 80, 8)),
        ("trim", "box", (16, 20, 68, 27, 3)),
    ),
    (("body", "poly", (22, 8, 70, 8, 62, 84, 30, 84)), ("trim", "poly", (29, 74, 63, 74, 62, 84, 30, 84))),
    (
        ("body", "oval", (8, 8, 84, 80)),
        ("gap", "box", (0, 0, 100, 42, 0)),
        ("trim", "box", (5, 40, 87, 48, 4)),
        ("trim", "box", (32, 77, 60, 85, 2)),
    ),
    (
        ("trim", "arc", (54, 20, 88, 66, -90, 90, 6)),
        ("body", "poly", (28, 8, 60, 8, 56, 30, 70, 50, 70, 84, 20, 84, 20, 50, 33, 30)),
        ("body", "poly", (28, 8, 36, 24, 12, 12)),
    ),
    # lighting
    (
        ("body", "poly", (30, 8, 62, 8, 80, 50, 12, 50)),
        ("trim", "box", (42, 50, 50, 80, 0)),
        ("trim", "box", (28, 78, 64, 86, 4)),
    ),
    (("body", "box", (24, 4, 68, 32, 3)), ("trim", "box", (44, 32, 48, 88, 0)), ("trim", "oval", (28, 82, 64, 90))),
    (
        ("trim", "box", (44, 0, 48, 34, 0)),
        ("body", "oval", (10, 30, 82, 100)),
        ("gap", "box", (0, 66, 100, 100, 0)),
        ("trim", "box", (36, 66, 56, 74, 4)),
    ),
    (
        ("trim", "arc", (30, 2, 62, 40, 180, 360, 5)),
        ("trim", "poly", (30, 20, 62, 20, 74, 32, 18, 32)),
        ("body", "box", (22, 32, 70, 76, 2)),
        ("trim", "box", (16, 76, 76, 86, 3)),
    ),
    # seating
    (
        ("body", "box", (18, 4, 30, 52, 4)),
        ("body", "box", (18, 42, 72, 56, 4)),
        ("trim", "box", (20, 56, 27, 90, 1)),
        ("trim", "box", (62, 56, 69, 90, 1)),
        ("body", "box", (18, 4, 36, 26, 4)),
    ),
    (
        ("body", "oval", (16, 18, 76, 44)),
        ("trim", "poly", (26, 38, 34, 40, 26, 88, 18, 88)),
        ("trim", "poly", (58, 40, 66, 38, 74, 88, 66, 88)),
        ("trim", "box", (26, 62, 66, 67, 0)),
    ),
    (
        ("body", "box", (22, 12, 70, 60, 14)),
        ("trim", "box", (8, 38, 24, 80, 7)),
        ("trim", "box", (68, 38, 84, 80, 7)),
        ("body", "box", (22, 54, 70, 78, 4)),
    ),
    (
        ("body", "box", (4, 24, 88, 38, 3)),
        ("body", "box", (4, 46, 88, 60, 3)),
        ("trim", "box", (12, 20, 18, 86, 1)),
        ("trim", "box", (74, 20, 80, 86, 1)),
    ),
    # bags
    (("trim", "arc", (28, 6, 64, 60, 180, 360, 5)), ("body", "poly", (12, 34, 80, 34, 74, 86, 18, 86))),
    (
        ("trim", "arc", (34, 2, 58, 28, 180, 360, 5)),
        ("body", "box", (18, 12, 74, 86, 20)),
        ("trim", "box", (26, 54, 66, 80, 6)),
        ("trim", "box", (10, 44, 18, 80, 4)),
    ),
    (
        ("trim", "box", (32, 2, 37, 24, 0)),
        ("trim", "box", (55, 2, 60, 24, 0)),
        ("trim", "box", (32, 2, 60, 7, 2)),
        ("body", "box", (16, 22, 76, 82, 7)),
        ("trim", "oval", (20, 80, 32, 92)),
        ("trim", "oval", (60, 80, 72, 92)),
    ),
    (
        ("trim", "arc", (20, 14, 72, 78, 180, 360, 4)),
        ("body", "box", (6, 42, 86, 80, 12)),
        ("trim", "poly", (6, 46, 86, 46, 46, 66)),
    ),
    # clothing
    (
        ("body", "poly", (28, 12, 64, 12, 90, 28, 80, 46, 68, 40, 68, 86, 24, 86, 24, 40, 12, 46, 2, 28)),
        ("gap", "oval", (36, 2, 56, 22)),
    ),
    (
        (
            "body",
            "poly",
            (28, 14, 64, 14, 78, 22, 90, 76, 78, 80, 68, 46, 68, 80, 24, 80, 24, 46, 14, 80, 2, 76, 14, 22),
        ),
        ("trim", "box", (34, 9, 58, 18, 4)),
        ("trim", "box", (24, 76, 68, 86, 2)),
    ),
    (("body", "poly", (24, 6, 68, 6, 74, 90, 54, 90, 46, 34, 38, 90, 18, 90)), ("trim", "box", (23, 6, 69, 14, 1))),
    (
        ("body", "poly", (32, 4, 38, 4, 46, 16, 54, 4, 60, 4, 62, 38, 84, 88, 8, 88, 30, 38)),
        ("trim", "box", (30, 36, 62, 42, 1)),
    ),
    # cosmetics
    (("trim", "box", (38, 4, 54, 26, 2)), ("body", "box", (26, 26, 66, 88, 10)), ("trim", "box", (26, 50, 66, 54, 0))),
    (
        ("trim", "poly", (22, 4, 60, 4, 60, 16, 34, 16, 22, 10)),
        ("trim", "box", (40, 14, 52, 30, 0)),
        ("body", "poly", (36, 30, 56, 30, 74, 54, 74, 88, 18, 88, 18, 54)),
    ),
    (("trim", "box", (10, 30, 82, 48, 4)), ("body", "box", (14, 48, 78, 82, 10))),
    (("body", "poly", (14, 6, 78, 6, 62, 74, 30, 74)), ("trim", "box", (32, 74, 60, 90, 3))),
    # electronics
    (("trim", "box", (22, 2, 70, 90, 8)), ("body", "box", (27, 10, 65, 78, 2)), ("body", "oval", (42, 80, 50, 88))),
    (
        ("trim", "box", (2, 10, 90, 70, 4)),
        ("body", "box", (7, 15, 85, 64, 1)),
        ("trim", "box", (40, 70, 52, 82, 0)),
        ("trim", "box", (24, 80, 68, 87, 3)),
    ),
    (
        ("trim", "arc", (12, 8, 80, 92, 180, 360, 8)),
        ("body", "box", (4, 44, 30, 84, 10)),
        ("body", "box", (62, 44, 88, 84, 10)),
    ),
    (
        ("body", "box", (20, 4, 72, 90, 5)),
        ("trim", "oval", (36, 11, 56, 31)),
        ("trim", "oval", (27, 40, 65, 78)),
        ("body", "oval", (37, 50, 55, 68)),
    ),
    # decor
    (
        ("body", "poly", (34, 4, 58, 4, 54, 22, 54, 26, 78, 50, 62, 88, 30, 88, 14, 50, 38, 26, 38, 22)),
        ("trim", "box", (30, 2, 62, 10, 3)),
    ),
    (
        ("trim", "oval", (6, 6, 86, 86)),
        ("body", "oval", (13, 13, 79, 79)),
        ("trim", "line", (5, 46, 22, 46, 46, 62, 56)),
        ("trim", "oval", (42, 42, 50, 50)),
    ),
    (
        ("trim", "box", (8, 8, 84, 84, 2)),
        ("gap", "box", (17, 17, 75, 75, 0)),
        ("body", "poly", (17, 75, 40, 34, 52, 56, 60, 44, 75, 75)),
        ("body", "oval", (56, 22, 68, 34)),
    ),
    (
        ("body", "poly", (6, 14, 46, 22, 86, 14, 79, 48, 86, 82, 46, 74, 6, 82, 13, 48)),
        ("trim", "oval", (40, 42, 52, 54)),
    ),
)

# Drawn dark on a light round badge; `gap` cuts out.
EMBLEMS: tuple[_Drawing, ...] = (
    (("body", "poly", _star(5, 48, 20)),),
    (
        ("body", "oval", (4, 10, 53, 59)),
        ("body", "oval", (47, 10, 96, 59)),
        ("body", "poly", (8, 46, 50, 42, 92, 46, 50, 96)),
    ),
    (("body", "oval", (6, 4, 94, 96)), ("gap", "oval", (34, -4, 112, 80))),
    (("body", "oval", (18, 34, 82, 98)), ("body", "poly", (50, 0, 80, 56, 20, 56))),
    (("body", "poly", (60, 0, 16, 56, 44, 56, 34, 100, 86, 38, 56, 38)),),
    (("body", "oval", (4, 4, 96, 96)), ("gap", "oval", (30, 30, 70, 70))),
    (("body", "box", (34, 2, 66, 98, 2)), ("body", "box", (2, 34, 98, 66, 2))),
    (("body", "poly", (0, 90, 36, 14, 58, 56, 70, 38, 100, 90)),),
)
