"""RQ-VAE on all features side by side (TIGER, arXiv 2305.05065): 3 codes of 256.

Hardware: 2 CPU cores. Wall time: a minute or two for ten thousand items.
Expected: every level at least 90 % used on real posters and titles.
Command: hisam tokenize --dataset DATASET --config configs/tokenizer/rqvae.py --out IDS
"""

import ml_collections

from hisam_jax.tokenizer.registry import tokenizer_config
from hisam_jax.tokenizer.rqvae import RQVAEConfig


def get_config() -> ml_collections.ConfigDict:
    """`collisions`: digit, next_nearest, sinkhorn or none; `alarms.strict` ends a run that goes wrong."""
    return tokenizer_config(RQVAEConfig())
