"""The flat model with the blocks of HSTU on Amazon Beauty 2014, leave-one-out, titles and categories only.

Paper: HSTU (arXiv 2402.17152); its block alone, over the tokens of semantic IDs. Hardware: 2 CPU cores.
Commands: hisam prepare --source sequences --raw DIR --text-encoder tfidf_svd:512 --image-encoder none --out DATASET
          hisam tokenize --dataset DATASET --config configs/tokenizer/dst.py --out IDS
          hisam train --dataset DATASET --ids IDS --config configs/beauty_hstu.py --workdir RUN
The transformer's blocks: add --config.model.block=transformer.
"""

import ml_collections

from hisam_jax.data.pipeline import PipelineConfig
from hisam_jax.models.config import HMATConfig
from hisam_jax.training.assembly import EvaluationConfig, run_config
from hisam_jax.training.config import TrainingConfig
from hisam_jax.training.optimizer import OptimizerConfig


def get_config() -> ml_collections.ConfigDict:
    """As configs/beauty.py but for the model's blocks."""
    return run_config(
        seed=0,
        model=HMATConfig(
            width=64,
            layers=2,
            anchors=False,
            block="hstu",
            dropout=0.2,
            tied_query=True,
            generation=0.0,
        ),
        data=PipelineConfig(
            items_per_row=64,
            window=50,
        ),
        training=TrainingConfig(
            steps=1800,
            optimizer=OptimizerConfig(
                weight_decay=0.01,
                learning_rate=0.003,
            ),
            log_every=50,
            save_every=600,
            evaluate_every=600,
            max_minutes=40.0,
            monitor="validation/retrieval/ndcg@10",
        ),
        evaluation=EvaluationConfig(validation_users=4000),
    )
