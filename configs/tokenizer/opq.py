"""Optimised product quantisation of all features side by side (Ge et al. 2013): 3 codes of 256.

`--config.opq.rotate=False` is plain product quantisation.

Hardware: 2 CPU cores. Wall time: a minute for ten thousand items.
Command: hisam tokenize --dataset DATASET --config configs/tokenizer/opq.py --out IDS
"""

import ml_collections

from hisam_jax.tokenizer.opq import OPQConfig
from hisam_jax.tokenizer.registry import tokenizer_config


def get_config() -> ml_collections.ConfigDict:
    """`collisions`: digit, next_nearest, sinkhorn or none; `alarms.strict` ends a run that goes wrong."""
    return tokenizer_config(OPQConfig())
