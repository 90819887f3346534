"""A trained model over histories: retrieval scores, generated IDs, click logits. Compiled once per padded length."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hisam_jax.data.pipeline import Batch
from hisam_jax.inference import steps
from hisam_jax.inference.engine import EngineConfig
from hisam_jax.inference.histories import SHORTEST, History, batches, bucket
from hisam_jax.inference.top_items import NO_SCORE
from hisam_jax.models.catalog import Catalog
from hisam_jax.models.hmat import HMAT
from hisam_jax.tokenizer.trie import Trie

ROWS = 64
CANDIDATES = 512
TOGETHER = 64  # candidates of each of many histories at a time
LISTED = 100  # of a hybrid: no metric looks further
HYBRID = {name: getattr(EngineConfig, name) for name in ("sharing", "cold", "cold_every")}  # as it is served


class Scorer:
    """Pure functions of a model's parameters, jitted.

    Args:
        model: the module.
        params: its parameters.
        catalog: frozen item tables.
        trie: existing IDs, for generation.
        popularity_I: training counts; what an empty history is served by.
        window: the most items of history that the model reads.
        rows: histories of a batch.
        shortest: padded length of the shortest histories; `window` pads all to one, which compiles once.
    """

    def __init__(
        self,
        model: HMAT,
        params,
        catalog: Catalog,
        trie: Trie,
        popularity_I: np.ndarray,
        window: int,
        rows: int = ROWS,
        shortest: int = SHORTEST,
    ):
        self.model, self.params, self.trie, self.window, self.rows = model, params, trie, window, rows
        self.shortest = shortest
        self.catalog = jax.tree.map(jnp.asarray, catalog)
        self.codes_IL = np.asarray(catalog.codes_IL)
        self.popularity_I = np.log1p(np.asarray(popularity_I, np.float32))
        self._leaf_I = trie.leaf_of_item()

    @functools.cached_property
    def item_vectors(self) -> jax.Array:
        """`[I, D]`, computed once."""
        return _item_vectors(self.model, self.params, self.catalog)

    def retrieval(self, histories: Sequence[History]) -> np.ndarray:
        """float32 `[len(histories), I]`: each user vector's dot product with every item vector."""
        out = np.empty((len(histories), self.catalog.items), np.float32)
        for rows, batch in self._batches(histories, self.rows):
            scores = self._scores(batch)
            out[rows] = np.asarray(scores)[: len(rows)]
        return self._serve_empty(histories, out)

    def generation(
        self, histories: Sequence[History], seen: Sequence[np.ndarray], *, beams: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """`(unmasked, masked)` float32 `[len(histories), I]`: log-probability of the items that the beams reached.

        Items that no beam reached hold -inf; items that share an ID hold the same value. `masked` comes from a search
        that follows no prefix all of whose items are in `seen` (one array of item indices a history).
        """
        free, masked = (np.full((len(histories), self.catalog.items), -np.inf, np.float32) for _ in range(2))
        for rows, batch in self._batches(histories, self.rows):
            unseen = self._unseen([seen[index] for index in rows])
            found = _generation(self.model, self.params, self.catalog, self.trie, batch, unseen, beams)
            for scores, (leaf, logp) in zip((free, masked), found, strict=True):
                scores[rows] = self._spread(np.asarray(leaf), np.asarray(logp))[: len(rows)]
        return self._serve_empty(histories, free), self._serve_empty(histories, masked)

    def hybrid(
        self, histories: Sequence[History], seen: Sequence[np.ndarray], cold_I: np.ndarray, *, beams: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """`(unmasked, masked)` as `generation` has it: retrieval scores of what was generated and of cold items by it.

        `cold_I` (bool `[I]`) says which items generation has seldom seen; they join as `steps.hybrid` says.
        """
        free, masked = (np.full((len(histories), self.catalog.items), -np.inf, np.float32) for _ in range(2))
        for rows, batch in self._batches(histories, self.rows):
            unseen = self._unseen([seen[index] for index in rows])
            found = _hybrid(
                self.model, self.params, self.catalog, self.trie, self.item_vectors, self.popularity_I, cold_I, batch,
                unseen, beams,
            )  # fmt: skip
            for scores, (item, score) in zip((free, masked), found, strict=True):
                item, score = np.asarray(item)[: len(rows)], np.asarray(score)[: len(rows)]
                row, place = np.nonzero(score > NO_SCORE)
                scores[rows[row], item[row, place]] = score[row, place]
        return self._serve_empty(histories, free), self._serve_empty(histories, masked)

    def clicks_along(self, histories: Sequence[History]) -> list[np.ndarray]:
        """Ranking logits of every event of each history, each read before its own action."""
        out: list[np.ndarray] = [np.empty(0)] * len(histories)
        for rows, batch in self._batches(histories, self.rows):
            logits = np.asarray(self._clicks(batch))
            for row, index in enumerate(rows):
                out[index] = logits[row, : len(histories[index])]
        return out

    def clicks_for(self, history: History, candidates: np.ndarray) -> np.ndarray:
        """Ranking logits of candidates after a history; candidates never see each other."""
        _, batch = next(self._batches([history], 1))
        return self._offered(batch, [candidates], np.zeros(1, np.float32), CANDIDATES)[0]

    def clicks_after(
        self, histories: Sequence[History], candidates: Sequence[np.ndarray], gaps: Sequence[float]
    ) -> list[np.ndarray]:
        """The same of many histories, each with candidates of its own and the time since its last event as a gap."""
        out: list[np.ndarray] = [np.empty(0)] * len(histories)
        for rows, batch in self._batches(histories, self.rows):
            gap_B = np.zeros(self.rows, np.float32)
            gap_B[: len(rows)] = [gaps[index] for index in rows]
            offered = [candidates[index] for index in rows]
            width = min(bucket(max(map(len, offered)), TOGETHER), TOGETHER)
            for index, logits in zip(rows, self._offered(batch, offered, gap_B, width), strict=True):
                out[index] = logits
        return out

    def _offered(
        self, batch: Batch, candidates: Sequence[np.ndarray], gap_B: np.ndarray, width: int
    ) -> list[np.ndarray]:
        """Logits of each row's candidates, `width` of every row at a time."""
        score, rows = self._candidates(batch, gap_B), len(gap_B)
        parts: list[list[np.ndarray]] = [[] for _ in candidates]
        for start in range(0, max(map(len, candidates)), width):
            offered, padded = [items[start : start + width] for items in candidates], np.zeros((rows, width), np.int32)
            for row, items in enumerate(offered):
                padded[row, : len(items)] = items
            logits_BC = np.asarray(score(padded))
            for row, items in enumerate(offered):
                parts[row].append(logits_BC[row, : len(items)])
        return [np.concatenate(part) if part else np.empty(0, np.float32) for part in parts]

    def _scores(self, batch: Batch) -> jax.Array:
        """`[B, I]`, what `retrieval` returns of a batch."""
        return _retrieval(self.model, self.params, self.catalog, self.item_vectors, batch)

    def _clicks(self, batch: Batch) -> jax.Array:
        """`[B, N]`, what `clicks_along` returns of a batch."""
        return _clicks(self.model, self.params, self.catalog, batch)

    def _candidates(self, batch: Batch, gap_B: np.ndarray) -> Callable[[np.ndarray], jax.Array]:
        """`item_BC -> logit_BC` after the histories of a batch, which are read once."""
        _, cache = _read(self.model, self.params, self.catalog, batch)
        items_B = (batch["segment"] > 0).sum(1).astype(np.int32)
        return lambda item_BC: _candidates(self.model, self.params, self.catalog, cache, items_B, item_BC, gap_B)

    def _batches(self, histories: Sequence[History], rows: int) -> Iterator[tuple[np.ndarray, Batch]]:
        return batches(histories, self.codes_IL, window=self.window, rows=rows, shortest=self.shortest)

    def _unseen(self, seen: Sequence[np.ndarray]) -> np.ndarray:
        unseen = np.ones((self.rows, self.catalog.items), bool)
        for row, items in enumerate(seen):
            unseen[row, items] = False
        return unseen

    def _spread(self, leaf_BW: np.ndarray, logp_BW: np.ndarray) -> np.ndarray:
        by_leaf = np.full((len(leaf_BW), self.trie.leaves), -np.inf, np.float32)
        row, beam = np.nonzero(logp_BW > NO_SCORE)
        by_leaf[row, leaf_BW[row, beam]] = logp_BW[row, beam]
        return by_leaf[:, self._leaf_I]

    def _serve_empty(self, histories: Sequence[History], scores: np.ndarray) -> np.ndarray:
        empty = [index for index, history in enumerate(histories) if not len(history)]
        scores[empty] = self.popularity_I
        return scores


def retrieval(model, params, catalog, vectors_ID, batch):
    """`[B, I]` scores of every item after each history; what `Scorer` runs, unjitted."""
    read_BD, _ = steps.read_histories(model, params, catalog, batch)
    return steps.user_vectors(model, params, read_BD) @ vectors_ID.T


_item_vectors = jax.jit(steps.item_vectors, static_argnums=0)
_retrieval = jax.jit(retrieval, static_argnums=0)
_read = jax.jit(steps.read_histories, static_argnums=0)
_candidates = jax.jit(steps.click_logits, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 6))
def _generation(model, params, catalog, trie, batch, unseen_BI, beams):
    read_BD, cache = steps.read_histories(model, params, catalog, batch)
    items_B = (batch["segment"] > 0).sum(1)
    search = functools.partial(steps.generate, model, params, trie, cache, read_BD, items_B, beams=beams)
    return search(None), search(unseen_BI)


@functools.partial(jax.jit, static_argnums=(0, 9))
def _hybrid(model, params, catalog, trie, vectors_ID, popularity_I, cold_I, batch, unseen_BI, beams):
    read_BD, cache = steps.read_histories(model, params, catalog, batch)
    items_B = (batch["segment"] > 0).sum(1)

    def search(allowed_BI):
        return steps.hybrid(
            model, params, catalog, trie, vectors_ID, popularity_I, cold_I, cache, read_BD, items_B,
            jnp.zeros_like(items_B, jnp.float32), allowed_BI, beams=beams, k=LISTED, by="retrieval", **HYBRID,
        )  # fmt: skip

    return search(jnp.ones_like(unseen_BI)), search(unseen_BI)


@functools.partial(jax.jit, static_argnums=0)
def _clicks(model, params, catalog, batch):
    return model.apply({"params": params}, method=lambda m: m.click_logits(m(batch, catalog)[0], batch["item"]))
