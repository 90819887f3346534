from __future__ import annotations

import collections
import dataclasses
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fixtures import tiny_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hisam_jax.data import pipeline, records
from hisam_jax.data.pipeline import Pipeline, PipelineConfig, make_pipeline
from hisam_jax.data.sequence_files import write_sequences
from hisam_jax.errors import UserError

CODES_IL = np.random.default_rng(0).integers(0, 9, (5000, 3), dtype=np.int32)
IN_A_TEMPORARY_FOLDER = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@dataclasses.dataclass(frozen=True)
class RecordFolder:
    """The part of a dataset that the pipeline reads."""

    path: Path
    record_paths: list[str]
    users: pl.DataFrame
    validation_events: tuple[int, ...] = ()

    def train_events(self, validation_too: bool = False) -> np.ndarray:
        events_U = self.users["train_events"].to_numpy()
        return events_U + np.array(self.validation_events) if validation_too else events_U


def write_records(folder: Path, sequences: list[records.UserSequence]) -> RecordFolder:
    paths = write_sequences(folder / "sequences", sequences, len(sequences), users_per_file=-(-len(sequences) // 2))
    train = [int((sequence.split == 0).sum()) for sequence in sequences]
    users = pl.DataFrame({"train_events": train}, schema={"train_events": pl.Int32})
    validation = tuple(int((sequence.split == 1).sum()) for sequence in sequences)
    return RecordFolder(folder, [str(path) for path in paths], users, validation)


def make_sequences(train_lengths: list[int], seed: int = 0, rated: bool = True) -> list[records.UserSequence]:
    """Users whose items are all different across users and time, so that an item names its event."""
    rng, sequences, item = np.random.default_rng(seed), [], 0
    for user, length in enumerate(train_lengths):
        split = np.array([0] * length + [1, 3, 2][: int(rng.integers(0, 4))], dtype=np.uint8)
        n = len(split)
        rating = rng.integers(1, 11, n).astype(np.float32) / 2
        rating[rng.random(n) < 0.2] = np.nan
        sequences.append(
            records.UserSequence(
                user=user,
                item=np.arange(item, item + n, dtype=np.int32),
                timestamp=np.sort(rng.integers(1, 10**7, n)),
                rating=rating if rated else np.full(n, np.nan, np.float32),
                positive=(rng.random(n) < 0.6).astype(np.uint8),
                split=split,
            )
        )
        item += n
    return sequences


def batches_of(stream: Pipeline, count: int | None = None) -> list[dict[str, np.ndarray]]:
    iterator = iter(stream)
    try:
        return list(iterator) if count is None else [next(iterator) for _ in range(count)]
    finally:
        iterator.close()


def break_shards(paths: list[str]) -> None:
    """Overwrites records of files that are open already."""
    for path in paths:
        with open(path, "r+b") as file:
            file.seek(200)
            file.write(bytes(60_000))


def segments(batches: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    found = []
    for batch in batches:
        for row in range(len(batch["item"])):
            for segment in range(1, batch["segment"][row].max() + 1):
                at = batch["segment"][row] == segment
                found.append({name: values[row][at] for name, values in batch.items()})
    return found


def same(first: list[dict[str, np.ndarray]], second: list[dict[str, np.ndarray]]) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a) for a, b in zip(first, second, strict=True)
    )


def naive_window(sequence: records.UserSequence, first: int, length: int) -> dict[str, list[float]]:
    """One window's features by a loop over events, first one at place `first` of the user's events."""
    out: dict[str, list[float]] = {"action": [], "positive": [], "gap": [], "rank_weight": [], "next_weight": []}
    for at in range(first, first + length):
        rating = float(sequence.rating[at])
        out["action"].append(0 if rating != rating else round(2 * rating))
        out["positive"].append(float(sequence.positive[at]))
        seconds = 0 if at == 0 else int(sequence.timestamp[at] - sequence.timestamp[at - 1])
        out["gap"].append(np.log(1 + seconds / 3600))
        out["rank_weight"].append(0.0 if rating != rating else 1.0)
        out["next_weight"].append(float(sequence.positive[at]) if at > first else 0.0)
    return out


@IN_A_TEMPORARY_FOLDER
@given(
    lengths=st.lists(st.integers(0, 40), min_size=2, max_size=12).filter(any),
    window=st.integers(2, 16),
    extra=st.integers(0, 5),
    seed=st.integers(0, 3),
    epochs=st.integers(1, 3),
    too=st.booleans(),
)
def test_every_training_event_once_an_epoch_and_nothing_else(tmp_path, lengths, window, extra, seed, epochs, too):
    sequences = make_sequences(lengths, seed)
    data = write_records(tmp_path, sequences)
    config = PipelineConfig(
        items_per_row=window + extra, rows=3, window=window, seed=seed, epochs=epochs, validation_too=too
    )
    batches = batches_of(make_pipeline(data, CODES_IL, config))
    train = np.concatenate([sequence.item[sequence.split <= int(too)] for sequence in sequences])
    owner = np.concatenate([np.full(len(sequence.item), sequence.user) for sequence in sequences])
    found = segments(batches)
    assert all(batch["item"].shape == (3, window + extra) for batch in batches)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([part["item"] for part in found])), np.sort(np.tile(train, epochs))
    )
    for part in found:
        assert len(part["item"]) <= window
        assert len(set(owner[part["item"]])) == 1, "a segment mixes users"
        assert (np.diff(part["item"]) == 1).all(), "a window is not consecutive"


