"""Operations of the matrix products of a compiled program, loops counted as often as they run.

XLA's own `cost_analysis` counts a loop's body once, and everything else with the products; outside of loops, of a
program of products alone, this is its number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from hisam_jax.compilation.hlo import INSTRUCTION, SHAPE, computations, times

_OPERAND = re.compile(r"\((?:[a-z]\w*\[[\d,]*\](?:\{[^}]*\})?\s+)?%?([\w.\-]+)")


def product_flops(hlo: str) -> int:
    """Reads a compiled module's text, as `compiled.as_text()` gives it; a multiply-add counts 2.

    Raises:
        ValueError: a loop around a product whose trip count the text does not tell.
    """
    bodies, entry = computations(hlo)
    runs = times(bodies, entry, ("dot",))
    return sum(runs[name] * _of(lines) for name, lines in bodies.items() if runs.get(name))


def _of(lines: Sequence[str]) -> int:
    found = [match for line in lines if (match := INSTRUCTION.match(line))]
    shapes = {match[1]: _sizes(match[2]) for match in found}
    return sum(_dot(match.string, shapes) for match in found if match[3] == "dot")


def _dot(line: str, shapes: Mapping[str, list[int]]) -> int:
    match = INSTRUCTION.match(line)
    left = shapes[_OPERAND.match(line[match.end() - 1 :])[1]]
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)
    inner = math.prod(left[int(axis)] for axis in contracted[1].split(",") if axis) if contracted else 1
    return 2 * math.prod(_sizes(match[2])) * inner


def _sizes(text: str) -> list[int]:
    """Of the first shape in a text."""
    shape = SHAPE.search(text)
    return [int(size) for size in shape[2].split(",") if size] if shape else []
