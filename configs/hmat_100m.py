"""HMAT of 100 M parameters, tables not counted.

Paper: Hi-SAM (arXiv 2602.11799). Hardware: see `targets`; what a step takes there:
hisam compile --config configs/hmat_100m.py --topology h100:8
Command: hisam train --dataset DATASET --ids IDS --config configs/hmat_100m.py --workdir RUN
"""

import ml_collections

from hisam_jax.scaling.configs import scaling_config


def get_config() -> ml_collections.ConfigDict:
    """14 blocks of width 768."""
    return scaling_config(width=768, layers=14, heads=6, mlp=2048, learning_rate=1e-3)
