"""The dataset on disk: records round-trip, and a folder that is not whole is refused by name."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from fixtures import tiny_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hisam_jax.data.dataset import Dataset
from hisam_jax.data.records import HISTORY, TEST, TRAIN, VALIDATION, UserSequence, decode, encode
from hisam_jax.data.sequence_files import write_sequences
from hisam_jax.errors import UserError


def _random_sequence(user: int, n: int, rng: np.random.Generator) -> UserSequence:
    return UserSequence(
        user=user,
        item=rng.integers(0, 2**31 - 1, n).astype(np.int32),
        timestamp=rng.integers(0, 2**32, n),
        rating=np.where(rng.random(n) < 0.5, np.nan, rng.random(n)).astype(np.float32),
        positive=rng.integers(0, 2, n).astype(np.uint8),
        split=rng.integers(0, 4, n).astype(np.uint8),
    )


def _assert_same(left: UserSequence, right: UserSequence) -> None:
    assert left.user == right.user
    for name in ("item", "timestamp", "rating", "positive", "split"):
        a, b = getattr(left, name), getattr(right, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@given(user=st.integers(0, 2**32 - 1), n=st.integers(0, 50), seed=st.integers(0, 2**32 - 1))
def test_record_round_trip(user, n, seed):
    sequence = _random_sequence(user, n, np.random.default_rng(seed))
    record = encode(sequence)
    _assert_same(sequence, decode(record))
    for damaged in (record[:-1], record[:9], b"", b"X" + record[1:], record + b"0"):
        with pytest.raises(ValueError, match="not a sequence record"):
            decode(damaged)


@settings(max_examples=10, deadline=None)
@given(users=st.integers(1, 40), per_file=st.integers(1, 15), seed=st.integers(0, 1000))
def test_sequence_files_keep_user_order(tmp_path_factory, users, per_file, seed):
    folder, rng = tmp_path_factory.mktemp("sequences"), np.random.default_rng(seed)
    sequences = [_random_sequence(user, int(rng.integers(0, 9)), rng) for user in range(users)]
    files = write_sequences(folder, iter(sequences), users, per_file)
    dataset = object.__new__(Dataset)
    dataset.record_paths = [str(file) for file in files]
    order = rng.permutation(users)
    for user, sequence in zip(order, dataset.sequences(order, block=4), strict=True):
        _assert_same(sequence, sequences[user])


def test_sequence_files_refuse_another_order(tmp_path):
    sequences = [_random_sequence(user, 2, np.random.default_rng(0)) for user in (1, 0)]
    with pytest.raises(ValueError, match="user 1 where user 0"):
        write_sequences(tmp_path, sequences, 2)


def test_tiny_dataset_is_whole(tmp_path):
    dataset = tiny_dataset(tmp_path / "d", users=10, items=30)
    assert (dataset.num_users, dataset.num_items) == (10, 30)
    assert dataset.features["text"].dtype == np.float32 and dataset.features["text"].shape == (30, 16)
    assert not dataset.features["image"][~dataset.present["image"]].any()
    sequences = list(dataset.sequences())
    assert [s.user for s in sequences] == list(range(10))
    assert sum(map(len, sequences)) == dataset.manifest["interactions"]
    train = np.concatenate([s.item[s.split == TRAIN] for s in sequences])
    np.testing.assert_array_equal(np.bincount(train, minlength=30), dataset.items["train_count"])
    np.testing.assert_array_equal(dataset.train_items, dataset.items["train_count"].to_numpy() > 0)
    assert {VALIDATION, TEST, HISTORY} <= set(np.concatenate([s.split for s in sequences]).tolist())
    assert dataset.thumbnail(1).startswith(b"\xff\xd8") and dataset.thumbnail(10) is None
    assert dataset.truth() is None


def test_a_worker_process_can_have_it(tmp_path):
    dataset = tiny_dataset(tmp_path / "d")
    dataset.sequence(0), dataset.thumbnail(0)
    _assert_same(pickle.loads(pickle.dumps(dataset)).sequence(3), dataset.sequence(3))


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="no such dataset folder"):
        Dataset.load(tmp_path / "nothing")


def test_folder_without_manifest(tmp_path):
    tiny_dataset(tmp_path / "d")
    (tmp_path / "d" / "manifest.json").unlink()
    with pytest.raises(UserError, match="manifest.json.*no manifest"):
        Dataset.load(tmp_path / "d")


IDS = '{"format_version": 1, "files": {}, "items": 9}'  # the manifest of a table of semantic IDs is none of a dataset


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format_version": 1}', '{"format_version": 1, "files": 3}', IDS]
)
def test_unreadable_manifest(tmp_path, text):
    tiny_dataset(tmp_path / "d")
    (tmp_path / "d" / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="manifest.json.*unreadable manifest"):
        Dataset.load(tmp_path / "d")


def test_another_format_version(tmp_path):
    tiny_dataset(tmp_path / "d")
    file = tmp_path / "d" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 99}))
    with pytest.raises(UserError, match="format_version.*99.*expected 1"):
        Dataset.load(tmp_path / "d")


@pytest.mark.parametrize(
    "name",
    ["items.parquet", "features/text.npy", "sequences/sequences-00001-of-00002.array_record", "thumbnails.parquet"],
)
def test_a_flipped_byte_or_a_missing_file_is_named(tmp_path, name):
    tiny_dataset(tmp_path / "d")
    file = tmp_path / "d" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=f"{name}.*altered or damaged"):
        Dataset.load(tmp_path / "d")
    file.unlink()
    for verify in (True, False):
        with pytest.raises(UserError, match=f"{name}.*missing file"):
            Dataset.load(tmp_path / "d", verify=verify)
