"""HMAT on Amazon Beauty 2014, leave-one-out, titles and categories only.

Paper: Hi-SAM (arXiv 2602.11799); protocol of TIGER (arXiv 2305.05065). Hardware: 2 CPU cores.
Commands: hisam prepare --source sequences --raw DIR --out DATASET --image-encoder none
          hisam tokenize --dataset DATASET --config configs/tokenizer/dst.py --out IDS
          hisam train --dataset DATASET --ids IDS --config configs/beauty.py --workdir RUN
The flat baseline: add --config.model.anchors=False.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The sequences are short: rows of 64 items pack many users."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "model": {
                "width": 64,
                "layers": 2,
                "heads": 2,
                "kv_heads": 2,
                "mlp": 172,
                "dropout": 0.2,
                "id_dropout": 0.1,
                "anchors": True,
                "strict": False,
                "actions": False,
                "ranking": 0.0,
                "generation": 0.1,
                "retrieval": 1.0,
            },
            "data": {"items_per_row": 64, "rows": 16, "window": 50, "workers": 0},
            "training": {
                "steps": 1500,
                "optimizer": {"learning_rate": 2e-3, "warmup_steps": 100, "weight_decay": 0.1},
                "log_every": 50,
                "save_every": 300,
                "evaluate_every": 300,
                "keep": 2,
                "max_minutes": 20.0,
                "monitor": "validation/retrieval/ndcg@10",
                "patience": 0,
            },
            "evaluation": {"beams": 20, "validation_users": 2000, "resamples": 1000, "samples": 8},
        }
    )
