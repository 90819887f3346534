"""Behaviour vectors: the counting against loops, what is left out, no leak, and DST on top of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_fixtures import HEADER, write_movielens

from hisam_jax.data.dataset import Dataset
from hisam_jax.data.encoders import Interactions, behaviour, encode_cached, make_encoder
from hisam_jax.data.encoders.behaviour import PpmiSvd, ppmi
from hisam_jax.data.prepare import prepare
from hisam_jax.errors import UserError
from hisam_jax.tokenizer.run import load_ids, tokenize

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "tokenizer" / "dst.py"
SMALL = {"dst.steps": "20", "dst.shared": "(8, 8)", "dst.specific.text": "(8,)", "dst.specific.image": "(8,)"}
SMALL |= {"dst.unnamed": "(8,)", "dst.width": "8", "dst.hidden": "16", "dst.mi_hidden": "8"}


def events_of(sequences) -> Interactions:
    user = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences])
    return Interactions(user, np.array(list(itertools.chain(*sequences)), np.int64))


def reference_ppmi(sequences, items, window, smoothing, shift) -> np.ndarray:
    """Pair by pair, in the words of Levy et al. 2015."""
    pairs = Counter()
    for sequence in sequences:
        for i, j in itertools.permutations(range(len(sequence)), 2):
            if abs(i - j) <= window and sequence[i] != sequence[j]:
                pairs[sequence[i], sequence[j]] += 1
    word, total = Counter(), sum(pairs.values())
    for (i, _), count in pairs.items():
        word[i] += count
    smoothed = {i: count**smoothing for i, count in word.items()}
    dense = np.zeros((items, items))
    for (i, j), count in pairs.items():
        chance = word[i] / total * smoothed[j] / sum(smoothed.values())
        dense[i, j] = max(math.log(count / total / chance) - math.log(shift), 0)
    return dense


SEQUENCES = st.lists(st.lists(st.integers(0, 6), max_size=9), min_size=1, max_size=8)


@given(
    SEQUENCES, st.integers(1, 12), st.sampled_from([0.75, 1.0]), st.sampled_from([1.0, 2.5]), st.sampled_from([1, 5])
)
def test_ppmi_is_the_definition_whatever_the_blocks(sequences, window, smoothing, shift, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(behaviour, "BLOCK_PAIRS", block)
        found = ppmi(events_of(sequences), 8, window, smoothing, shift)
    expected = reference_ppmi(sequences, 8, window, smoothing, shift)
    np.testing.assert_allclose(found.toarray(), expected, atol=2e-6)


def test_only_the_strongest_neighbours_stay():
    sequences = np.random.default_rng(0).integers(0, 20, (60, 8)).tolist()
    dense, few = reference_ppmi(sequences, 20, 3, 0.75, 1.0), ppmi(events_of(sequences), 20, 3, neighbours=4)
    assert (few.getnnz(axis=1) == 4).all()
    for row in range(20):
        np.testing.assert_allclose(np.sort(few[row].data), np.sort(dense[row])[-4:], atol=2e-6)


def test_vectors_are_left_singular_vectors_times_the_root_of_their_values():
    sequences = np.random.default_rng(1).integers(0, 12, (80, 6)).tolist()
    left, singular, _ = np.linalg.svd(reference_ppmi(sequences, 12, 20, 0.75, 1.0))
    wide = encode(sequences, 12, dim=50)
    np.testing.assert_allclose(wide.values @ wide.values.T, left @ np.diag(singular) @ left.T, atol=1e-4)
    narrow = encode(sequences, 12, dim=3)
    assert narrow.values.shape == (12, 3) and narrow.present.all()
    np.testing.assert_allclose(narrow.values @ narrow.values.T, left[:, :3] * singular[:3] @ left[:, :3].T, atol=1e-4)


def encode(sequences, items, **options):
    index = pl.DataFrame({"item_id": [str(i) for i in range(items)]})
    return PpmiSvd(events_of(sequences), **options).encode(index, np.ones(items, bool))


def test_planted_company_is_found_and_lonely_items_are_absent():
    rng = np.random.default_rng(0)
    sequences = [rng.choice(np.arange(user % 4, 40, 4), 6).tolist() for user in range(300)]
    lonely = [[40], [41, 41, 41]]  # a user's only item, and one that has but itself for company; 42 has no event
    features = encode(sequences + lonely, 43, dim=8)
    assert features.present.tolist() == [True] * 40 + [False] * 3
    assert not features.values[40:].any()
    unit = features.values[:40] / np.linalg.norm(features.values[:40], axis=1, keepdims=True)
    similarity = unit @ unit.T - 2 * np.eye(40)
    nearest = np.argsort(-similarity, axis=1)[:, :9]
    assert (nearest % 4 == np.arange(40)[:, None] % 4).mean() > 0.95


def test_without_company_the_modality_is_absent():
    features = encode([[0], [1, 1], []], 3)
    assert features.values.shape == (3, 0) and not features.present.any()


def test_the_cache_knows_the_events_and_the_options(tmp_path, monkeypatch):
    events = events_of(np.random.default_rng(0).integers(0, 9, (30, 5)).tolist())
    index, rows, calls = pl.DataFrame({"item_id": [str(i) for i in range(9)]}), np.ones(9, bool), []
    monkeypatch.setattr(behaviour, "ppmi", lambda *args: calls.append(args) or ppmi(*args))
    encoder = make_encoder("behaviour", "ppmi_svd", interactions=events, dim=4)
    first, second = (encode_cached(encoder, index, rows, tmp_path) for _ in range(2))
    assert len(calls) == 1 and np.array_equal(first.values, second.values)
    changed = Interactions(events.user_E, np.roll(events.item_E, 1))
    for other in ({"interactions": changed}, {"window": 2}, {"shift": 2.0}):
        encode_cached(dataclasses.replace(encoder, **other), index, rows, tmp_path)
    assert len(calls) == 4


@pytest.mark.parametrize("option", [{"dim": 0}, {"window": 0}, {"neighbours": 0}, {"shift": 0.0}, {"smoothing": -1.0}])
def test_options_without_a_meaning_are_refused(option):
    with pytest.raises(UserError, match=f"ppmi_svd.{next(iter(option))}"):
        PpmiSvd(events_of([[0, 1]]), **option)


def liked(seed: int = 0) -> list[list[tuple[int, float]]]:
    """(film, rating) of each user, oldest first; a rating of 1 in eight is no positive."""
    rng = np.random.default_rng(seed)
    return [
        [(int(film), 1.0 if rng.random() < 0.125 else 5.0) for film in rng.choice(40, 12, replace=False) + 1]
        for _ in range(30)
    ]


def prepared(folder: Path, users, **options) -> Dataset:
    rows = [
        f"{u},{film},{rating},{10**9 + 86400 * place}"
        for u, user in enumerate(users, 1)
        for place, (film, rating) in enumerate(user)
    ]
    assert HEADER == "userId,movieId,rating,timestamp"
    raw = write_movielens(folder / "raw", rows, pictures=True)
    options = {"text_encoder": "none", "image_encoder": "none", "behaviour_encoder": "ppmi_svd"} | options
    prepare("movielens", raw, folder / "d", images=raw / "pictures", cache_dir=folder / "cache", **options)
    return Dataset.load(folder / "d")


def test_nothing_but_training_positives_is_seen(tmp_path):
    users = liked()
    base = prepared(tmp_path / "base", users)
    last = [max(p for p, (_, r) in enumerate(user) if r > 3) for user in users]
    valid = [max(p for p in range(last[u]) if user[p][1] > 3) for u, user in enumerate(users)]

    def replaced(which) -> list[list[tuple[int, float]]]:
        """Films moved on by one where `which(user, place, rating)`."""
        return [
            [(film % 40 + 1, r) if which(u, place, r) else (film, r) for place, (film, r) in enumerate(user)]
            for u, user in enumerate(users)
        ]

    held_out = prepared(tmp_path / "held_out", replaced(lambda u, place, _: place in (last[u], valid[u])))
    disliked = prepared(tmp_path / "disliked", replaced(lambda u, place, r: r < 3 and place < valid[u]))
    training = prepared(tmp_path / "training", replaced(lambda u, place, r: place == 0 and r > 3))
    same = base.features["behaviour"]
    for other in (held_out, disliked):
        assert other.items["item_id"].to_list() == base.items["item_id"].to_list()
        assert other.manifest["split"]["checksum"] != base.manifest["split"]["checksum"]
        assert np.array_equal(other.features["behaviour"], same)
    assert not np.array_equal(training.features["behaviour"], same)


def test_off_by_default_and_unknown_names_are_refused(tmp_path):
    plain = prepared(tmp_path / "plain", liked(), text_encoder="tfidf_svd", behaviour_encoder="none")
    assert list(plain.manifest["modalities"]) == ["text"] and "behaviour" not in plain.manifest["dropped_modalities"]
    with pytest.raises(UserError, match=r"no behaviour encoder 'ppmi'.*ppmi_svd"):
        prepared(tmp_path / "wrong", liked(), behaviour_encoder="ppmi")


@pytest.mark.slow
@pytest.mark.parametrize(
    "others, levels",
    [
        ({}, ["shared/0", "shared/1", "behaviour/0", "behaviour/1", "behaviour/2"]),
        (
            {"text_encoder": "tfidf_svd", "image_encoder": "hog_color"},
            ["shared/0", "shared/1", "text/0", "image/0", "behaviour/0"],
        ),
    ],
)
def test_dst_trains_on_behaviour_alone_or_as_a_third_modality(tmp_path, others, levels):
    data = prepared(tmp_path, liked(), **others)
    assert data.manifest["modalities"]["behaviour"]["encoder"] == "ppmi_svd"
    assert 0 < data.manifest["modalities"]["behaviour"]["coverage"] == data.present["behaviour"].mean()
    report = tokenize(data.path, CONFIG, tmp_path / "ids", SMALL)
    table = load_ids(tmp_path / "ids", data)
    assert [level.name for level in table.levels] == levels
    assert np.isfinite(report["reconstruction"]["behaviour"]["full"])
    absent = ~data.present["behaviour"]
    for index, level in enumerate(table.levels):
        if level.modality == "behaviour":
            assert np.array_equal(table.codes_IL[:, index] == level.size, absent)
