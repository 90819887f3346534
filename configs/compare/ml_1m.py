"""MovieLens-1M with posters, leave-one-out: HMAT, flat, ids alone and SASRec, and what each modality is worth.

Command: hisam compare configs/compare/ml_1m.py --data DIR --out runs/compare-ml-1m --jobs 2
DIR holds ml-1m and movielens-posters. Hardware: 2 CPU cores, two hours a seed.
"""

import ml_collections

THEIRS = "published models, trained here"


def get_config() -> ml_collections.ConfigDict:
    """Text alone and pictures alone are datasets of their own, over the same split.

    All see as many items, six passes over the data; SASRec takes a quarter of the minutes for it.
    """
    raw = {"source": "sequences", "raw": "{data}/ml-1m"}
    posters = raw | {"images": "{data}/movielens-posters"}
    training = {"training": {"steps": 4000, "evaluate_every": 1000, "save_every": 1000, "max_minutes": None}}

    def ours(**model) -> dict:
        return training | {"model": model}

    metrics = [f"{name}/{metric}" for name in ("retrieval", "generation") for metric in ("recall@10", "ndcg@10")]
    return ml_collections.ConfigDict(
        {
            "title": "MovieLens-1M",
            "datasets": {
                "both": {"title": "Text and posters", "prepare": posters, "metrics": metrics},
                "text": {"title": "Text alone", "prepare": raw | {"image-encoder": "none"}, "metrics": metrics},
                "posters": {
                    "title": "Posters alone", "prepare": posters | {"text-encoder": "none"}, "metrics": metrics,
                },
            },
            "tokenizers": {
                "dst": {"config": "configs/tokenizer/dst.py"},
                "random": {"config": "configs/tokenizer/random.py", "overrides": {"random": {"sizes": (256,) * 4}}},
            },
            "seeds": (0,),
            "reference": "sasrec-ce",
            "pairs": (
                ("hmat", "flat"), ("hmat-last-code", "flat"), ("hmat", "sasrec-ce"), ("sasrec-ce", "transitions"),
                ("hmat", "hmat-tied"), ("hmat", "ids-alone"),
            ),
            "across": (("both/hmat", "text/hmat"), ("both/hmat", "posters/hmat"), ("text/hmat", "posters/hmat")),
            "rows": (
                {
                    "name": "hmat", "config": "configs/ml_1m.py", "tokenizer": "dst", "group": "ours",
                    "overrides": ours(),
                },
                {
                    "name": "hmat-tied", "config": "configs/ml_1m.py", "tokenizer": "dst", "group": "ours",
                    "against": "hmat", "overrides": ours(tied_query=True),
                    "datasets": ("both",), "note": "the last state asks",
                },
                {
                    "name": "flat", "config": "configs/ml_1m.py", "tokenizer": "dst", "against": "hmat",
                    "overrides": ours(anchors=False), "group": "ours", "datasets": ("both",),
                },
                {
                    "name": "hmat-last-code", "config": "configs/ml_1m.py", "tokenizer": "dst", "against": "flat",
                    "overrides": ours(anchor_token=False), "group": "ours", "datasets": ("both",),
                    "note": "the last code is the anchor: as many tokens an item as flat has",
                },
                {
                    "name": "ids-alone", "config": "configs/ml_1m.py", "tokenizer": "random", "against": "hmat",
                    "overrides": ours(features=False, codes=False, id_dropout=0.0), "group": "ours",
                    "datasets": ("both",), "note": "tokens of codes that say nothing",
                },
                {
                    "name": "sasrec-ce", "config": "configs/ml_1m_sasrec.py", "tokenizer": "dst", "group": THEIRS,
                    "datasets": ("both",),
                },
            ),
        }
    )  # fmt: skip
