"""DST (Hi-SAM, arXiv 2602.11799): 2 shared codes, then 1 of text and 1 of image, 256 each.

Hardware: 2 CPU cores. Wall time: a minute or two for 1,000 steps; large catalogues want more of them, some 60 passes.
Expected: every level at least 90 % used on real posters and titles; on the shop with `--text-encoder word_vectors`, the
shared, text and image codes tell category, style, and colour with pattern (benchmarks/results/tokenizers.md).
Command: hisam tokenize --dataset DATASET --config configs/tokenizer/dst.py --out IDS
"""

import ml_collections

from hisam_jax.tokenizer.dst_config import DSTConfig
from hisam_jax.tokenizer.registry import tokenizer_config


def get_config() -> ml_collections.ConfigDict:
    """`collisions`: digit, next_nearest, sinkhorn or none; `alarms.strict` ends a run that goes wrong."""
    return tokenizer_config(DSTConfig())
