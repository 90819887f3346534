"""Scores of the baselines, which have neither anchors nor codes to generate: see `models.registry`."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np

from hisam_jax.data.pipeline import Batch
from hisam_jax.inference.scorer import Scorer


class PlainScorer(Scorer):
    """A `Scorer` by whole passes over the histories; generates nothing."""

    def generation(self, histories, seen, *, beams: int):
        """There is none.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"{type(self.model).__name__} has no generation head")

    def _scores(self, batch: Batch) -> jax.Array:
        return _retrieval(self.model, self.params, self.catalog, self.item_vectors, batch)

    def _clicks(self, batch: Batch) -> jax.Array:
        return _clicks(self.model, self.params, self.catalog, batch)

    def _candidates(self, batch: Batch, gap_B: np.ndarray) -> Callable[[np.ndarray], jax.Array]:
        return lambda item_BC: _candidates(self.model, self.params, self.catalog, batch, item_BC, gap_B)


@functools.partial(jax.jit, static_argnums=0)
def _retrieval(model, params, catalog, vectors_ID, batch):
    return model.apply({"params": params}, batch, catalog, method="users_of") @ vectors_ID.T


@functools.partial(jax.jit, static_argnums=0)
def _clicks(model, params, catalog, batch):
    return model.apply({"params": params}, batch, catalog, method="clicks")


@functools.partial(jax.jit, static_argnums=0)
def _candidates(model, params, catalog, batch, item_BC, gap_B):
    return model.apply({"params": params}, batch, catalog, item_BC, gap_B, method="candidate_clicks")
