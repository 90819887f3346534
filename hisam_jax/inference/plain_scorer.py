"""Scores of the baselines, which have neither anchors nor codes to generate: see `models.registry`."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np

from hisam_jax.inference.histories import History
from hisam_jax.inference.scorer import CANDIDATES, Scorer


class PlainScorer(Scorer):
    """A `Scorer` by whole passes over the histories; generates nothing."""

    @functools.cached_property
    def item_vectors(self) -> jax.Array:
        """`[I, D]`, computed once."""
        return _item_vectors(self.model, self.params, self.catalog)

    def retrieval(self, histories: Sequence[History]) -> np.ndarray:
        """float32 `[len(histories), I]`."""
        out = np.empty((len(histories), self.catalog.items), np.float32)
        for rows, batch in self._batches(histories, self.rows):
            scores = _retrieval(self.model, self.params, self.catalog, self.item_vectors, batch)
            out[rows] = np.asarray(scores)[: len(rows)]
        return self._serve_empty(histories, out)

    def generation(self, histories, seen, *, beams: int):
        """There is none.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"{type(self.model).__name__} has no generation head")

    def clicks_along(self, histories: Sequence[History]) -> list[np.ndarray]:
        """Ranking logits of every event of each history, each read before its own action."""
        out: list[np.ndarray] = [np.empty(0)] * len(histories)
        for rows, batch in self._batches(histories, self.rows):
            logits = np.asarray(_clicks(self.model, self.params, self.catalog, batch))
            for row, index in enumerate(rows):
                out[index] = logits[row, : len(histories[index])]
        return out

    def clicks_for(self, history: History, candidates: np.ndarray) -> np.ndarray:
        """Ranking logits of candidates after a history; candidates never see each other."""
        _, batch = next(self._batches([history], 1))
        out, gap_B = [], np.zeros(1, np.float32)
        for start in range(0, len(candidates), CANDIDATES):
            part = candidates[start : start + CANDIDATES]
            padded = np.zeros((1, CANDIDATES), np.int32)
            padded[0, : len(part)] = part
            logits = _candidates(self.model, self.params, self.catalog, batch, padded, gap_B)
            out.append(np.asarray(logits)[0, : len(part)])
        return np.concatenate(out)


@functools.partial(jax.jit, static_argnums=0)
def _item_vectors(model, params, catalog):
    return model.apply({"params": params}, catalog, method="item_vectors")


@functools.partial(jax.jit, static_argnums=0)
def _retrieval(model, params, catalog, vectors_ID, batch):
    return model.apply({"params": params}, batch, catalog, method="users_of") @ vectors_ID.T


@functools.partial(jax.jit, static_argnums=0)
def _clicks(model, params, catalog, batch):
    return model.apply({"params": params}, batch, catalog, method="clicks")


@functools.partial(jax.jit, static_argnums=0)
def _candidates(model, params, catalog, batch, item_BC, gap_B):
    return model.apply({"params": params}, batch, catalog, item_BC, gap_B, method="candidate_clicks")
