"""QARM's codes (arXiv 2411.11739): 6 residual codes of 256, and each item's 25 nearest training items beside them.

Both are of item vectors aligned with the training interactions (`--config.qarm.alignment=False` takes the features as
they are). IDS/neighbours.npy and IDS/aligned.npy are features of the ranker (configs/ml_latest_small_qarm.py), no part
of the ID.

Hardware: 2 CPU cores. Wall time: seconds for ten thousand items, a minute for the adapter.
Command: hisam tokenize --dataset DATASET --config configs/tokenizer/qarm.py --out IDS
"""

import ml_collections

from hisam_jax.tokenizer.qarm_codes import QarmConfig
from hisam_jax.tokenizer.registry import tokenizer_config


def get_config() -> ml_collections.ConfigDict:
    """`collisions`: digit, next_nearest, sinkhorn or none; `alarms.strict` ends a run that goes wrong."""
    return tokenizer_config(QarmConfig())
