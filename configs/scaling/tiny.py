"""A sweep that only shows that it works: two models, three sizes, three budgets; some two minutes on 2 quiet cores.

Command: hisam scale configs/scaling/tiny.py --out runs/scale-tiny --jobs 2
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The fields are those of `hisam_jax.scaling.sweep.Sweep`."""
    both = ("hmat", "flat")
    return ml_collections.ConfigDict(
        {
            "title": "A tiny sweep over the embedded shop",
            "data": {
                "prepare": {
                    "source": "shop", "shop_users": 200, "shop_items": 300, "shop_cold_items": 0,
                    "shop_events_per_user": 24, "image_encoder": "none",
                }
            },
            "tokenizer": {
                "config": "configs/tokenizer/residual_kmeans.py",
                "overrides": {"residual_kmeans": {"sizes": (16, 16)}},
            },
            "config": "configs/scaling/base.py",
            "models": {"hmat": {}, "flat": {"model": {"anchors": False}}},
            "sizes": {
                "w8": {"width": 8, "layers": 1, "heads": 1},
                "w16": {"width": 16, "layers": 1, "heads": 2},
                "w24": {"width": 24, "layers": 1, "heads": 2},
            },
            "parts": {
                "isoflop": {
                    "models": both, "sizes": ("w8", "w16", "w24"), "budgets": (1e9, 3e9, 1e10), "histories": (16,),
                },
                "history": {"models": both, "sizes": ("w16",), "budgets": (3e9,), "histories": (4,)},
            },
            "batch_items": 256,
        }
    )  # fmt: skip
