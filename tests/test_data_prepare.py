"""`prepare` from end to end on a small source in MovieLens form, and on the public sets where they are."""

from __future__ import annotations

import io
import json
import random

import numpy as np
import polars as pl
import pytest
from PIL import Image
from raw_fixtures import movielens_rows, write_movielens

from hisam_jax.data.dataset import Dataset
from hisam_jax.data.prepare import prepare
from hisam_jax.data.records import TEST, TRAIN
from hisam_jax.errors import UserError

NONE = {"text_encoder": "none", "image_encoder": "none"}


def _events(dataset: Dataset) -> dict[str, list[tuple]]:
    """user id -> (item id, time, rating, split) in order."""
    items, users = dataset.items["item_id"].to_list(), dataset.users["user_id"].to_list()
    return {
        users[s.user]: [
            (items[i], t, r, k)
            for i, t, r, k in zip(*(x.tolist() for x in (s.item, s.timestamp, s.rating, s.split)), strict=True)
        ]
        for s in dataset.sequences()
    }


def test_whole_folder(tmp_path):
    raw = write_movielens(tmp_path / "raw", pictures=True)
    manifest = prepare("movielens", raw, tmp_path / "d", images=raw / "pictures", cache_dir=tmp_path / "cache")
    dataset = Dataset.load(tmp_path / "d")
    assert json.loads((tmp_path / "d" / "manifest.json").read_text()) == manifest == dataset.manifest
    assert (manifest["users"], manifest["items"]) == (30, 40) == (dataset.num_users, dataset.num_items)
    assert manifest["interactions"] == len(movielens_rows())
    assert manifest["rejected"] == {}
    split = manifest["split"]
    parts = [split[name] for name in ("train", "validation", "test", "history", "after_test")]
    assert sum(parts) == manifest["interactions"] and min(parts) > 0
    sequences = list(dataset.sequences())
    assert sum(map(len, sequences)) == sum(parts[:4]) == dataset.users["events"].sum()
    assert dataset.users["train_events"].sum() == split["train"] == dataset.items["train_count"].sum()
    assert manifest["modalities"]["text"]["coverage"] == 1.0
    assert manifest["modalities"]["image"]["coverage"] == 0.75
    assert dataset.features["image"].shape == (40, manifest["modalities"]["image"]["dim"])
    by_id = dict(zip(dataset.items["item_id"].to_list(), range(40), strict=True))
    assert dataset.thumbnail(by_id["4"]) is None
    with Image.open(io.BytesIO(dataset.thumbnail(by_id["5"]))) as picture:
        assert picture.format == "JPEG" and picture.size == (112, 140)
    assert dataset.items.row(by_id["5"], named=True)["title"] == "Long film 4 (1999)"
    assert not list((tmp_path).glob(".*"))


def test_events_are_those_of_the_file(tmp_path):
    raw = write_movielens(tmp_path / "raw", rows := movielens_rows(ties=False))
    prepare("movielens", raw, tmp_path / "d", protocol="per_user_time", **NONE)
    expected: dict[str, list] = {}
    for row in rows:
        user, item, rating, time = row.split(",")
        expected.setdefault(user, []).append((int(time), item, float(rating)))
    found = _events(Dataset.load(tmp_path / "d"))
    assert {user: [(t, i, r) for i, t, r, _ in rows] for user, rows in found.items()} == {
        user: sorted(rows) for user, rows in expected.items()
    }


@pytest.mark.parametrize("protocol", ["leave_one_out", "per_user_time", "chronological"])
def test_file_order_changes_nothing_and_the_seed_changes_ties(tmp_path, protocol):
    rows = movielens_rows()
    shuffled = rows.copy()
    random.Random(0).shuffle(shuffled)
    one = write_movielens(tmp_path / "one", rows)
    two = write_movielens(tmp_path / "two", shuffled)
    manifests = [
        prepare("movielens", raw, tmp_path / f"{raw.name}-{seed}", protocol=protocol, seed=seed, **NONE)
        for raw, seed in ((one, 0), (two, 0), (one, 1))
    ]
    assert manifests[0]["files"] == manifests[1]["files"]
    checksums = [manifest["split"]["checksum"] for manifest in manifests]
    assert checksums[0] == checksums[1] != checksums[2]
    assert (tmp_path / "one-0" / "users.parquet").read_bytes() != (tmp_path / "one-1" / "users.parquet").read_bytes()


