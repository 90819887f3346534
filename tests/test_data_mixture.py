"""Mixtures of datasets by weight, and training users without end from the shop."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from fixtures import tiny_dataset
from test_data_pipeline import batches_of, break_shards, same, segments

from hisam_jax.data.blocks import BLOCK
from hisam_jax.data.dataset import Dataset
from hisam_jax.data.endless import EndlessShop, shop_of
from hisam_jax.data.mixture import make_share
from hisam_jax.data.pipeline import PipelineConfig, make_pipeline
from hisam_jax.data.prepare import prepare
from hisam_jax.data.shop.generator import stream_users
from hisam_jax.data.shop.users import block_size, make_catalogue
from hisam_jax.errors import UserError

CODES_IL = np.zeros((100, 2), np.int32)
CONFIG = PipelineConfig(items_per_row=24, rows=4, window=24)


def renamed_dataset(path: Path, offset: int, **kind) -> Dataset:
    """A tiny dataset whose item i is the other one's item `i + offset`; those past its end are unknown there."""
    dataset = tiny_dataset(path, **kind)
    names = tiny_dataset(path.with_name(f"{path.name}-names"), items=60).items["item_id"]
    dataset.items = dataset.items.with_columns(item_id=names[offset : offset + dataset.num_items])
    return dataset


def test_windows_are_drawn_by_weight_and_items_go_by_their_ids(tmp_path):
    main = tiny_dataset(tmp_path / "main", users=40, ratings=False)
    other = renamed_dataset(tmp_path / "other", 20, users=15)
    share = make_share(other, 0.5, main)
    np.testing.assert_array_equal(share.item_of_I[:20], np.arange(20, 40))
    assert (share.item_of_I[20:] == -1).all()
    found = segments(batches_of(make_pipeline(main, CODES_IL, CONFIG, mixture=[share]), 60))
    assert max(part["item"].max() for part in found) < main.num_items
    rated = [bool(part["rank_weight"].any()) for part in found]  # only `other` has ratings
    assert np.mean(rated) == pytest.approx(1 / 3, abs=0.06)
    assert all(part["item"].min() >= 20 for part, here in zip(found, rated, strict=True) if here)


def test_an_epoch_of_a_mixture_is_one_of_the_run_s_own_dataset(tmp_path):
    main, other = tiny_dataset(tmp_path / "main", ratings=False), tiny_dataset(tmp_path / "other", users=5)
    config = dataclasses.replace(CONFIG, epochs=2)
    stream = make_pipeline(main, CODES_IL, config, mixture=[make_share(other, 1.0, main)])
    own = [part["item"] for part in segments(batches_of(stream)) if not part["rank_weight"].any()]
    alone = [part["item"] for part in segments(batches_of(make_pipeline(main, CODES_IL, config)))]
    np.testing.assert_array_equal(np.sort(np.concatenate(own)), np.sort(np.concatenate(alone)))


def test_only_training_events_of_the_other_dataset_are_read(tmp_path):
    main, other = tiny_dataset(tmp_path / "main", ratings=False), tiny_dataset(tmp_path / "other", users=5)
    stream = make_pipeline(main, CODES_IL, CONFIG, mixture=[make_share(other, 3.0, main)])
    found = {tuple(part["item"]) for part in segments(batches_of(stream, 30)) if part["rank_weight"].any()}
    assert found == {tuple(sequence.item[sequence.split == 0]) for sequence in other.sequences()}


def test_a_mixture_goes_on_exactly_and_is_part_of_a_position(tmp_path):
    main, other = tiny_dataset(tmp_path / "main"), renamed_dataset(tmp_path / "other", 10, users=9)
    stream = make_pipeline(main, CODES_IL, CONFIG, mixture=[make_share(other, 0.7, main)])
    assert stream.identity() != make_pipeline(main, CODES_IL, CONFIG).identity()
    assert goes_on_exactly(stream, 12)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_record_is_blamed_on_its_own_dataset(tmp_path, workers):
    main, other = tiny_dataset(tmp_path / "main"), tiny_dataset(tmp_path / "other", users=400)
    config = dataclasses.replace(CONFIG, workers=workers)
    stream = make_pipeline(main, CODES_IL, config, mixture=[make_share(other, 5.0, main)])
    break_shards(other.record_paths)
    with pytest.raises(UserError, match="a record is damaged") as caught:
        batches_of(stream, 400)
    assert str(other.path) in str(caught.value) and str(main.path) not in str(caught.value)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_positive_number_is_refused(tmp_path, weight):
    main = tiny_dataset(tmp_path / "main")
    with pytest.raises(UserError, match="above 0"):
        make_share(main, weight, main)