@IN_A_TEMPORARY_FOLDER
@given(lengths=st.lists(st.integers(1, 30), min_size=2, max_size=8), window=st.integers(2, 12), seed=st.integers(0, 9))
def test_features_equal_a_loop_over_events(tmp_path, lengths, window, seed):
    sequences = make_sequences(lengths, seed)
    config = PipelineConfig(items_per_row=window, rows=2, window=window, seed=seed, epochs=1)
    start = {int(sequence.item[0]): sequence for sequence in sequences}
    for part in segments(batches_of(make_pipeline(write_records(tmp_path, sequences), CODES_IL, config))):
        sequence = start[max(first for first in start if first <= part["item"][0])]
        want = naive_window(sequence, int(part["item"][0] - sequence.item[0]), len(part["item"]))
        for name, values in want.items():
            np.testing.assert_allclose(part[name], values, rtol=1e-6, atol=1e-7, err_msg=name)
        np.testing.assert_array_equal(part["codes"], CODES_IL[part["item"]])


def test_padding_is_zero_everywhere(tmp_path):
    config = PipelineConfig(items_per_row=20, rows=4, window=9, epochs=1)
    for batch in batches_of(make_pipeline(write_records(tmp_path, make_sequences([7, 3, 11, 5])), CODES_IL, config)):
        padding = batch["segment"] == 0
        assert padding.any()
        assert all((values[padding] == 0).all() for values in batch.values())


def test_dtypes_are_the_documented_ones(tmp_path):
    config = PipelineConfig(items_per_row=8, rows=2, window=8, epochs=1)
    (batch, *_) = batches_of(make_pipeline(write_records(tmp_path, make_sequences([7, 3])), CODES_IL, config))
    assert {name: values.dtype.name for name, values in batch.items()} == {
        **dict.fromkeys(("item", "segment", "codes", "action"), "int32"),
        **dict.fromkeys(("positive", "gap", "rank_weight", "next_weight"), "float32"),
    }


def test_without_ratings_or_timestamps_nothing_is_ranked_and_gaps_are_zero(tmp_path):
    sequences = [
        dataclasses.replace(sequence, timestamp=np.zeros_like(sequence.timestamp))
        for sequence in make_sequences([9, 4], rated=False)
    ]
    config = PipelineConfig(items_per_row=10, rows=2, window=10, epochs=1)
    for batch in batches_of(make_pipeline(write_records(tmp_path, sequences), CODES_IL, config)):
        assert not batch["rank_weight"].any() and not batch["gap"].any() and not batch["action"].any()
        assert batch["next_weight"].any()


def test_a_seed_decides_the_batches(tmp_path):
    data = write_records(tmp_path, make_sequences([30, 12, 25, 6, 18]))
    config = PipelineConfig(items_per_row=16, rows=2, window=8, seed=3)
    first = batches_of(make_pipeline(data, CODES_IL, config), 20)
    assert same(first, batches_of(make_pipeline(data, CODES_IL, config), 20))
    other = dataclasses.replace(config, seed=4)
    assert not same(first, batches_of(make_pipeline(data, CODES_IL, other), 20))


def test_window_bounds_move_between_epochs(tmp_path):
    config = PipelineConfig(items_per_row=8, rows=1, window=8, epochs=6)
    found = segments(batches_of(make_pipeline(write_records(tmp_path, make_sequences([20, 20])), CODES_IL, config)))
    assert len({int(part["item"][0]) for part in found}) > 6


