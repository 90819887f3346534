"""Swing: items that the same pairs of users took, a pair counting less the more it has in common.

Yang et al. 2020 (arXiv 2010.05525): `s(i, j) = sum over {u, v} of w_u w_v / (alpha + |I_u & I_v|)`, both users having
both items, each pair counted once, `w_u = |I_u|^-0.5`. An item of more than `users` users is judged by that many of
them, drawn by seed [ours]: the work for an item grows with their square. Up to that many it is exact.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse

from hisam_jax.data.encoders.behaviour import Interactions

NONE = -1


def swing(
    events: Interactions, items: int, neighbours: int, *, alpha: float = 1.0, users: int = 200, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(item rows int32 [I, k], scores float32 [I, k]) of the `neighbours` items with the highest score, best first.

    -1 and 0 where fewer have one above 0; equals by the lowest row.

    Args:
        events: who took what; a repetition counts once.
        items: of the catalogue.
        neighbours: k.
        alpha: smoothing.
        users: of an item that are read at most.
        seed: of their draw.
    """
    taken_UI, users_IU = _incidence(events, items)
    weight_U = np.asarray(taken_UI.sum(1)).ravel().clip(1) ** -0.5
    rng = np.random.default_rng(seed)
    found_IK, score_IK = np.full((items, neighbours), NONE, np.int32), np.zeros((items, neighbours), np.float32)
    place_I = np.zeros(items, np.int32)
    for item in range(items):
        of_item = users_IU.indices[users_IU.indptr[item] : users_IU.indptr[item + 1]]
        if len(of_item) > users:
            of_item = rng.permutation(of_item)[:users]
        if len(of_item) < 2:
            continue
        column_J, score_J = _scores(taken_UI[of_item], weight_U[of_item], item, alpha, place_I)
        best = np.argsort(-score_J, kind="stable")[:neighbours]
        found_IK[item, : len(best)], score_IK[item, : len(best)] = column_J[best], score_J[best]
    return found_IK, score_IK


def _incidence(events: Interactions, items: int) -> tuple[scipy.sparse.csr_matrix, scipy.sparse.csr_matrix]:
    """Ones where a user took an item, by user and by item."""
    _, row_E = np.unique(events.user_E, return_inverse=True)
    count = int(row_E.max(initial=-1)) + 1
    ones = np.ones(len(row_E), np.float32)
    taken_UI = scipy.sparse.csr_matrix((ones, (row_E, events.item_E)), shape=(count, items))
    taken_UI.data[:] = 1  # what was taken twice had been summed
    return taken_UI, taken_UI.T.tocsr()


def _scores(
    taken_VI: scipy.sparse.csr_matrix, weight_V: np.ndarray, item: int, alpha: float, place_I: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(other items that two of an item's users V took, their scores). `place_I` is room to work in.

    With x_j the users that took j, `s(i, j) = x_j' M x_j / 2`: two products of a sparse with a dense matrix.
    """
    shared_I = np.bincount(taken_VI.indices, minlength=len(place_I)) > 1
    shared_I[item] = False
    columns = np.flatnonzero(shared_I)
    place_I[columns] = np.arange(len(columns))
    row_P, kept_P = np.repeat(np.arange(len(weight_V)), np.diff(taken_VI.indptr)), shared_I[taken_VI.indices]
    row_P, column_P = row_P[kept_P], place_I[taken_VI.indices[kept_P]]
    shape, ones = (len(weight_V), len(columns)), np.ones(len(row_P), np.float32)
    part_VJ = scipy.sparse.csr_matrix((ones, (row_P, column_P)), shape=shape)
    # What one user alone took is in no pair's overlap; the item itself is in every one.
    overlap_VV = part_VJ @ part_VJ.toarray().T + 1
    pair_VV = (weight_V[:, None] * weight_V / (alpha + overlap_VV)).astype(np.float32)
    np.fill_diagonal(pair_VV, 0)
    reached_JV = part_VJ.T @ pair_VV
    score_J = np.bincount(column_P, reached_JV[column_P, row_P], minlength=len(columns)) / 2
    return columns, score_J.astype(np.float32)