def test_a_dataset_without_an_item_in_common_is_refused(tmp_path):
    main, other = tiny_dataset(tmp_path / "main"), tiny_dataset(tmp_path / "other")
    other.items = other.items.with_columns(item_id=other.items["item_id"] + "x")
    with pytest.raises(UserError, match="none of its 40 items is known"):
        make_share(other, 1.0, main)


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Dataset:
    folder, options = tmp_path_factory.mktemp("shop"), {"users": 40, "items": 100, "events_per_user": 12.0}
    prepare("shop", folder / "raw", folder / "dataset", image_encoder="none", reader_options=options, min_item=3,
            cache_dir=folder / "cache", seed=5)  # fmt: skip
    return Dataset.load(folder / "dataset")


def test_an_endless_shop_goes_on_behind_the_dataset_s_users(shop):
    config = shop_of(shop)
    size = block_size(make_catalogue(config))
    source = EndlessShop(shop, window=400, seed=0)
    index = {name: i for i, name in enumerate(shop.items["item_id"].to_list())}
    for place, user in enumerate(itertools.islice(stream_users(config, size), 30)):
        want = [index[f"p{item:07d}"] for item in user.item if f"p{item:07d}" in index]
        assert source.read([place])[0]["item"].tolist() == want
    assert len(index) < config.items, "some items are dropped here"


@pytest.mark.parametrize("streams", [1, 2])
def test_no_user_of_an_endless_shop_comes_twice(shop, streams):
    config = PipelineConfig(items_per_row=64, rows=4, window=8, endless=True, streams=streams)
    found = segments(batches_of(make_pipeline(shop, CODES_IL, config), 40))
    assert len({part["item"].tobytes() + part["gap"].tobytes() for part in found}) == len(found)
    assert max(len(part["item"]) for part in found) == 8


@pytest.mark.parametrize(("streams", "workers"), [(2, 1), (1, 2), (2, 3)])
def test_lanes_are_the_same_users_in_another_order(shop, streams, workers):
    size = block_size(make_catalogue(shop_of(shop)))
    one, many = EndlessShop(shop, 16, 0), EndlessShop(shop, 16, 0, streams, workers)
    lanes = streams * workers
    rounds = -(-size // BLOCK)  # blocks of places that a lane's simulated users fill
    places = range(rounds * BLOCK * lanes)
    found = [event.tobytes() for event in many.read(places)]
    known = [event.tobytes() for event in one.read(range(2 * lanes * size))]
    assert len(set(found)) == len(found) and set(found) <= set(known)
    assert {event for event in found} >= set(known[: lanes * size])


def test_an_endless_shop_goes_on_exactly(shop):
    config = PipelineConfig(items_per_row=64, rows=4, window=16, endless=True)
    assert goes_on_exactly(make_pipeline(shop, CODES_IL, config), 10)


def test_reading_processes_of_an_endless_shop_take_turns(shop):
    config = PipelineConfig(items_per_row=64, rows=4, window=16, endless=True)
    helped = batches_of(make_pipeline(shop, CODES_IL, dataclasses.replace(config, workers=2)), 3)
    source = EndlessShop(shop, 16, 0, workers=2)
    known = {event["item"].tobytes() for event in source.read(range(4 * BLOCK))}
    assert {part["item"].tobytes() for part in segments(helped)} <= known


def test_endless_data_of_another_source_is_refused(tmp_path):
    with pytest.raises(UserError, match="data.endless"):
        make_pipeline(tiny_dataset(tmp_path / "tiny"), CODES_IL, dataclasses.replace(CONFIG, endless=True))


def test_epochs_of_endless_data_are_refused():
    with pytest.raises(UserError, match="data.epochs"):
        PipelineConfig(endless=True, epochs=1)


def test_a_shop_of_another_version_is_refused(shop):
    changed = Dataset(shop.path, shop.manifest)
    changed.items = changed.items.with_columns(title=changed.items["title"] + " of old")
    with pytest.raises(UserError, match="other items than when this was prepared"):
        EndlessShop(changed, 16, 0)


def goes_on_exactly(stream, stop: int) -> bool:
    whole, iterator = batches_of(stream, 2 * stop), iter(stream)
    for _ in range(stop):
        next(iterator)
    state = iterator.get_state()
    iterator.close()
    restored = iter(stream)
    restored.set_state(state)
    found = [next(restored) for _ in range(stop)]
    restored.close()
    return same(found, whole[stop:])
