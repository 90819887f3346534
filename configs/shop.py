"""HMAT on the embedded shop: the demo.

Paper: Hi-SAM (arXiv 2602.11799). Hardware: 2 CPU cores. Every head together, actions on.
Commands: hisam prepare --source shop --protocol per_user_time --out demo/dataset
          hisam tokenize --dataset demo/dataset --config configs/tokenizer/dst.py --out demo/ids
          hisam train --dataset demo/dataset --ids demo/ids --config configs/shop.py --workdir demo/run
"""

import ml_collections

from hisam_jax.data.pipeline import PipelineConfig
from hisam_jax.models.config import HMATConfig
from hisam_jax.training.assembly import EvaluationConfig, run_config
from hisam_jax.training.config import TrainingConfig
from hisam_jax.training.optimizer import OptimizerConfig


def get_config() -> ml_collections.ConfigDict:
    """Sections `model`, `data`, `training`, `evaluation`; see `HMATConfig`, `PipelineConfig`, `TrainingConfig`."""
    return run_config(
        seed=0,
        model=HMATConfig(
            width=64,
            layers=2,
            id_dropout=0.2,
            actions=True,
            ranking=1.0,
            generation=0.3,
        ),
        data=PipelineConfig(
            items_per_row=128,
            rows=8,
            window=128,
        ),
        training=TrainingConfig(
            steps=500,
            optimizer=OptimizerConfig(
                warmup_steps=60,
                weight_decay=0.05,
            ),
            evaluate_every=250,
            monitor="validation/retrieval/recall@10",
        ),
        evaluation=EvaluationConfig(
            validation_users=500,
        ),
    )
