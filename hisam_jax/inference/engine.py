"""A trained model that serves many users at once: a few padded shapes, compiled before the first request."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from hisam_jax.config import check_least
from hisam_jax.errors import UserError
from hisam_jax.inference import explain, steps
from hisam_jax.inference.filters import WORD, Filter, ItemFacts, allowed, set_bits
from hisam_jax.inference.histories import History, pad_histories
from hisam_jax.inference.top_items import NO_SCORE
from hisam_jax.inference.user_state import UserState, stacked
from hisam_jax.models.catalog import Catalog
from hisam_jax.models.hmat import HMAT
from hisam_jax.tokenizer.trie import Trie

Way = Literal["retrieval", "generation", "hybrid", "ranking"]
WAYS: tuple[Way, ...] = ("retrieval", "generation", "hybrid", "ranking")


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Shapes that are compiled, and what a request may ask.

    Attributes:
        rows: padded numbers of requests, ascending.
        lengths: padded numbers of kept items, ascending; the last is the item-level window.
        candidates: padded numbers of candidates to rank, ascending.
        k: the most recommendations of a request.
        beams: of the beam search, one number or one a level.
        sharing: of the items that share an ID, how many are returned.
        cold: cold items that join a hybrid's candidates.
        ranked: of a model with a ranking head alone: the most popular allowed items, which it ranks for a list.
        cold_every: of as many places of a hybrid's list, one may be theirs; 1: any.
        approximate: retrieval by `jax.lax.approx_max_k`.
    """

    rows: tuple[int, ...] = (1, 8, 32)
    lengths: tuple[int, ...] = (16, 64, 300)
    candidates: tuple[int, ...] = (100, 1000)
    k: int = 100
    beams: int | tuple[int, ...] = 100
    sharing: int = 4
    cold: int = 50
    ranked: int = 2000
    cold_every: int = 10
    approximate: bool = False

    def __post_init__(self):
        check_least(self, "serve", k=1, sharing=1, cold=0, ranked=1, cold_every=1)
        for name in ("rows", "lengths", "candidates"):
            sizes = getattr(self, name)
            if not sizes or sorted(set(sizes)) != list(sizes) or sizes[0] < 1:
                raise UserError(f"value {sizes}", field=f"serve.{name}", expected="ascending sizes of at least 1")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The conditions of one request.

    Attributes:
        hidden: item indices to leave out, as many as there are.
        oldest: day number; items added earlier are left out.
        any_of: uint32 words, a bit set of attributes of which an item must have one; None asks for nothing.
    """

    hidden: np.ndarray
    oldest: int = 0
    any_of: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Items:
    """Everything that is known of items; replaced whole when one comes or goes, at unchanged shapes.

    Attributes:
        catalog, trie, facts: with room for new items.
        vectors_ID: of retrieval.
        popularity_I: log counts, what users without history are served by.
        cold_I: bool, with fewer training interactions than a cold item has.
    """

    catalog: Catalog
    trie: Trie
    facts: ItemFacts
    vectors_ID: jax.Array
    popularity_I: jax.Array
    cold_I: jax.Array

    @functools.cached_property
    def codes_IL(self) -> np.ndarray:
        """The catalogue's codes on the host."""
        return np.asarray(self.catalog.codes_IL)

    @functools.cached_property
    def tree(self) -> Trie:
        """The trie on the host."""
        return jax.tree.map(np.asarray, self.trie)

    @functools.cached_property
    def served_before(self) -> np.ndarray:
        """`[I + 1]`: how many items that are served stand before each place of the trie's order."""
        return np.append(0, np.cumsum(np.asarray(self.facts.servable_I)[self.tree.item_order]))


def fitting(sizes: Sequence[int], wanted: int) -> int:
    """The smallest size that holds so many."""
    return next(size for size in sizes if size >= wanted)


