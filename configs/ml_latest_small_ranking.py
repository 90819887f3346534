"""HMAT on MovieLens latest-small with posters, `per_user_time` or `chronological`: click probability, AUC and GAUC.

Paper: Hi-SAM (arXiv 2602.11799), whose task this is. Hardware: 2 CPU cores.
Commands: hisam prepare --source movielens --raw DIR --images POSTERS --protocol per_user_time --min-user 5 \
              --min-item 5 --out DATASET
          hisam tokenize --dataset DATASET --config configs/tokenizer/dst.py --out IDS
          hisam train --dataset DATASET --ids IDS --config configs/ml_latest_small_ranking.py --workdir RUN
The flat baseline: add --config.model.anchors=False.
"""

import ml_collections

from hisam_jax.data.pipeline import PipelineConfig
from hisam_jax.models.config import HMATConfig
from hisam_jax.training.assembly import EvaluationConfig, run_config
from hisam_jax.training.config import TrainingConfig
from hisam_jax.training.optimizer import OptimizerConfig


def get_config() -> ml_collections.ConfigDict:
    """Target and action tokens on; a little retrieval keeps the item vectors honest."""
    return run_config(
        seed=0,
        model=HMATConfig(
            width=64,
            layers=2,
            dropout=0.2,
            id_dropout=0.1,
            actions=True,
            ranking=1.0,
            generation=0.0,
            retrieval=0.1,
        ),
        data=PipelineConfig(
            items_per_row=128,
            rows=8,
            window=128,
        ),
        training=TrainingConfig(
            steps=700,
            optimizer=OptimizerConfig(
                warmup_steps=60,
                weight_decay=0.1,
            ),
            log_every=30,
            save_every=150,
            evaluate_every=150,
            max_minutes=20.0,
            monitor="validation/gauc",
        ),
        evaluation=EvaluationConfig(
            validation_users=0,
        ),
    )
