"""Amazon Beauty 2014, leave-one-out, full ranking: HMAT against the sequence models that are published on it.

Command: hisam compare configs/compare/beauty.py --data DIR --out runs/compare-beauty --jobs 2
DIR holds amazon-beauty-2014/sequences.txt and items.csv. Hardware: 2 CPU cores, about an hour a seed.
Rows named `-retrained` train on the validation items as well, by recipes that were chosen on them: the public code of
HSTU (arXiv 2402.17152) holds out the last item alone, and tables that quote it mix both ways.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Metrics come masked (seen items left out) and unmasked, as published tables differ in this."""
    lists = [f"{name}/{metric}" for name in ("retrieval", "blend", "generation") for metric in ("recall@10", "ndcg@10")]
    unmasked = [f"{metric}/unmasked" for metric in lists]
    blend = {"evaluation": {"blend": 1.0}}
    retrained = blend | {"data": {"validation_too": True}, "training": {"monitor": None}}
    return ml_collections.ConfigDict(
        {
            "title": "Amazon Beauty 2014",
            "datasets": {
                "beauty": {
                    "title": "Amazon Beauty 2014, leave-one-out, text only",
                    "prepare": {
                        "source": "sequences", "raw": "{data}/amazon-beauty-2014",
                        "text-encoder": "tfidf_svd:512", "image-encoder": "none",
                    },
                    "metrics": (*lists, *unmasked),
                }
            },
            "tokenizers": {
                "dst": {"config": "configs/tokenizer/dst.py"},
                "rqvae": {"config": "configs/tokenizer/rqvae.py"},
            },
            "seeds": (0,),
            "reference": "sasrec-ce",
            "rows": (
                {
                    "name": "hmat", "config": "configs/beauty.py", "tokenizer": "dst", "group": "ours",
                    "overrides": blend,
                },
                {
                    "name": "hmat-generation", "config": "configs/beauty_generation.py", "tokenizer": "dst",
                    "group": "ours", "note": "semantic IDs alone, no retrieval head",
                },
                {
                    "name": "flat", "config": "configs/beauty.py", "tokenizer": "dst", "against": "hmat",
                    "overrides": {"model": {"anchors": False}}, "group": "ours",
                },
                {
                    "name": "sasrec-ce", "config": "configs/beauty_sasrec.py", "tokenizer": "dst",
                    "overrides": blend, "group": "published",
                },
                {
                    "name": "sasrec-bce", "config": "configs/beauty_sasrec.py", "tokenizer": "dst",
                    "overrides": {
                        "model": {"loss": "bce", "dropout": 0.4},
                        "training": {
                            "steps": 15_000, "evaluate_every": 3000, "save_every": 3000, "log_every": 500,
                            "optimizer": {"learning_rate": 1e-3},
                        },
                    },
                    "group": "published", "note": "as many minutes as sasrec-ce, eight times its steps",
                },
                {"name": "hstu", "config": "configs/beauty_hstu.py", "tokenizer": "dst", "group": "published"},
                {"name": "tiger", "config": "configs/beauty_tiger.py", "tokenizer": "rqvae", "group": "published"},
                {
                    "name": "hmat-retrained", "config": "configs/beauty.py", "tokenizer": "dst",
                    "against": "sasrec-ce-retrained", "overrides": retrained, "group": "on validation items too",
                },
                {
                    "name": "sasrec-ce-retrained", "config": "configs/beauty_sasrec.py", "tokenizer": "dst",
                    "against": "hmat-retrained", "overrides": retrained, "group": "on validation items too",
                },
            ),
        }
    )  # fmt: skip