class Engine:
    """Pure steps of one model over `Items`, compiled once per shape.

    Args:
        model: the module. Where its own window is 0, its attention is bounded to the served window, so that what is
            kept is exactly what the full pass under that window reads.
        params: its parameters.
        config: shapes.
    """

    def __init__(self, model: HMAT, params: Any, config: EngineConfig):
        window = config.lengths[-1]
        if model.config.anchors:
            window = min(window, model.config.window or window)
            model = model.clone(config=dataclasses.replace(model.config, window=window, remat="none"))
        self.model, self.params, self.config = model, params, config
        self.tokens = 1 if model.config.anchors else model.slots
        self._run = {name: jax.jit(functools.partial(step, model)) for name, step in _ARRAY_STEPS.items()}
        self._run |= {
            name: jax.jit(functools.partial(step, model), static_argnames=fixed)
            for name, (step, fixed) in _LIST_STEPS.items()
        }

    @property
    def window(self) -> int:
        """Items that a state keeps."""
        return self.config.lengths[-1]

    @property
    def read_lengths(self) -> tuple[int, ...]:
        """Padded lengths of histories that are read whole."""
        layers = self.model.config.layers if self.model.config.anchors else 0
        return (*self.config.lengths, *(self.window * layer + 1 for layer in range(1, layers + 1)))

    @functools.cached_property
    def ways(self) -> tuple[Way, ...]:
        """Ways to recommend that the trained heads allow."""
        c = self.model.config
        able = {"retrieval": c.retrieval, "generation": c.generation, "hybrid": c.retrieval and c.generation}
        able["ranking"] = c.ranking and not (c.retrieval or c.generation)
        return tuple(name for name in WAYS if able.get(name))

    def compiled(self) -> int:
        """How many programs there are so far."""
        return sum(step._cache_size() for step in self._run.values())

    def vectors(self, catalog: Catalog) -> jax.Array:
        """`[I, D]`, for `Items`."""
        return self._run["item_vectors"](self.params, catalog)

    def empty(self) -> UserState:
        """A user without history."""
        c = self.model.config
        none = np.zeros((c.layers, 0, c.kv_heads, c.head_width), np.dtype(c.compute_dtype))
        return UserState(none, none, np.zeros(c.width, np.float32), 0, 0)

    def read(self, items: Items, histories: Sequence[History]) -> list[UserState]:
        """States of whole histories, equal to those that appending would have made, to rounding.

        Under a window, the last item's state depends on itself and as many windows of items as there are layers: no
        more than that is read, and the latest `window` anchors are kept.
        """
        sizes = self.read_lengths
        deep = sizes[-1]
        out: list[UserState] = [self.empty()] * len(histories)
        order = sorted((i for i in range(len(histories)) if len(histories[i])), key=lambda i: len(histories[i]))
        for start in range(0, len(order), self.config.rows[-1]):
            chosen = order[start : start + self.config.rows[-1]]
            part = [histories[i].latest(deep) for i in chosen]
            rows, length = fitting(self.config.rows, len(part)), fitting(sizes, len(part[-1]))
            batch = pad_histories(part, items.codes_IL, length, rows)
            read_BD, cache = self._run["read_histories"](self.params, items.catalog, batch)
            k, v, read_BD = (np.asarray(x) for x in (cache.k, cache.v, read_BD))
            for row, (index, history) in enumerate(zip(chosen, part, strict=True)):
                kept, last = min(len(history), self.window), len(history) * self.tokens
                mine = (np.ascontiguousarray(x[:, row, last - kept * self.tokens : last]) for x in (k, v))
                out[index] = UserState(*mine, read_BD[row].copy(), len(history), kept)
        return out

    def append(self, items: Items, states: Sequence[UserState], events: History) -> list[UserState]:
        """Each user's state with one more item, `events` holding one of each user."""
        out = []
        for chosen in self._parts(len(states)):
            part = [states[i] for i in chosen]
            cache, items_B, _ = self._stacked(part)
            rows = len(items_B)
            event = {name: _padded(getattr(events, name)[chosen], rows) for name in ("item", "action", "gap")}
            read_BD, own = self._run["append"](self.params, items.catalog, cache, items_B, event)
            k, v, read_BD = (np.asarray(x) for x in (own.k, own.v, read_BD))
            for row, state in enumerate(part):
                out.append(state.appended(k[:, row].copy(), v[:, row].copy(), read_BD[row].copy(), self.window))
        return out

    def recommend(
        self, items: Items, states: Sequence[UserState], wanted: Sequence[Wanted], k: int, way: Way = "retrieval",
        by: str = "retrieval", gaps: np.ndarray | None = None,
    ) -> list[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
        """`(item indices, scores)` of each user, best first, at most `k`; fewer where filters leave fewer."""
        out = []
        gaps = np.zeros(len(states), np.float32) if gaps is None else gaps
        for chosen in self._parts(len(states)):
            cache, items_B, read_BD = self._stacked([states[i] for i in chosen])
            request = self.filter_of(items, [wanted[i] for i in chosen], len(items_B))
            found = self._lists(items, cache, read_BD, items_B, _padded(gaps[chosen], len(items_B)), request, way, by)
            item_Bk, score_Bk = (np.asarray(x) for x in found)
            for row in range(len(chosen)):
                there = score_Bk[row] > NO_SCORE
                out.append((item_Bk[row][there][:k], score_Bk[row][there][:k]))
        return out

    def rank(
        self, items: Items, states: Sequence[UserState], candidates: Sequence[np.ndarray], by: str,
        gaps: np.ndarray | None = None,
    ) -> list[np.ndarray]:  # fmt: skip
        """Scores of each user's own candidates, in their order, by the `ranking` or `retrieval` head."""
        out = []
        gaps = np.zeros(len(states), np.float32) if gaps is None else gaps
        for chosen in self._parts(len(states)):
            cache, items_B, read_BD = self._stacked([states[i] for i in chosen])
            width = fitting(self.config.candidates, max(len(candidates[i]) for i in chosen))
            item_BC = np.zeros((len(items_B), width), np.int32)
            for row, index in enumerate(chosen):
                item_BC[row, : len(candidates[index])] = candidates[index]
            if by == "ranking":
                gap_B = _padded(gaps[chosen], len(items_B))
                found = self._run["click_logits"](self.params, items.catalog, cache, items_B, item_BC, gap_B)
            else:
                found = self._run["scores"](self.params, items.vectors_ID, read_BD, item_BC)
            out += [np.asarray(found)[row, : len(candidates[index])] for row, index in enumerate(chosen)]
        return out

    def explain(
        self, items: Items, state: UserState, history: History, item: int, codes_L: np.ndarray, way: str
    ) -> explain.Explanation:
        """Why an item is recommended to a user, see `inference.explain`.

        Args:
            state: of the user.
            history: at least the last two events of it, fewer where there were fewer.
            codes_L: the item's ID, the digit last where there is one.
            way: `retrieval` or `generation`.
        """
        names = explain.part_names(self.model, items.catalog, way)
        if not state.items:
            popular = float(np.asarray(items.popularity_I)[item])
            return explain.Explanation(popular, {"popularity": popular}, np.zeros(0, np.float32))
        capacity = fitting(self.config.lengths, state.kept)
        cache, items_B, read_BD = stacked([state], 1, capacity, self.tokens, np.dtype(self.model.config.compute_dtype))
        last = history.latest(2)
        events = {name: np.pad(getattr(last, name), (2 - len(last), 0)) for name in ("item", "action", "gap")}
        part_P, drop_M = self._run["explain"](
            self.params, items.catalog, cache, items_B[0], read_BD, events, np.int32(item),
            np.asarray(codes_L, np.int32), way=way,
        )  # fmt: skip
        part_P, drop_M = np.asarray(part_P), np.asarray(drop_M)[: state.kept]
        return explain.Explanation(float(part_P.sum()), dict(zip(names, part_P.tolist(), strict=True)), drop_M)

    def warm_up(self, items: Items) -> int:
        """Compiles every shape that a request may need; returns how many programs there are then."""
        c = self.config
        by = "ranking" if self.model.config.ranking else "retrieval"
        heads = [head for head in ("ranking", "retrieval") if getattr(self.model.config, head)]
        for rows in c.rows:
            for length in self.read_lengths:
                states = self.read(items, [_blank(length)] * rows)
                if length not in c.lengths:
                    continue
                if rows == c.rows[0]:
                    self._explain_all_ways(items, states[0], length)
                self.append(items, states, _blank(rows))
                for way in self.ways:
                    self.recommend(items, states, [Wanted(np.zeros(0, np.int32))] * rows, 1, way, by)
                for width, head in itertools.product(c.candidates, heads):
                    self.rank(items, states, [np.zeros(width, np.int32)] * rows, head)
        return self.compiled()

    def _explain_all_ways(self, items: Items, state: UserState, length: int) -> None:
        codes_L = np.zeros(len(items.trie.sizes), np.int32)
        for way in set(self.ways) & set(explain.WAYS):
            self.explain(items, state, _blank(length), 0, codes_L, way)

    def _lists(self, items: Items, cache, read_BD, items_B, gap_B, request: Filter, way: Way, by: str):
        if way not in self.ways:
            raise UserError(f"{way!r}", field="way", expected=" or ".join(self.ways) or "a model with lists")
        c, facts = self.config, items.facts
        k = min(c.k, items.popularity_I.shape[0])
        common = (items.popularity_I, cache, read_BD, items_B, facts, request)
        if way == "retrieval":
            run = self._run["retrieve_approximate" if c.approximate else "retrieve"]
            return run(self.params, items.vectors_ID, items.popularity_I, read_BD, items_B, facts, request, k=k)
        if way == "generation":
            return self._run["generate_items"](self.params, items.trie, *common, beams=c.beams, k=k, sharing=c.sharing)
        if way == "ranking":
            common = (items.popularity_I, cache, items_B, gap_B, facts, request)
            return self._run["rank_items"](
                self.params, items.catalog, *common, k=k, most=c.ranked, block=c.candidates[-1]
            )  # fmt: skip
        return self._run["hybrid"](
            self.params, items.catalog, items.trie, items.vectors_ID, items.popularity_I, items.cold_I, cache, read_BD,
            items_B, gap_B, facts, request, beams=c.beams, k=k, sharing=c.sharing, cold=min(c.cold, k),
            cold_every=c.cold_every, by=by,
        )  # fmt: skip

    def _parts(self, count: int) -> Iterator[np.ndarray]:
        most = self.config.rows[-1]
        return (np.arange(start, min(start + most, count)) for start in range(0, count, most))

    def _stacked(self, states: Sequence[UserState]):
        rows = fitting(self.config.rows, len(states))
        capacity = fitting(self.config.lengths, max(state.kept for state in states))
        return stacked(states, rows, capacity, self.tokens, np.dtype(self.model.config.compute_dtype))

    def filter_of(self, items: Items, wanted: Sequence[Wanted], rows: int) -> Filter:
        words = items.facts.attributes_IW.shape[1]
        hidden_BW = np.zeros((rows, -(-items.facts.servable_I.shape[0] // WORD)), np.uint32)
        oldest_B, any_of_BW = np.zeros(rows, np.int32), np.zeros((rows, words), np.uint32)
        for row, request in enumerate(wanted):
            set_bits(hidden_BW[row], request.hidden)
            oldest_B[row] = request.oldest
            if request.any_of is not None:
                any_of_BW[row] = request.any_of
        return Filter(hidden_BW, oldest_B, any_of_BW)


def _blank(length: int) -> History:
    return History(np.zeros(length, np.int32), np.zeros(length, np.int32), np.zeros(length, np.float32))


def _padded(values: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(values, (0, rows - len(values)))


def _scores(model, params, vectors_ID, read_BD, item_BC):
    return jnp.einsum("bd,bcd->bc", steps.user_vectors(model, params, read_BD), vectors_ID[item_BC])


def _retrieve(model, params, vectors_ID, popularity_I, read_BD, items_B, facts, request, *, k, approximate=False):
    fit_BI = allowed(facts, request)
    return steps.retrieve(
        model, params, vectors_ID, popularity_I, read_BD, items_B, fit_BI, k=k, approximate=approximate
    )


def _generate(model, params, trie, popularity_I, cache, read_BD, items_B, facts, request, **options):
    fit_BI = allowed(facts, request)
    return steps.generate_items(model, params, trie, popularity_I, cache, read_BD, items_B, fit_BI, **options)


def _rank_items(model, params, catalog, popularity_I, cache, items_B, gap_B, facts, request, **options):
    fit_BI = allowed(facts, request)
    return steps.rank_items(model, params, catalog, popularity_I, cache, items_B, gap_B, fit_BI, **options)


def _hybrid(model, params, catalog, trie, vectors_ID, popularity_I, cold_I, cache, read_BD, items_B, gap_B,
            facts, request, **options):  # fmt: skip
    return steps.hybrid(
        model, params, catalog, trie, vectors_ID, popularity_I, cold_I, cache, read_BD, items_B, gap_B,
        allowed(facts, request), **options,
    )  # fmt: skip


_ARRAY_STEPS = {
    "item_vectors": steps.item_vectors,
    "read_histories": steps.read_histories,
    "append": steps.append,
    "click_logits": steps.click_logits,
    "scores": _scores,
}
_LIST_STEPS = {
    "retrieve": (_retrieve, ("k",)),
    "retrieve_approximate": (functools.partial(_retrieve, approximate=True), ("k",)),
    "generate_items": (_generate, ("k", "beams", "sharing")),
    "hybrid": (_hybrid, ("k", "beams", "sharing", "cold", "cold_every", "by")),
    "rank_items": (_rank_items, ("k", "most", "block")),
    "explain": (explain.explain, ("way",)),
}
