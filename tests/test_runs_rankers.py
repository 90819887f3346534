"""QARM's ranker through the verbs: it trains, is evaluated and recommends from what `hisam tokenize` left."""

import json
from pathlib import Path

import numpy as np
import pytest

from hisam_jax.config import load_config
from hisam_jax.errors import UserError
from hisam_jax.evaluation.run import evaluate
from hisam_jax.inference.recommend import recommend
from hisam_jax.sharding import padded_rows
from hisam_jax.tokenizer.run import tokenize
from hisam_jax.training.run import train
from tests.fixtures import tiny_dataset

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SMALL = {
    "model.width": "8",
    "model.mlp": "16",
    "data.items_per_row": "32",
    "data.window": "16",
    "data.rows": "4",
    "training.steps": "6",
    "training.save_every": "6",
    "training.evaluate_every": "6",
    "training.monitor": "None",
    "evaluation.resamples": "20",
}


def tokens(root, **settings):
    small = {"sizes": "(4, 4)", "neighbours": "3", "iterations": "2", "steps": "9", **settings}
    tokenize(root / "data", CONFIGS / "tokenizer" / "qarm.py", root / "ids", {f"qarm.{k}": v for k, v in small.items()})


def test_a_ranker_goes_through_the_verbs(tmp_path):
    tiny_dataset(tmp_path / "data", users=40)
    tokens(tmp_path)
    train(
        tmp_path / "data", tmp_path / "ids", load_config(CONFIGS / "ml_latest_small_qarm.py", SMALL), tmp_path / "run"
    )
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) and row["loss"] == pytest.approx(row["loss/ranking"]) for row in rows)
    items = json.loads((tmp_path / "data" / "manifest.json").read_text())["items"]
    held = json.loads((tmp_path / "run" / "run.json").read_text())["parameters"]
    assert held["tables"] == 8 * (2 * padded_rows(items) + 2 * (4 + 1)) < held["total"], "ids, neighbours, two codes"
    result = evaluate(tmp_path / "run")
    assert "logloss" in result["ranking"] and "retrieval" not in result and "generation" not in result
    found = recommend(tmp_path / "run", history=["i1", "i5"], k=5)
    scores = [row["score"] for row in found]
    assert (
        len(found) == 5 and scores == sorted(scores, reverse=True) and not {"i1", "i5"} & {r["item_id"] for r in found}
    )


def test_features_of_codes_that_are_not_there_are_told(tmp_path):
    tiny_dataset(tmp_path / "data")
    tokens(tmp_path, alignment="False")
    config = load_config(CONFIGS / "ml_latest_small_qarm.py", SMALL | {"model.codes": "frozen"})
    with pytest.raises(UserError, match=r"aligned\.npy.*expected IDs of configs/tokenizer/qarm\.py"):
        train(tmp_path / "data", tmp_path / "ids", config, tmp_path / "run")