def test_protocols_do_not_leak(tmp_path):
    raw = write_movielens(tmp_path / "raw", movielens_rows(ties=False))
    manifest = prepare("movielens", raw, tmp_path / "c", protocol="chronological", **NONE)
    cuts, dataset = manifest["split"]["cuts"], Dataset.load(tmp_path / "c")
    for sequence in dataset.sequences():
        assert (np.diff(sequence.timestamp) >= 0).all()
        assert (sequence.timestamp[sequence.split == TRAIN] < cuts["validation"]).all()
        assert (sequence.timestamp[sequence.split == TEST] >= cuts["test"]).all()
    assert manifest["split"]["test"] == round(manifest["interactions"] / 10)


def test_core_and_catalogue(tmp_path):
    rows = [f"{u},{i},5,{100 * u + i}" for u in range(1, 6) for i in range(1, 6)] + ["9,1,5,7", "8,20,5,7"]
    raw = write_movielens(tmp_path / "raw", rows)
    manifest = prepare("movielens", raw, tmp_path / "a", min_user=5, min_item=5, **NONE)
    assert (manifest["users"], manifest["items"], manifest["interactions"]) == (5, 5, 25)
    assert manifest["core"]["interactions_dropped"] == 2
    manifest = prepare("movielens", raw, tmp_path / "b", **NONE)
    assert (manifest["users"], manifest["items"], manifest["interactions"]) == (7, 40, 27)
    assert manifest["cold"] == {"users": 7, "items": 40, "items_without_training": 36}  # 1, 2, 3 and 20 are trained on
    with pytest.raises(UserError, match="ratings.csv.*no event is left of 27"):
        prepare("movielens", raw, tmp_path / "c", min_user=100, **NONE)
    assert not (tmp_path / "c").exists()


def test_a_user_with_one_interaction_is_history_only(tmp_path):
    raw = write_movielens(tmp_path / "raw", [*movielens_rows(), "77,3,5,1000000000"])
    for protocol in ("leave_one_out", "per_user_time"):
        prepare("movielens", raw, tmp_path / protocol, protocol=protocol, **NONE)
        assert _events(Dataset.load(tmp_path / protocol))["77"] == [("3", 10**9, 5.0, TRAIN)]


def test_a_folder_is_replaced_as_a_whole_and_kept_when_the_new_one_fails(tmp_path):
    raw = write_movielens(tmp_path / "raw")
    first = prepare("movielens", raw, tmp_path / "d", **NONE)
    second = prepare("movielens", raw, tmp_path / "d", seed=3, **NONE)
    assert first["files"] != second["files"]
    with pytest.raises(UserError, match="no event is left"):
        prepare("movielens", raw, tmp_path / "d", min_user=99, **NONE)
    assert Dataset.load(tmp_path / "d").manifest == second


def test_sources_without_timestamps_keep_the_file_order(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "sequences.txt").write_text("a 3 1 2 3\nb 2 1\nc 1\n")
    (raw / "items.csv").write_text("item_id,asin,title,categories\n1,A,one,x|y\n2,B,two,x\n3,C,three,y\n")
    manifest = prepare("sequences", raw, tmp_path / "d", **NONE)
    events = _events(Dataset.load(tmp_path / "d"))
    assert {user: [(i, k) for i, _, _, k in rows] for user, rows in events.items()} == {
        "a": [("3", 0), ("1", 0), ("2", 1), ("3", 2)],
        "b": [("2", 0), ("1", 2)],
        "c": [("1", 0)],
    }
    assert manifest["tie_break"] == "file order" and not manifest["has_ratings"]
    with pytest.raises(UserError, match="protocol.*no timestamps"):
        prepare("sequences", raw, tmp_path / "e", protocol="chronological", **NONE)


