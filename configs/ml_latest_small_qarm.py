"""QARM's ranker on MovieLens latest-small with posters, `per_user_time`: ids and codes, AUC and GAUC.

Paper: QARM (arXiv 2411.11739). Hardware: 2 CPU cores.
Commands: those of configs/ml_latest_small_ranking.py, with this config and IDs of configs/tokenizer/qarm.py
(`hisam tokenize`). What codes buy: `--config.model.codes=frozen`, `vq` or `rq`, beside configs/ml_latest_small_din.py.
"""

import ml_collections

from hisam_jax.data.pipeline import PipelineConfig
from hisam_jax.models.qarm_config import QarmRankerConfig
from hisam_jax.training.assembly import EvaluationConfig, run_config
from hisam_jax.training.config import TrainingConfig
from hisam_jax.training.optimizer import OptimizerConfig


def get_config() -> ml_collections.ConfigDict:
    """Both kinds of codes, beside all that DIN reads."""
    return run_config(
        seed=0,
        model=QarmRankerConfig(codes="both", dropout=0.3),
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
