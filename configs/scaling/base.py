"""What cells of a sweep start from: the retrieval head alone, on users without end; `hisam scale` sets the sizes.

Steps, learning rate, width, depth, history and rows are the sweep's.
"""

import ml_collections

from hisam_jax.data.pipeline import PipelineConfig
from hisam_jax.models.config import HMATConfig
from hisam_jax.training.assembly import EvaluationConfig, run_config
from hisam_jax.training.config import TrainingConfig
from hisam_jax.training.optimizer import OptimizerConfig


def get_config() -> ml_collections.ConfigDict:
    """No dropout, as no user is seen twice."""
    return run_config(
        seed=0,
        model=HMATConfig(dropout=0.0, generation=0.0, retrieval=1.0),
        data=PipelineConfig(items_per_row=64, window=64, rows=16, endless=True),
        training=TrainingConfig(optimizer=OptimizerConfig(weight_decay=0.0, final_fraction=0.1)),
        evaluation=EvaluationConfig(resamples=200),
    )
