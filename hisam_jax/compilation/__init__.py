"""What a step costs on accelerators that are not here: `hisam compile`."""

from hisam_jax.compilation.topology import Target, target

__all__ = ["Target", "target"]
