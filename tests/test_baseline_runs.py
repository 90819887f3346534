"""Baselines by the verbs: each trains, evaluates and recommends on a tiny dataset; what is not served is refused."""

import dataclasses

import ml_collections
import numpy as np
import pytest

from hisam_jax.config import load_config
from hisam_jax.data.dataset import Dataset
from hisam_jax.errors import UserError
from hisam_jax.evaluation.run import evaluate
from hisam_jax.inference.export import export
from hisam_jax.inference.recommend import recommend
from hisam_jax.inference.run import load_run
from hisam_jax.models.config import HMATConfig
from hisam_jax.models.qarm_config import DINConfig, QarmRankerConfig
from hisam_jax.serving.limits import Limits
from hisam_jax.serving.release import Release
from hisam_jax.tokenizer.run import tokenize
from hisam_jax.training.run import train
from tests.fixtures import tiny_dataset

SASREC = {"width": 16, "mlp": 16, "layers": 1, "positions": 16}
CODES_ONLY = {"item_id": False, "features": False, "time_gap": False, "past_action": False, "retrieval": 0.0}
HSTU = {"width": 16, "layers": 1, "anchors": False, "block": "hstu", **CODES_ONLY}


def _config(architecture, model, monitor):
    return ml_collections.ConfigDict(
        {
            "seed": 3,
            "architecture": architecture,
            "model": model,
            "data": {"items_per_row": 32, "rows": 4, "window": 16},
            "training": {"steps": 6, "log_every": 3, "save_every": 6, "monitor": f"validation/{monitor}/ndcg@10"},
            "evaluation": {"resamples": 20, "rows": 16, "beams": 10},
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("baselines")
    tiny_dataset(root / "dataset", users=30, items=50, seed=1)
    tokenize(root / "dataset", load_config("configs/tokenizer/random.py", {"random.sizes": "(8, 8)"}), root / "ids")
    return root


def test_sasrec_trains_evaluates_and_recommends_what_was_trained_and_is_not_served(folder):
    train(folder / "dataset", folder / "ids", _config("sasrec", SASREC, "retrieval"), folder / "sasrec")
    result, run = evaluate(folder / "sasrec"), load_run(folder / "sasrec")
    assert {"recall@10", "ndcg@10"} <= set(result["retrieval"]) and not {"generation", "ranking"} & set(result)
    dataset = run.assembly.dataset
    found = {row["item_id"] for row in recommend(folder / "sasrec", user=dataset.users["user_id"][5], k=50)}
    unseen = np.setdiff1d(np.flatnonzero(dataset.train_items), dataset.sequence(5).item)
    assert found == set(dataset.items["item_id"][unseen.tolist()])
    for refused in (lambda: export(folder / "sasrec", folder / "release"), lambda: Release(run, Limits())):
        with pytest.raises(UserError, match="architecture 'sasrec' is a baseline"):
            refused()


def test_generation_from_codes_alone_with_the_blocks_of_hstu_runs_from_end_to_end(folder):
    train(folder / "dataset", folder / "ids", _config("hmat", HSTU, "generation"), folder / "hstu")
    result = evaluate(folder / "hstu")
    assert {"recall@10", "ndcg@10"} <= set(result["generation"]) and not {"retrieval", "ranking"} & set(result)
    assert len(recommend(folder / "hstu", user=Dataset.load(folder / "dataset").users["user_id"][5], k=5)) == 5

    assembly = load_run(folder / "hstu").assembly
    usual = dataclasses.replace(assembly.configs, model=HMATConfig())
    assert assembly.identity()["model"]["block"] == "hstu"
    assert "block" not in dataclasses.replace(assembly, configs=usual).identity()["model"], "older runs are read still"
    rankers = QarmRankerConfig(), QarmRankerConfig(cross="mean"), QarmRankerConfig(codes="frozen"), DINConfig()
    kept = [
        dataclasses.replace(assembly, configs=dataclasses.replace(assembly.configs, model=model)).identity()["model"]
        for model in rankers
    ]
    assert [model.get("cross") for model in kept] == ["attention", None, None, None]


def test_positions_fewer_than_the_window_are_refused(folder):
    with pytest.raises(UserError, match=r"model.positions.*at least data.window, 16"):
        config = _config("sasrec", {**SASREC, "positions": 8}, "retrieval")
        train(folder / "dataset", folder / "ids", config, folder / "other")
