"""hisam_jax: semantic IDs and hierarchical memory-anchor transformers for multi-modal recommendation.

What a notebook needs is here by name and imported at first use, so that `import hisam_jax as hisam` costs nothing.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOME = {
    "UserError": "hisam_jax.errors",
    "load_config": "hisam_jax.config",
    "Dataset": "hisam_jax.data.dataset",
    "prepare": "hisam_jax.data.prepare",
    "DSTConfig": "hisam_jax.tokenizer.dst_config",
    "SemanticIDTable": "hisam_jax.tokenizer.semantic_ids",
    "load_tokenizer": "hisam_jax.tokenizer.registry",
    "tokenizer_config": "hisam_jax.tokenizer.registry",
    "tokenize": "hisam_jax.tokenizer.run",
    "anchor_attention": "hisam_jax.kernels.anchor_attention",
    "HMAT": "hisam_jax.models.hmat",
    "HMATConfig": "hisam_jax.models.config",
    "PipelineConfig": "hisam_jax.data.pipeline",
    "EvaluationConfig": "hisam_jax.training.assembly",
    "OptimizerConfig": "hisam_jax.training.optimizer",
    "TrainingConfig": "hisam_jax.training.config",
    "run_config": "hisam_jax.training.assembly",
    "train": "hisam_jax.training.run",
    "evaluate": "hisam_jax.evaluation.run",
    "recommend": "hisam_jax.inference.recommend",
    "report": "hisam_jax.evaluation.report",
    "item_grid": "hisam_jax.evaluation.item_grid",
}
__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'hisam_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
