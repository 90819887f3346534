"""Tokenizers of four codes of 256 that several shipped grids hold against each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FOUR = (256,) * 4
DST_KINDS: Mapping[str, Mapping[str, Any]] = {
    "dst": {},
    "dst-no-mi": {"mi_weight": 0.0},
    "dst-no-alignment": {"mi_weight": 0.0, "alignment": "none"},
    "dst-shared": {"shared": FOUR, "specific": {"text": (), "image": ()}},
    "dst-specific": {"shared": (1,), "specific": {"text": (256, 256), "image": (256, 256)}},
}
OTHERS = ("rqvae", "residual_kmeans", "opq", "random")


def dst(**settings: Any) -> dict[str, Any]:
    """DST with other settings, an entry of a grid's `tokenizers`."""
    return {"config": "configs/tokenizer/dst.py", "overrides": {"dst": settings}}


def four(name: str, **settings: Any) -> dict[str, Any]:
    """A baseline tokenizer with four codes, as DST has them."""
    return {"config": f"configs/tokenizer/{name}.py", "overrides": {name: {"sizes": FOUR, **settings}}}


def of_four_codes() -> dict[str, dict[str, Any]]:
    """DST, DST without each of its parts (text and image there), and every baseline."""
    return {name: dst(**settings) for name, settings in DST_KINDS.items()} | {name: four(name) for name in OTHERS}
