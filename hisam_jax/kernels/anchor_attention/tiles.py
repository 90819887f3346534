"""Tile sizes of anchor attention: the record that every implementation takes."""

from __future__ import annotations

import dataclasses

from hisam_jax.config import check_least
from hisam_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How much of the work one step of a kernel takes. Implementations round up to what their hardware wants.

    Attributes:
        items: query items of a tile in the forward pass.
        anchors: anchors of a tile in the forward pass.
        backward_items: query items of a tile in the backward pass.
        backward_anchors: anchors of a tile in the backward pass.

    Raises:
        UserError: a size that is no whole number, or below 1.
    """

    items: int
    anchors: int
    backward_items: int
    backward_anchors: int

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise UserError(f"value {value!r}", field=f"tiles.{field.name}", expected="a whole number")
        check_least(self, "tiles", items=1, anchors=1, backward_items=1, backward_anchors=1)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What tile sizes depend on: sizes of one problem.

    Attributes:
        items, tokens, heads, kv_heads, width: of queries and keys.
        anchors: cached ones and the items' own together.
        bytes: of one element.
    """

    items: int
    tokens: int
    heads: int
    kv_heads: int
    width: int
    anchors: int
    bytes: int

    @classmethod
    def of(cls, q_BNTHD, anchor_k_BMGD) -> Sizes:
        """From arrays or their shapes."""
        _, items, tokens, heads, width = q_BNTHD.shape
        return cls(items, tokens, heads, anchor_k_BMGD.shape[2], width, anchor_k_BMGD.shape[1], q_BNTHD.dtype.itemsize)
