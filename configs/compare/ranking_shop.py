"""Ranking on the embedded shop at a million events, each user's last tenth held out: HMAT, DIN, QARM with each code.

Command: hisam compare configs/compare/ranking_shop.py --out runs/compare-ranking-shop --jobs 2
Needs no data. Hardware: 2 CPU cores, about 45 minutes of a core a seed, and 35 for
the two rows that have two seeds.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The recipes of MovieLens latest-small, with less decay: here is ten times the data.

    As many steps for all, 2.5 passes. DIN and QARM are best after two thirds of them; of decays of .1, .3 and 1
    validation likes .3 best with QARM, and with DIN as much as any; twice the width gives DIN nothing. HMAT's recipe
    was not sought.
    """
    training = {
        "steps": 2550,
        "evaluate_every": 425,
        "save_every": 425,
        "max_minutes": None,
        "log_every": 50,
        "monitor": "validation/auc",
    }
    evaluation = {"validation_users": 4000, "resamples": 300}
    data = {"items_per_row": 128, "rows": 8, "window": 64}

    def row(name: str, kind: str, tokenizer: str, against: str, note: str = "", seeds: tuple = (), **model) -> dict:
        decay = {"weight_decay": 0.1 if kind == "ranking" else 0.3, "decay_embeddings": True}
        same = {"training": training | {"optimizer": decay}, "evaluation": evaluation, "data": data}
        return {
            "name": name, "config": f"configs/ml_latest_small_{kind}.py", "tokenizer": tokenizer, "against": against,
            "group": {"ranking": "ours", "din": "DIN", "qarm": "QARM"}[kind], "overrides": same | {"model": model},
            "note": note, "seeds": seeds,
        }  # fmt: skip

    return ml_collections.ConfigDict(
        {
            "title": "Ranking, the shop at a million events",
            "datasets": {
                "shop": {
                    "title": "Embedded shop, 33,500 users, per_user_time",
                    "prepare": {
                        "source": "shop", "protocol": "per_user_time", "shop-users": 33_500, "shop-items": 4_000,
                    },
                    "note": "oracle: a rating's stars before its noise, by that day's tastes, which no model sees.",
                    "metrics": ("request/gauc", "ranking/gauc", "ranking/auc", "request/auc"),
                },
            },
            "tokenizers": {
                "dst": {"config": "configs/tokenizer/dst.py"},
                "random": {"config": "configs/tokenizer/random.py"},
                "qarm": {"config": "configs/tokenizer/qarm.py"},
                "qarm-balanced": {"config": "configs/tokenizer/qarm.py", "overrides": {"qarm": {"balanced": True}}},
            },
            "seeds": (0, 1, 2),
            "reference": "hmat",
            "pairs": (
                ("hmat", "din"), ("hmat", "qarm-both"), ("hmat", "qarm-vq"), ("hmat", "qarm-frozen"),
                ("hmat", "flat"), ("hmat", "hmat-ids"), ("hmat-ids", "din"),
                ("qarm-rq", "qarm-frozen"), ("qarm-vq", "qarm-frozen"),
                ("qarm-both", "qarm-rq"), ("qarm-both", "qarm-vq"),
                ("qarm-rq-balanced", "qarm-rq"), ("qarm-rq-balanced", "qarm-frozen"),
            ),
            "rows": (
                row("hmat", "ranking", "dst", "din", item_effect=True),
                row("din", "din", "qarm", "hmat"),
                *(row(f"qarm-{codes}", "qarm", "qarm", "din", codes=codes) for codes in ("frozen", "vq", "rq", "both")),
                row("qarm-rq-balanced", "qarm", "qarm-balanced", "din", "as many items fitted a code", codes="rq"),
                row("flat", "ranking", "dst", "hmat", seeds=(0, 1), item_effect=True, anchors=False),
                row(
                    "hmat-ids", "ranking", "random", "hmat", "ids alone; tokens of codes that say nothing", (0, 1),
                    item_effect=True, features=False, codes=False, id_dropout=0.0,
                ),
            ),
        }
    )  # fmt: skip