@pytest.mark.parametrize("stop", [0, 1, 7, 23])
def test_restored_in_the_middle_of_an_epoch_it_goes_on_exactly(tmp_path, stop):
    data = write_records(tmp_path, make_sequences([30, 12, 25, 6, 18, 40, 3]))
    stream = make_pipeline(data, CODES_IL, PipelineConfig(items_per_row=16, rows=3, window=8, seed=1))
    whole = batches_of(stream, 40)
    iterator = iter(stream)
    for _ in range(stop):
        next(iterator)
    state = iterator.get_state()
    next(iterator)
    iterator.close()
    restored = iter(stream)
    next(restored)
    restored.set_state(state)
    assert same([next(restored) for _ in range(40 - stop)], whole[stop:])
    restored.close()


def test_reading_processes_change_nothing(tmp_path):
    data = write_records(tmp_path, make_sequences([30, 12, 25, 6, 18]))
    config = PipelineConfig(items_per_row=16, rows=2, window=8)
    alone = batches_of(make_pipeline(data, CODES_IL, config), 6)
    helped = batches_of(make_pipeline(data, CODES_IL, dataclasses.replace(config, workers=1)), 6)
    assert same(alone, helped)


def test_processes_share_the_epoch(tmp_path):
    sequences = make_sequences([30, 12, 25, 6, 18])
    data = write_records(tmp_path, sequences)
    config = PipelineConfig(items_per_row=16, rows=6, streams=3, window=8, epochs=2)
    shards = [segments(batches_of(make_pipeline(data, CODES_IL, config, streams=[i]))) for i in range(3)]
    items = np.concatenate([part["item"] for shard in shards for part in shard])
    train = np.concatenate([sequence.item[sequence.split == 0] for sequence in sequences])
    np.testing.assert_array_equal(np.sort(items), np.sort(np.tile(train, 2)))


def test_held_out_events_of_a_prepared_dataset_never_train(tmp_path):
    dataset = tiny_dataset(tmp_path / "dataset", users=30)
    config = PipelineConfig(items_per_row=16, rows=4, window=8, epochs=1)
    batches = batches_of(make_pipeline(dataset, CODES_IL, config))
    want = np.concatenate([sequence.item[sequence.split == records.TRAIN] for sequence in dataset.sequences()])
    assert len(want) < sum(len(sequence) for sequence in dataset.sequences())
    np.testing.assert_array_equal(np.sort(np.concatenate([part["item"] for part in segments(batches)])), np.sort(want))


def test_a_realistic_length_distribution_leaves_little_padding(tmp_path):
    lengths = np.clip(np.random.default_rng(0).lognormal(3.0, 1.0, 200), 3, 400).astype(int)
    data = write_records(tmp_path, make_sequences(lengths.tolist()))
    stream = make_pipeline(data, np.zeros((20000, 1), np.int32), PipelineConfig(items_per_row=100, rows=8, window=100))
    share = np.mean([pipeline.fill(batch) for batch in batches_of(stream, 40)])
    assert 0.9 < share < 1.0


@pytest.mark.parametrize(
    ("field", "value"), [("rows", 0), ("window", 1), ("epochs", 0), ("window", 400), ("workers", -1)]
)
def test_impossible_shapes_are_refused_by_name(field, value):
    with pytest.raises(UserError, match=f"data.{field}"):
        PipelineConfig(**{field: value})


def test_no_training_event_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="0 training events"):
        make_pipeline(write_records(tmp_path, make_sequences([0, 0])), CODES_IL, PipelineConfig())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_breaks_while_it_is_read_is_one_line(tmp_path, workers):
    dataset = tiny_dataset(tmp_path / "dataset", users=400)
    stream = make_pipeline(dataset, CODES_IL, PipelineConfig(items_per_row=24, rows=4, window=24, workers=workers))
    break_shards(dataset.record_paths)
    with pytest.raises(UserError, match="a record is damaged") as caught:
        batches_of(stream, 400)
    assert str(dataset.path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_reading_process_that_is_killed_is_one_line_and_a_code_to_start_again(tmp_path):
    config, others = PipelineConfig(items_per_row=24, rows=4, window=24, workers=1), multiprocessing.active_children()
    iterator = iter(make_pipeline(tiny_dataset(tmp_path / "dataset"), CODES_IL, config))
    next(iterator)
    (worker,) = set(multiprocessing.active_children()) - set(others)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError, match="reading process was killed by SIGKILL.*data.workers") as caught:
        collections.deque(iterator, maxlen=0)
    iterator.close()
    assert caught.value.exit_code == 75 and "\n" not in str(caught.value)
