"""Pessimistic ranks, Recall and NDCG against ranking by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from hisam_jax.evaluation import retrieval
from hisam_jax.evaluation.retrieval import SeenItems


def seen_items(lists):
    return SeenItems(np.append(0, np.cumsum([len(row) for row in lists])), np.array(sum(lists, []), np.int64))


def rank_by_hand(scores, target, seen=()):
    return 1 + sum(
        1 for item, score in enumerate(scores) if item != target and item not in seen and score >= scores[target]
    )


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 12))
def test_ranks_match_counting_by_hand(seed, rows, items):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, size=(rows, items)).astype(np.float32)
    target = rng.integers(items, size=rows)
    lists = [np.flatnonzero(rng.random(items) < 0.4).tolist() for _ in range(rows)]
    ranks = retrieval.rank_targets(lambda chosen: scores[chosen], target, seen_items(lists), items)
    for row in range(rows):
        assert ranks.unmasked_T[row] == rank_by_hand(scores[row], target[row])
        assert ranks.masked_T[row] == rank_by_hand(scores[row], target[row], lists[row])


def test_blocks_give_what_one_block_gives(monkeypatch):
    rng = np.random.default_rng(3)
    scores, target = rng.normal(size=(50, 20)).astype(np.float32), rng.integers(20, size=50)
    lists = [rng.choice(20, size=rng.integers(0, 8), replace=False).tolist() for _ in range(50)]
    widths = []

    def score(rows):
        widths.append(len(rows))
        return scores[rows]

    whole = retrieval.rank_targets(score, target, seen_items(lists), 20)
    monkeypatch.setattr(retrieval, "BLOCK_SCORES", 140)
    blocked = retrieval.rank_targets(score, target, seen_items(lists), 20)
    assert widths == [50] + [7] * 7 + [1]
    np.testing.assert_array_equal(whole.masked_T, blocked.masked_T)
    np.testing.assert_array_equal(whole.unmasked_T, blocked.unmasked_T)


def test_ties_and_constant_scores_go_against_the_target():
    ranks = retrieval.rank_targets(lambda rows: np.zeros((len(rows), 7)), np.array([0, 6]), seen_items([[], [1, 2]]), 7)
    assert ranks.unmasked_T.tolist() == [7, 7] and ranks.masked_T.tolist() == [7, 5]
    unreachable = np.full((1, 5), -np.inf)
    assert retrieval.pessimistic_ranks(unreachable, np.array([2]), seen_items([[]]).rows(np.array([0]))).masked_T == 5


def test_a_repeat_purchase_stays_in_the_list():
    scores = np.array([[3.0, 2.0, 1.0]])
    ranks = retrieval.rank_targets(lambda rows: scores[rows], np.array([1]), seen_items([[0, 1]]), 3)
    assert ranks.masked_T.tolist() == [1] and ranks.unmasked_T.tolist() == [2]


def test_a_nan_score_is_an_error_not_rank_one():
    with pytest.raises(ValueError, match="nan"):
        retrieval.rank_targets(lambda rows: np.full((1, 3), np.nan), np.array([0]), seen_items([[]]), 3)


def test_recall_and_ndcg_at_their_edges():
    ranks = np.array([1, 5, 6, 10, 11])
    assert retrieval.recall_at(ranks, 5).tolist() == [1, 1, 0, 0, 0]
    assert retrieval.recall_at(ranks, 10).tolist() == [1, 1, 1, 1, 0]
    np.testing.assert_allclose(retrieval.ndcg_at(ranks, 10), [1, 1 / np.log2(6), 1 / np.log2(7), 1 / np.log2(11), 0])


def test_ndcg_equals_scikit_learn_without_ties():
    rng = np.random.default_rng(5)
    scores, target = rng.permuted(np.tile(np.arange(30.0), (40, 1)), axis=1), rng.integers(30, size=40)
    ranks = retrieval.rank_targets(lambda rows: scores[rows], target, seen_items([[]] * 40), 30)
    expected = ndcg_score(np.eye(30)[target], scores, k=10)
    assert retrieval.ndcg_at(ranks.unmasked_T, 10).mean() == pytest.approx(expected)
