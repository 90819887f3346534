"""Generative retrieval as in TIGER on Amazon Beauty 2014, leave-one-out: RQ-VAE codes in, the next item's codes out.

Paper: TIGER (arXiv 2305.05065); one causal transformer in place of its encoder and decoder, and no user token.
Hardware: 2 CPU cores, about half an hour of one.
Commands: hisam prepare --source sequences --raw DIR --text-encoder tfidf_svd:512 --image-encoder none --out DATASET
          hisam tokenize --dataset DATASET --config configs/tokenizer/rqvae.py --out IDS
          hisam train --dataset DATASET --ids IDS --config configs/beauty_tiger.py --workdir RUN
"""

import ml_collections

from hisam_jax.data.pipeline import PipelineConfig
from hisam_jax.models.config import HMATConfig
from hisam_jax.training.assembly import EvaluationConfig, run_config
from hisam_jax.training.config import TrainingConfig
from hisam_jax.training.optimizer import OptimizerConfig


def get_config() -> ml_collections.ConfigDict:
    """Neither item ids nor features nor times: what the model knows of an item is its codes."""
    return run_config(
        seed=0,
        model=HMATConfig(
            width=128,
            layers=4,
            heads=4,
            kv_heads=4,
            mlp=344,
            anchors=False,
            dropout=0.1,
            item_id=False,
            features=False,
            time_gap=False,
            past_action=False,
            generation=1.0,
            retrieval=0.0,
        ),
        data=PipelineConfig(
            items_per_row=64,
            rows=16,
            window=50,
        ),
        training=TrainingConfig(
            steps=3000,
            optimizer=OptimizerConfig(
                learning_rate=1e-3,
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
