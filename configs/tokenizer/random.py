"""Random codes, 3 of 256: the floor that every tokenizer must clear.

Hardware: any. Wall time: none to speak of.
Command: hisam tokenize --dataset DATASET --config configs/tokenizer/random.py --out IDS
"""

import dataclasses

import ml_collections

from hisam_jax.tokenizer.alarms import AlarmConfig
from hisam_jax.tokenizer.random_codes import RandomConfig


def get_config() -> ml_collections.ConfigDict:
    """`collisions`: digit, next_nearest, sinkhorn or none; `alarms.strict` ends a run that goes wrong."""
    alarms, settings = dataclasses.asdict(AlarmConfig()), dataclasses.asdict(RandomConfig())
    return ml_collections.ConfigDict(
        {"name": "random", "seed": 0, "collisions": "digit", "alarms": alarms, "random": settings}
    )
