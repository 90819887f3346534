"""Memory-anchor attention (SPEC of Hi-SAM: the current item keeps its fine tokens, history is seen through anchors)."""

from hisam_jax.kernels.anchor_attention.api import IMPLEMENTATIONS, anchor_attention
from hisam_jax.kernels.anchor_attention.context import attend_to_context
from hisam_jax.kernels.anchor_attention.tiles import Tiles

__all__ = ["IMPLEMENTATIONS", "Tiles", "anchor_attention", "attend_to_context"]