def test_statistics_are_fitted_on_training_items_only(tmp_path):
    """A held-out item's words must not move the others' features."""
    rows = [f"{u},{i},5,{1000 * i}" for u in range(1, 9) for i in range(1, 12)]  # items 10 and 11 are held out for all
    one, two = write_movielens(tmp_path / "one", rows, movies=11), write_movielens(tmp_path / "two", rows, movies=11)
    text = (two / "movies.csv").read_text().replace("film 10", "wholly other words of a strange tongue")
    (two / "movies.csv").write_text(text)
    for raw in (one, two):
        prepare("movielens", raw, tmp_path / f"{raw.name}-d", image_encoder="none", cache_dir=tmp_path / "cache")
    a, b = (Dataset.load(tmp_path / f"{name}-d") for name in ("one", "two"))
    seen = a.train_items
    assert seen.sum() == 9 and np.abs(a.features["text"][~seen] - b.features["text"][~seen]).max() > 1e-3
    np.testing.assert_array_equal(a.features["text"][seen], b.features["text"][seen])


def test_precomputed_features(tmp_path):
    raw = write_movielens(tmp_path / "raw")
    values = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32)
    np.save(tmp_path / "text.npy", values)
    np.savez(tmp_path / "image.npz", ids=np.arange(1, 21), values=values[:20])
    manifest = prepare(
        "movielens",
        raw,
        tmp_path / "d",
        text_encoder=f"precomputed:{tmp_path / 'text.npy'}",
        image_encoder=f"precomputed:{tmp_path / 'image.npz'}",
        cache_dir=tmp_path / "cache",
    )
    dataset = Dataset.load(tmp_path / "d")
    order = dataset.items["item_id"].cast(pl.Int64).to_numpy() - 1
    np.testing.assert_array_equal(dataset.features["text"], values[order])
    np.testing.assert_array_equal(dataset.present["image"], order < 20)
    assert manifest["modalities"]["image"]["coverage"] == 0.5


@pytest.mark.real_data
@pytest.mark.slow
def test_ml_latest_small(tmp_path, real_data):
    manifest = prepare(
        "movielens",
        real_data / "ml-latest-small",
        tmp_path / "d",
        images=real_data / "movielens-posters",
        min_user=5,
        min_item=5,
        cache_dir=tmp_path / "cache",
    )
    assert (manifest["users"], manifest["items"], manifest["interactions"]) == (610, 3650, 90274)
    assert manifest["rejected"] == {} and manifest["modalities"]["image"]["coverage"] > 0.99
    dataset = Dataset.load(tmp_path / "d")
    covered = dataset.items.filter(pl.Series(dataset.present["image"]))["train_count"].sum()
    assert covered / dataset.items["train_count"].sum() > 0.995


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "expected"), [("ml-1m", (6040, 3883, 1000209)), ("amazon-beauty-2014", (22363, 12101, 198502))]
)
def test_sequences_of_public_sets(tmp_path, real_data, name, expected):
    manifest = prepare("sequences", real_data / name, tmp_path / "d", **NONE)
    assert (manifest["users"], manifest["items"], manifest["interactions"]) == expected
    assert (manifest["split"]["test"], manifest["split"]["validation"]) == (expected[0], expected[0])
    lines = dict(line.split(" ", 1) for line in (real_data / name / "sequences.txt").read_text().splitlines())
    dataset = Dataset.load(tmp_path / "d")
    items = dataset.items["item_id"].to_list()
    for user in (0, 17, dataset.num_users - 1):
        sequence = dataset.sequence(user)
        assert [items[i] for i in sequence.item] == lines[dataset.users["user_id"][user]].split()
        assert sequence.split[-2:].tolist() == [1, 2]
