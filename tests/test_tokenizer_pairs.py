"""Pairs of items: Swing and User2Item against loops that say what they mean, and that no held-out event counts."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from fixtures import tiny_dataset

from hisam_jax.data.dataset import Dataset
from hisam_jax.data.encoders.behaviour import Interactions
from hisam_jax.data.records import TRAIN
from hisam_jax.data.sequence_files import write_sequences
from hisam_jax.tokenizer import pairs
from hisam_jax.tokenizer.swing import swing


def events_of(users: int, items: int, most: int, seed: int = 0) -> Interactions:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, most, users)
    return Interactions(np.repeat(np.arange(users), lengths) * 3, rng.integers(0, items, lengths.sum()))


def plain_swing(events: Interactions, items: int, alpha: float) -> np.ndarray:
    taken = {u: set(events.item_E[events.user_E == u].tolist()) for u in np.unique(events.user_E)}
    score = np.zeros((items, items))
    for first, second in itertools.combinations(taken, 2):
        both = taken[first] & taken[second]
        weight = (len(taken[first]) * len(taken[second])) ** -0.5 / (alpha + len(both))
        for one, other in itertools.permutations(both, 2):
            score[one, other] += weight
    return score


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_swing_is_its_definition(alpha):
    events, items = events_of(30, 25, 20), 25
    found, score = swing(events, items + 2, 40, alpha=alpha, users=30)
    expected = plain_swing(events, items + 2, alpha)
    dense = np.zeros_like(expected)
    row, place = np.nonzero(found >= 0)
    dense[row, found[row, place]] = score[row, place]
    np.testing.assert_allclose(dense, expected, rtol=1e-5, atol=1e-6)
    assert np.all(np.diff(score, axis=1) <= 0) and (found[items:] == -1).all() and (score[found < 0] == 0).all()
    few, _ = swing(events, items + 2, 3, alpha=alpha, users=30)
    assert np.array_equal(few, found[:, :3])


def test_swing_of_a_drawn_part_of_an_items_users_is_told_by_the_seed():
    events = events_of(60, 12, 10)
    whole, part, again, other = (swing(events, 12, 11, users=n, seed=s) for n, s in ((60, 0), (8, 0), (8, 0), (8, 1)))
    assert np.array_equal(part[0], again[0]) and np.array_equal(part[1], again[1])
    assert not np.array_equal(part[1], other[1]) and part[1].sum() < whole[1].sum()


def test_a_trigger_is_the_most_similar_of_the_latest_positives(monkeypatch):
    monkeypatch.setattr(pairs, "BLOCK", 37)  # pairs cross blocks
    events, items, latest = events_of(20, 15, 30), 15, 6
    vectors = np.random.default_rng(1).normal(size=(items, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[3] = 0
    expected = []
    for at, (user, item) in enumerate(zip(events.user_E, events.item_E, strict=True)):
        before = [b for b in range(max(at - latest, 0), at)[::-1] if events.user_E[b] == user]
        before = [b for b in before if events.item_E[b] not in (item, 3)]
        if before and item != 3:
            best = max(before, key=lambda b: vectors[events.item_E[b]] @ vectors[item])
            expected.append((events.item_E[best], item, user))
    found = pairs.user_pairs(events, vectors, latest)
    assert np.array_equal(np.stack([found.trigger_P, found.target_P, found.user_P], axis=1), expected)
    assert len(pairs.user_pairs(Interactions.none(), vectors)) == 0


def test_held_out_events_change_no_pair(tmp_path):
    data = tiny_dataset(tmp_path / "data", users=30)
    before = pairs.training_positives(data)
    rng, changed = np.random.default_rng(0), []
    for sequence in data.sequences():
        held = sequence.split != TRAIN
        item = np.where(held, rng.integers(0, data.num_items, len(sequence)), sequence.item).astype(np.int32)
        changed.append(dataclasses.replace(sequence, item=item, positive=np.where(held, 1, sequence.positive)))
    assert any(not np.array_equal(a.item, b.item) for a, b in zip(changed, data.sequences(), strict=True))
    for file in data.record_paths:
        (tmp_path / file).unlink()
    write_sequences(data.path / "sequences", changed, len(changed), users_per_file=15)
    after = pairs.training_positives(Dataset(data.path, data.manifest))
    assert np.array_equal(before.item_E, after.item_E) and np.array_equal(before.user_E, after.user_E)
    assert len(before.item_E) == sum(int(((s.split == TRAIN) & (s.positive > 0)).sum()) for s in changed) > 0


def test_the_id_space_brings_together_what_the_same_users_took():
    rng = np.random.default_rng(0)
    user_E = np.repeat(np.arange(200), 8)
    item_E = rng.integers(0, 10, len(user_E)) * 2 + user_E % 2  # odd users take odd items
    vectors = pairs.id_vectors(Interactions(user_E, item_E), 21)
    likeness = vectors @ vectors.T
    alike = np.arange(20)[:, None] % 2 == np.arange(20) % 2
    assert likeness[:20, :20][alike].mean() > likeness[:20, :20][~alike].mean() + 0.2
    assert not vectors[20].any(), "what nobody took is nowhere"
