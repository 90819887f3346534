"""A small grid that needs no data: HMAT, the flat baseline and random IDs on the embedded shop.

Command: hisam compare configs/compare/shop.py --out runs/compare-shop   (about 15 minutes on 2 CPU cores)
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The fields are those of `hisam_jax.comparison.grid.Grid`; rows come in the order of the tables."""
    quick = {"training": {"steps": 300, "evaluate_every": 150}}
    return ml_collections.ConfigDict(
        {
            "title": "The embedded shop",
            "datasets": {
                "shop": {
                    "title": "Embedded shop, 2,500 users",
                    "prepare": {"source": "shop", "protocol": "per_user_time"},
                    "metrics": ("ranking/gauc", "retrieval/recall@10", "generation/recall@10"),
                }
            },
            "tokenizers": {
                "dst": {"config": "configs/tokenizer/dst.py"},
                "random": {"config": "configs/tokenizer/random.py"},
            },
            "seeds": (0,),
            "reference": "hmat",
            "rows": (
                {"name": "hmat", "config": "configs/shop.py", "tokenizer": "dst", "overrides": quick},
                {
                    "name": "flat", "config": "configs/shop.py", "tokenizer": "dst",
                    "overrides": quick | {"model": {"anchors": False}}, "note": "every token sees every earlier one",
                },
                {
                    "name": "random-ids", "config": "configs/shop.py", "tokenizer": "random", "overrides": quick,
                    "note": "codes that say nothing of an item",
                },
            ),
        }
    )  # fmt: skip
