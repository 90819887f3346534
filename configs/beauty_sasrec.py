"""SASRec on Amazon Beauty 2014, leave-one-out, with the softmax over all items as its loss: ids alone, no content.

Papers: SASRec (arXiv 1808.09781), the loss (arXiv 2309.07602). Hardware: 2 CPU cores.
Commands: hisam prepare --source sequences --raw DIR --out DATASET --image-encoder none
          hisam tokenize --dataset DATASET --config configs/tokenizer/random.py --out IDS    (any IDs: none is read)
          hisam train --dataset DATASET --ids IDS --config configs/beauty_sasrec.py --workdir RUN
Test, seen items masked: recall@10 .0803, ndcg@10 .0463 (unmasked .0715, .0358) after 8 passes over the data, one seed;
its validation curve had not turned. Published are .0859 and .0503 (arXiv 2309.07602).
The loss of the first paper: add --config.model.loss=bce.
"""

import ml_collections

from hisam_jax.data.pipeline import PipelineConfig
from hisam_jax.models.sasrec import SASRecConfig
from hisam_jax.training.assembly import EvaluationConfig, run_config
from hisam_jax.training.config import TrainingConfig
from hisam_jax.training.optimizer import OptimizerConfig


def get_config() -> ml_collections.ConfigDict:
    """Few rows: a pass over the data costs the same, and more steps of it learn more."""
    return run_config(
        seed=0,
        model=SASRecConfig(
            width=64,
            layers=2,
            heads=2,
            dropout=0.4,
        ),
        data=PipelineConfig(
            items_per_row=64,
            rows=8,
            window=50,
        ),
        training=TrainingConfig(
            steps=2400,
            optimizer=OptimizerConfig(
                learning_rate=3e-3,
                weight_decay=0.1,
                decay_embeddings=True,
            ),
            log_every=50,
            save_every=800,
            evaluate_every=800,
            max_minutes=20.0,
            monitor="validation/retrieval/ndcg@10",
        ),
        evaluation=EvaluationConfig(
            validation_users=4000,
        ),
    )
