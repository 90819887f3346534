"""DIN on MovieLens latest-small, `per_user_time`: the ranker of configs/ml_latest_small_qarm.py without codes.

Paper: DIN (arXiv 1706.06978). Hardware: 2 CPU cores.
Commands: those of configs/ml_latest_small_ranking.py, with this config; any table of IDs does, none is read.
"""

import ml_collections

from hisam_jax.data.pipeline import PipelineConfig
from hisam_jax.models.qarm_config import DINConfig
from hisam_jax.training.assembly import EvaluationConfig, run_config
from hisam_jax.training.config import TrainingConfig
from hisam_jax.training.optimizer import OptimizerConfig


def get_config() -> ml_collections.ConfigDict:
    """Ids, histories with their ratings under target attention, and the user's share of positives."""
    return run_config(
        seed=0,
        model=DINConfig(dropout=0.3),
        data=PipelineConfig(
            items_per_row=128,
            rows=8,
            window=128,
        ),
        training=TrainingConfig(
            steps=300,
            optimizer=OptimizerConfig(
                learning_rate=2e-3,
                warmup_steps=60,
                weight_decay=1.0,
                decay_embeddings=True,
            ),
            log_every=30,
            save_every=50,
            evaluate_every=50,
            max_minutes=20.0,
            monitor="validation/gauc",
        ),
        evaluation=EvaluationConfig(
            validation_users=0,
        ),
    )
