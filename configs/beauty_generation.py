"""HMAT on Amazon Beauty 2014 by generation alone: the next item's codes are generated, no other head is trained.

Paper: Hi-SAM (arXiv 2602.11799); protocol of TIGER (arXiv 2305.05065). Hardware: 2 CPU cores, half an hour of one.
Commands: hisam prepare --source sequences --raw DIR --text-encoder tfidf_svd:512 --image-encoder none --out DATASET
          hisam tokenize --dataset DATASET --config configs/tokenizer/dst.py --out IDS
          hisam train --dataset DATASET --ids IDS --config configs/beauty_generation.py --workdir RUN
"""

import ml_collections

from hisam_jax.data.pipeline import PipelineConfig
from hisam_jax.models.config import HMATConfig
from hisam_jax.training.assembly import EvaluationConfig, run_config
from hisam_jax.training.config import TrainingConfig
from hisam_jax.training.optimizer import OptimizerConfig


def get_config() -> ml_collections.ConfigDict:
    """What an anchor receives has item ids and features as ever; the list comes from the codes."""
    return run_config(
        seed=0,
        model=HMATConfig(
            width=128,
            layers=2,
            heads=4,
            kv_heads=4,
            mlp=344,
            dropout=0.2,
            generation=1.0,
            retrieval=0.0,
        ),
        data=PipelineConfig(
            items_per_row=64,
            window=50,
        ),
        training=TrainingConfig(
            steps=3000,
            optimizer=OptimizerConfig(
                weight_decay=0.1,
            ),
            log_every=50,
            save_every=500,
            evaluate_every=500,
            monitor="validation/generation/ndcg@10",
        ),
        evaluation=EvaluationConfig(
            beams=50,
        ),
    )
