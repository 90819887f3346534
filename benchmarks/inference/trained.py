"""A shop of which half the items are late or never sold, and models trained on it alike: HMAT and its flat twin."""

from __future__ import annotations

from pathlib import Path

from hisam_jax.config import load_config
from hisam_jax.data.prepare import prepare
from hisam_jax.tokenizer.run import tokenize
from hisam_jax.training.run import train

SHOP = {"users": 5_000, "items": 10_000, "cold_items": 0.5}
STEPS = 1_000
KINDS = {"HMAT": {}, "flat": {"model.anchors": "False"}}
RECIPE = (
    f"`configs/shop.py`, every head at weight 1, on a shop of {SHOP['users']:,} users and {SHOP['items']:,} "
    "items, half of which come in the last tenth of the time or are never sold; codes by residual k-means"
)


def trained(folder: Path, kind: str = "HMAT", quick: bool = False, steps: int = STEPS) -> Path:
    """The run of a kind of model over that shop, trained for `steps`; what is there already is kept."""
    folder = folder / "quick" if quick else folder
    if not (folder / "dataset").is_dir():
        options = {**SHOP, **({"users": 300, "items": 600} if quick else {})}
        prepare(
            "shop", folder / "raw", folder / "dataset", protocol="per_user_time", reader_options=options,
            cache_dir=folder / "cache",
        )  # fmt: skip
    if not (folder / "ids").is_dir():
        tokenize(folder / "dataset", load_config("configs/tokenizer/residual_kmeans.py"), folder / "ids")
    run = folder / (kind if steps == STEPS else f"{kind}-{steps}")
    over = {"training.steps": str(4 if quick else steps), "training.evaluate_every": "0", "training.monitor": "None"}
    over |= {"model.generation": "1.0", "evaluation.beams": "20", "evaluation.validation_users": "64"}
    train(folder / "dataset", folder / "ids", load_config("configs/shop.py", {**over, **KINDS[kind]}), run)
    return run
