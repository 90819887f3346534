"""HMAT on MovieLens-1M with posters, leave-one-out: generation and retrieval.

Paper: Hi-SAM (arXiv 2602.11799). Hardware: 2 CPU cores.
Commands: hisam prepare --source sequences --raw DIR --images POSTERS --out DATASET
          hisam tokenize --dataset DATASET --config configs/tokenizer/dst.py --out IDS
          hisam train --dataset DATASET --ids IDS --config configs/ml_1m.py --workdir RUN
The flat baseline: add --config.model.anchors=False.
"""

import ml_collections

from hisam_jax.data.pipeline import PipelineConfig
from hisam_jax.models.config import HMATConfig
from hisam_jax.training.assembly import EvaluationConfig, run_config
from hisam_jax.training.config import TrainingConfig
from hisam_jax.training.optimizer import OptimizerConfig


def get_config() -> ml_collections.ConfigDict:
    """A few passes over a million events is what 20 minutes on a CPU allow."""
    return run_config(
        seed=0,
        model=HMATConfig(
            width=64,
            layers=2,
            id_dropout=0.05,
            generation=0.2,
        ),
        data=PipelineConfig(
            items_per_row=128,
            rows=12,
            window=128,
        ),
        training=TrainingConfig(
            steps=800,
            optimizer=OptimizerConfig(
                learning_rate=0.003,
                weight_decay=0.05,
            ),
            log_every=50,
            evaluate_every=400,
            max_minutes=20.0,
            monitor="validation/retrieval/ndcg@10",
        ),
        evaluation=EvaluationConfig(
            validation_users=1000,
        ),
    )
