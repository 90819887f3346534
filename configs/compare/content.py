"""What ids, features and codes are worth on MovieLens-1M: without each other, by each modality, by every tokenizer.

Command: hisam compare configs/compare/content.py --data DIR --out runs/compare-content --jobs 2
DIR holds ml-1m and movielens-posters. Hardware: 2 CPU cores, about an hour and a half
for the first seed, half an hour for the second.
"""

import ml_collections

from hisam_jax.comparison.tokenizers import four, of_four_codes

CODES_ALONE = {"item_id": False, "features": False}
EACH = ("both", "text", "posters")
TWO = (0, 1)  # seeds of what claims rest on: the whole DST, and these
LEADING = ("dst-no-mi", "dst-specific", "rqvae", "random", "balanced_kmeans")
NOTE = "A row of two seeds has its tokenizer fitted anew for each; its parameters are those of the first."


def get_config() -> ml_collections.ConfigDict:
    """1.2 passes over the data, which favours content: ids need more. 6,040 users tell more rows apart than 608 do.

    User vectors are tied: on MovieLens-1M they learn faster than projected ones.

    All tokenizers have four codes of 256. An item's codes are learnt from its own events too, so that random ones are
    an id of few parameters: what content is worth to codes is how far the others are ahead of them. Those that claims
    rest on have two seeds, of the tokenizer and the model that reads it together.
    """
    raw = {"source": "sequences", "raw": "{data}/ml-1m"}
    posters = raw | {"images": "{data}/movielens-posters"}
    prepared = {
        "both": ("Text and posters", posters),
        "text": ("Text alone", raw | {"image-encoder": "none"}),
        "posters": ("Posters alone", posters | {"text-encoder": "none"}),
    }
    metrics = [f"{name}/{metric}" for name in ("retrieval", "generation") for metric in ("recall@10", "ndcg@10")]

    tokenizers = of_four_codes() | {"balanced_kmeans": four("residual_kmeans", balanced=True)}

    def row(
        name: str, group: str, tokenizer="dst", against="hmat", datasets=("both",), note="", seeds=(), **model
    ) -> dict:
        return {
            "name": name, "config": "configs/ml_1m.py", "tokenizer": tokenizer, "group": group, "against": against,
            "datasets": datasets, "note": note, "seeds": seeds,
            "overrides": {"model": {"tied_query": True} | model, "training": {"max_minutes": None}},
        }  # fmt: skip

    return ml_collections.ConfigDict(
        {
            "title": "Content on MovieLens-1M",
            "datasets": {
                name: {"title": title, "prepare": source, "metrics": metrics, "note": NOTE}
                for name, (title, source) in prepared.items()
            },
            "tokenizers": {name: entry | {"seeded": True} for name, entry in tokenizers.items()},
            "seeds": (0,),
            "reference": "hmat",
            "pairs": (
                ("hmat", "ids-alone"), ("ids-never-hidden", "ids-alone"), ("hmat", "no-item-id"),
                ("no-item-id", "codes-dst"), ("codes-dst", "codes-random"),
                ("codes-balanced_kmeans", "codes-residual_kmeans"),
            ),
            "across": tuple(
                (f"both/{name}", f"{one}/{name}") for name in ("hmat", "no-item-id", "codes-dst") for one in EACH[1:]
            ),
            "rows": (
                row("hmat", "whole", datasets=EACH),
                row("ids-never-hidden", "whole", id_dropout=0.0, note="as in ids-alone"),
                row(
                    "ids-alone", "parts", "random", features=False, codes=False, id_dropout=0.0,
                    note="tokens of codes that say nothing",
                ),
                row(
                    "features-alone", "parts", "random", item_id=False, codes=False,
                    note="tokens of codes that say nothing",
                ),
                row("no-item-id", "parts", datasets=EACH, item_id=False, note="features and codes"),
                row("codes-dst", "codes alone", datasets=EACH, seeds=TWO, **CODES_ALONE),
                *(
                    row(
                        f"codes-{name}", "codes alone", name, "codes-dst", seeds=TWO if name in LEADING else (),
                        **CODES_ALONE,
                    )
                    for name in tokenizers if name != "dst"
                ),
            ),
        }
    )  # fmt: skip
