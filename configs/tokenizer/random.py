"""Random codes, 3 of 256: the floor that every tokenizer must clear.

Hardware: any. Wall time: none to speak of.
Command: hisam tokenize --dataset DATASET --config configs/tokenizer/random.py --out IDS
"""

import ml_collections

from hisam_jax.tokenizer.random_codes import RandomConfig
from hisam_jax.tokenizer.registry import tokenizer_config


def get_config() -> ml_collections.ConfigDict:
    """`collisions`: digit, next_nearest, sinkhorn or none; `alarms.strict` ends a run that goes wrong."""
    return tokenizer_config(RandomConfig())
