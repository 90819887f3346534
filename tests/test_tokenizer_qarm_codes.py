"""QARM: residual codes, and neighbours that are training items, never the item itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fixtures import tiny_dataset
from tokenizer_fixtures import planted

from hisam_jax.errors import UserError
from hisam_jax.files import sha256_file
from hisam_jax.tokenizer import registry
from hisam_jax.tokenizer.qarm_codes import Qarm, QarmConfig, fit_qarm
from hisam_jax.tokenizer.residual_kmeans import ResidualKMeansConfig, fit_residual_kmeans
from hisam_jax.tokenizer.run import tokenize

CONFIG = QarmConfig(sizes=(8, 8), neighbours=4, iterations=3)


@pytest.fixture(scope="module")
def model():
    features, present, truth = planted(150, categories=5, styles=1, colours=1, width=8)
    present["text"][7] = present["image"][7] = False
    train = np.arange(150) % 3 > 0
    return fit_qarm(CONFIG, features, present, train, 0), features, present, train, truth


def test_the_id_is_that_of_residual_kmeans(model):
    qarm, features, present, train, _ = model
    plain = fit_residual_kmeans(ResidualKMeansConfig((8, 8), 3), features, present, train, 0)
    assert np.array_equal(qarm.assign(features, present), plain.assign(features, present))
    assert [level.name for level in qarm.levels] == ["shared/0", "shared/1"]
    assert QarmConfig().sizes == (256,) * 6 and QarmConfig().neighbours == 25


def test_neighbours_are_the_nearest_training_items(model):
    qarm, features, present, train, truth = model
    found = qarm.item_features(features, present)["neighbours"]
    x = qarm.residual.joined.at(features, present, slice(None))
    has = present["text"] | present["image"]
    distance = ((x[:, None] - x[None]) ** 2).sum(-1)
    distance[:, ~(train & has)] = np.inf
    np.fill_diagonal(distance, np.inf)
    assert np.array_equal(found[has], distance.argsort(1, kind="stable")[has, :4]) and found.dtype == np.int32
    assert np.all(found[~has] == -1)
    assert (truth["category"][found[has]] == truth["category"][has][:, None]).mean() > 0.9


def test_items_given_apart_have_the_same_neighbours(model):
    qarm, features, present, *_ = model
    whole = qarm.item_features(features, present)["neighbours"]
    part = ({m: v[60:90] for m, v in each.items()} for each in (features, present))
    assert np.array_equal(qarm.item_features(*part, first_row=60)["neighbours"], whole[60:90])


def test_training_items_keep_their_ids_through_a_file_and_another_order(model):
    qarm, features, present, train, _ = model
    rng = np.random.default_rng(0)
    ids = pl.Series("item_id", [f"item {row}\u2028\0" for row in range(150)])
    whole = qarm.item_features(features, present)["neighbours"]
    rows = rng.permutation(150)[:120]
    moved = qarm.named(ids).renumbered(ids.gather(rows))
    moved = Qarm.from_state(*moved.state())
    assert moved.item_ids.to_list() == ids.filter(pl.Series(train & (present["text"] | present["image"]))).to_list()
    found = moved.item_features(*({m: v[rows] for m, v in each.items()} for each in (features, present)))["neighbours"]
    where = np.full(151, -1)
    where[rows] = np.arange(120)
    assert np.array_equal(found, where[whole[rows]]), "a vanished one is -1, no item is its own neighbour"
    assert np.array_equal(moved.renumbered(ids).rows_T, qarm.rows_T) and (moved.rows_T < 0).any()


def test_fewer_training_items_than_neighbours_are_padded():
    features, present, _ = planted(6, categories=2, width=4, missing=0.0)
    train = np.arange(6) < 3
    found = fit_qarm(CONFIG, features, present, train, 0).item_features(features, present)["neighbours"]
    assert (found >= 0).sum(1).tolist() == [2, 2, 2, 3, 3, 3] and np.all(np.sort(found)[:, 0] == -1)
    with pytest.raises(UserError, match="qarm.neighbours"):
        fit_qarm(QarmConfig(sizes=(4,), neighbours=0), features, present, train, 0)


def test_tokenize_leaves_the_neighbours_beside_the_table_with_their_checksum(tmp_path):
    dataset = tiny_dataset(tmp_path / "dataset")
    config = Path(__file__).resolve().parents[1] / "configs" / "tokenizer" / "qarm.py"
    out = tmp_path / "ids"
    tokenize(
        dataset.path,
        config,
        out,
        {"qarm.sizes": "(4, 4)", "qarm.neighbours": "3", "qarm.iterations": "2", "qarm.steps": "9"},
    )
    stored = np.load(out / "neighbours.npy")
    qarm = registry.load_tokenizer(out)
    assert np.array_equal(stored, qarm.item_features(dataset.features, dataset.present)["neighbours"])
    files = json.loads((out / "manifest.json").read_text())["files"]
    assert files["neighbours.npy"] == sha256_file(out / "neighbours.npy")
