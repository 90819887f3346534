"""What the `hmat_*` configs share: bf16, recomputed blocks, rows of 512 items, a catalogue of 200,000 items."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from hisam_jax.data.pipeline import PipelineConfig
from hisam_jax.models.config import HMATConfig
from hisam_jax.training.assembly import EvaluationConfig, run_config
from hisam_jax.training.config import TrainingConfig
from hisam_jax.training.optimizer import OptimizerConfig


def scaling_config(
    *,
    width: int,
    layers: int,
    heads: int,
    mlp: int,
    learning_rate: float,
    targets: Mapping[str, Mapping[str, Any]] | None = None,
) -> ml_collections.ConfigDict:
    """A run of one pass over a large log; `catalogue` is what `hisam compile` takes the data to be."""
    config = run_config(
        seed=0,
        model=HMATConfig(
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=heads,
            mlp=mlp,
            dropout=0.0,
            dtype="bfloat16",
            remat="all",
            item_id_rows=65_536,
            softmax_items=20_000,
            negatives=8192,
        ),
        data=PipelineConfig(items_per_row=512, window=512, rows=256, streams=64),
        training=TrainingConfig(
            steps=20_000,
            log_every=50,
            save_every=500,
            evaluate_every=2_000,
            optimizer=OptimizerConfig(learning_rate=learning_rate, warmup_steps=1_000, weight_decay=0.1),
        ),
        evaluation=EvaluationConfig(),
    )
    config.catalogue = ml_collections.ConfigDict(
        {"items": 200_000, "levels": (256, 256, 256, 256), "digit": 64, "features": {"text": 384, "image": 768}}
    )
    config.targets = targets or {}
    return config
