"""Ranking, MovieLens latest-small with posters, each user's last tenth held out: HMAT, DIN and QARM with each code.

Command: hisam compare configs/compare/ranking.py --data DIR --out runs/compare-ranking --jobs 2
DIR holds ml-latest-small and movielens-posters. Hardware: 2 CPU cores, about 40 minutes.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """QARM's order, as its paper has it: frozen vector < residual codes, neighbours < both, over the base of IDs."""
    metrics = ("ranking/gauc", "ranking/auc")
    files = {"small": "configs/ml_latest_small_{}.py", "shop": "configs/shop_{}.py"}

    def config(kind: str) -> dict[str, str]:
        return {dataset: file.format(kind) for dataset, file in files.items()}

    codes = [
        {
            "name": f"qarm-{codes}", "config": config("qarm"), "tokenizer": "qarm", "group": "QARM", "against": "din",
            "overrides": {"model": {"codes": codes}},
        }
        for codes in ("frozen", "vq", "rq", "both")
    ]  # fmt: skip
    return ml_collections.ConfigDict(
        {
            "title": "Ranking",
            "datasets": {
                "small": {
                    "title": "MovieLens latest-small with posters, per_user_time",
                    "prepare": {
                        "source": "movielens", "raw": "{data}/ml-latest-small", "images": "{data}/movielens-posters",
                        "min-user": 5, "min-item": 5, "protocol": "per_user_time",
                    },
                    "metrics": metrics,
                },
            },
            "tokenizers": {
                "dst": {"config": "configs/tokenizer/dst.py"},
                "qarm": {"config": "configs/tokenizer/qarm.py"},
            },
            "seeds": (0, 1, 2),
            "reference": "hmat",
            "rows": (
                {"name": "hmat", "config": config("ranking"), "tokenizer": "dst", "group": "ours"},
                {
                    "name": "flat", "config": config("ranking"), "tokenizer": "dst", "group": "ours",
                    "overrides": {"model": {"anchors": False}},
                },
                {"name": "din", "config": config("din"), "tokenizer": "qarm", "group": "DIN"},
                *codes,
            ),
        }
    )  # fmt: skip
