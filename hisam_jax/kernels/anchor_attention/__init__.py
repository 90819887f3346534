"""Memory-anchor attention (SPEC of Hi-SAM: the current item keeps its fine tokens, history is seen through anchors)."""

from hisam_jax.kernels.anchor_attention.api import IMPLEMENTATIONS, anchor_attention, attend_to_context

__all__ = ["IMPLEMENTATIONS", "anchor_attention", "attend_to_context"]
