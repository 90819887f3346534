"""What each part buys: tokenizers, anchors, heads, codes and the item-id embedding, on MovieLens latest-small.

Command: hisam compare configs/compare/ablations.py --data DIR --out runs/compare-ablations --jobs 2
DIR holds ml-latest-small and movielens-posters. Hardware: 2 CPU cores, about two hours.
"""

import ml_collections

from hisam_jax.comparison.tokenizers import dst, of_four_codes

CODES_ALONE = {"item_id": False, "features": False}


def get_config() -> ml_collections.ConfigDict:
    """Tokenizers are compared without item ids and features, where all that is known of an item is in its codes.

    Each has four codes of 256, but for the rows that are about their number.
    """

    def row(name: str, group: str, tokenizer: str = "dst", against: str = "hmat", monitor: str = "", **model) -> dict:
        watched = {"training": {"monitor": monitor}} if monitor else {}
        return {
            "name": name, "config": "configs/ml_latest_small.py", "tokenizer": tokenizer, "group": group,
            "against": against, "overrides": {"model": model, "evaluation": {"hybrid": True}, **watched},
        }  # fmt: skip

    halves = {f"codes-{n}": dst(shared=(256,) * (n - 2), specific={"text": (256,), "image": (256,)}) for n in (3, 6)}
    kinds = of_four_codes()
    tokenizers = kinds | halves
    return ml_collections.ConfigDict(
        {
            "title": "Ablations",
            "datasets": {
                "small": {
                    "title": "MovieLens latest-small with posters, leave-one-out",
                    "prepare": {
                        "source": "movielens", "raw": "{data}/ml-latest-small", "images": "{data}/movielens-posters",
                        "min-user": 5, "min-item": 5,
                    },
                    "metrics": ("hybrid/recall@10", "retrieval/recall@10", "generation/recall@10"),
                }
            },
            "tokenizers": tokenizers,
            "seeds": (0, 1, 2),
            "reference": "hmat",
            "rows": (
                row("hmat", "whole"),
                *(row(f"ids-{kind}", "tokenizers, codes alone", kind, "ids-dst", **CODES_ALONE) for kind in kinds),
                row("strict", "attention", strict=True),
                row("rope-flat", "attention", rope="flat"),
                row("rope-none", "attention", rope="none"),
                row("no-anchor-token", "attention", anchor_token=False),
                row("flat", "attention", anchors=False),
                row("retrieval-alone", "heads", generation=0.0),
                row("generation-alone", "heads", monitor="validation/generation/ndcg@10", retrieval=0.0),
                row("codes-3", "number of codes", "codes-3"),
                row("codes-6", "number of codes", "codes-6"),
                row("no-item-id", "item vector", item_id=False),
                row("no-features", "item vector", features=False),
                row("no-codes", "item vector", codes=False),
            ),
        }
    )  # fmt: skip
