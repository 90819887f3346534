"""HMAT of 10 M parameters, tables not counted.

Paper: Hi-SAM (arXiv 2602.11799). Hardware: one accelerator or more; meshes for v5e:16x16, v5p:4x4x4, h100:8 and
h100:64 are under `targets`. What a step takes there: hisam compile --config configs/hmat_10m.py --topology v5e:16x16
Command: hisam train --dataset DATASET --ids IDS --config configs/hmat_10m.py --workdir RUN
"""

import ml_collections

from hisam_jax.scaling.configs import scaling_config


def get_config() -> ml_collections.ConfigDict:
    """12 blocks of width 256."""
    return scaling_config(width=256, layers=12, heads=4, mlp=688, learning_rate=2e-3)
