"""SASRec on MovieLens-1M, leave-one-out, with the softmax over all items as its loss: ids alone, no content.

Papers: SASRec (arXiv 1808.09781), the loss (arXiv 2309.07602). Hardware: 2 CPU cores.
Commands: hisam prepare --source sequences --raw DIR --out DATASET
          hisam tokenize --dataset DATASET --config configs/tokenizer/random.py --out IDS    (any IDs: none is read)
          hisam train --dataset DATASET --ids IDS --config configs/ml_1m_sasrec.py --workdir RUN
The loss of the first paper: add --config.model.loss=bce.
"""

import ml_collections

from hisam_jax.data.pipeline import PipelineConfig
from hisam_jax.models.sasrec import SASRecConfig
from hisam_jax.training.assembly import EvaluationConfig, run_config
from hisam_jax.training.config import TrainingConfig
from hisam_jax.training.optimizer import OptimizerConfig


def get_config() -> ml_collections.ConfigDict:
    """As many items a step as configs/ml_1m.py, and as many minutes: its steps cost less than a quarter.

    In configs/compare/ml_1m.py, where HMAT too takes these 4,000 steps, both see as many items.
    """
    return run_config(
        seed=0,
        model=SASRecConfig(
            width=64,
            layers=2,
            heads=2,
            positions=128,
            dropout=0.2,
        ),
        data=PipelineConfig(
            items_per_row=128,
            rows=12,
            window=128,
        ),
        training=TrainingConfig(
            steps=4000,
            optimizer=OptimizerConfig(
                learning_rate=3e-3,
                weight_decay=0.05,
            ),
            log_every=50,
            save_every=1000,
            evaluate_every=1000,
            max_minutes=20.0,
            monitor="validation/retrieval/ndcg@10",
        ),
        evaluation=EvaluationConfig(
            validation_users=1000,
        ),
    )
