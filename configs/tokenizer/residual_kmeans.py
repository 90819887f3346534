"""Residual k-means on all features side by side (GRID, arXiv 2507.22224): 3 codes of 256.

Hardware: 2 CPU cores. Wall time: seconds for ten thousand items.
Command: hisam tokenize --dataset DATASET --config configs/tokenizer/residual_kmeans.py --out IDS
"""

import ml_collections

from hisam_jax.tokenizer.registry import tokenizer_config
from hisam_jax.tokenizer.residual_kmeans import ResidualKMeansConfig


def get_config() -> ml_collections.ConfigDict:
    """`collisions`: digit, next_nearest, sinkhorn or none; `alarms.strict` ends a run that goes wrong."""
    return tokenizer_config(ResidualKMeansConfig())
