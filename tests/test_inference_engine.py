"""Serving equals the full pass: states that grow and states read at once, filters, beams, hybrid, bytes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hisam_jax.errors import UserError
from hisam_jax.inference import filters, steps
from hisam_jax.inference.engine import Engine, EngineConfig, Items, Wanted
from hisam_jax.inference.histories import History
from hisam_jax.inference.scorer import Scorer
from hisam_jax.inference.top_items import top_items
from hisam_jax.inference.user_state import BrokenState, UserState
from hisam_jax.models.catalog import Catalog
from hisam_jax.tokenizer.trie import build_trie
from tests.model_fixtures import ITEMS, small_batch, small_catalog, small_model, small_params

ROOM = 8
CONFIG = EngineConfig(rows=(1, 4), lengths=(4, 16), candidates=(8,), k=ITEMS, beams=ITEMS, cold=6)
NOTHING = np.zeros(0, np.int32)
VARIANTS = [{}, {"strict": True, "window": 3}, {"anchors": False}, {"anchor_token": False, "kv_heads": 2}]
VARIANTS += [{"actions": True, "ranking": 1.0}]


def history(n: int, seed: int = 0) -> History:
    rng = np.random.default_rng(seed)
    item, action = rng.integers(0, ITEMS - 3, n), rng.integers(0, 11, n)
    return History(item.astype(np.int32), action.astype(np.int32), rng.random(n).astype(np.float32))


def roomy(catalog: Catalog) -> Catalog:
    return jax.tree.map(lambda x: jnp.pad(jnp.asarray(x), [(0, ROOM), *[(0, 0)] * (x.ndim - 1)]), catalog)


def made(config=CONFIG, **switches) -> tuple[Engine, Items, Scorer, np.ndarray]:
    """An engine over a small model with room for new items, and what evaluation scores it with."""
    catalog = small_catalog()
    model, batch = small_model(**switches), small_batch(catalog)
    params, _ = small_params(model, catalog, batch)
    full = np.concatenate([catalog.codes_IL, np.arange(ITEMS)[:, None] % 4], axis=1)
    sizes = (*model.vocab, model.digit)
    engine, large = Engine(model, params, config), roomy(catalog)
    real = np.arange(ITEMS + ROOM) < ITEMS
    facts = filters.ItemFacts(jnp.asarray(real), jnp.zeros(len(real), jnp.int32), jnp.zeros((len(real), 1), jnp.uint32))
    popularity = np.log1p(np.where(real, np.arange(len(real)), 0)).astype(np.float32)
    vectors = engine.vectors(large) if model.config.retrieval else jnp.zeros((len(real), 16))
    cold = jnp.asarray(real & (np.arange(len(real)) >= ITEMS - 5))
    trie = build_trie(full, sizes, ITEMS + ROOM)
    items = Items(large, trie, facts, vectors, jnp.asarray(popularity), cold)
    return engine, items, Scorer(model, params, catalog, build_trie(full, sizes), np.arange(ITEMS), 16, rows=3), full


def grown(engine: Engine, items: Items, past: History) -> UserState:
    states = [engine.empty()]
    for at in range(len(past)):
        one = History(past.item[at : at + 1], past.action[at : at + 1], past.gap[at : at + 1])
        states = engine.append(items, states, one)
    return states[0]


def assert_same(one: UserState, other: UserState) -> None:
    assert one.kept == other.kept
    for name in ("k", "v", "read"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=2e-5, err_msg=name)


@pytest.mark.parametrize("switches", VARIANTS)
def test_states_that_grew_equal_those_read_at_once(switches):
    engine, items, _, _ = made(**switches)
    lengths = (1, 5, 3)
    read = engine.read(items, [history(n, n) for n in lengths])
    for n, state in zip(lengths, read, strict=True):
        assert_same(grown(engine, items, history(n, n)), state)


def test_a_window_forgets_as_the_full_pass_under_it():
    """23 items, a window of 4, two layers: kept anchors tell of items up to eight back, and of no others."""
    config = dataclasses.replace(CONFIG, lengths=(4,))
    engine, items, _, _ = made(config, layers=2)
    past = history(23)
    state = grown(engine, items, past)
    whole = {name: getattr(past, name)[None] for name in ("item", "action", "gap")}
    whole |= {"segment": np.ones((1, 23), np.int32), "codes": items.codes_IL[whole["item"]]}
    read, cache = steps.read_histories(engine.model, engine.params, items.catalog, whole)
    np.testing.assert_allclose(state.k, np.asarray(cache.k)[:, 0, -4:], atol=2e-5)
    np.testing.assert_allclose(state.read, np.asarray(read)[0], atol=2e-5)
    np.testing.assert_allclose(engine.read(items, [past])[0].read, state.read, atol=2e-5)
    assert engine.read(items, [past])[0].kept == state.kept == 4


@pytest.mark.parametrize("switches", VARIANTS)
@pytest.mark.parametrize("way", ["retrieval", "generation"])
def test_lists_equal_those_that_are_evaluated(switches, way):
    engine, items, scorer, _ = made(**switches)
    pasts = [history(n, n) for n in (5, 1, 9)]
    seen = [np.unique(past.item) for past in pasts]
    wanted = [Wanted(hidden) for hidden in seen]
    got = engine.recommend(items, engine.read(items, pasts), wanted, 10, way)
    table = scorer.retrieval(pasts) if way == "retrieval" else scorer.generation(pasts, seen, beams=ITEMS)[1]
    for row, (item, score) in enumerate(got):
        table[row][seen[row]] = -np.inf
        assert len(item) == len(set(item)) == 10 and not np.isin(item, seen[row]).any()
        np.testing.assert_allclose(score, np.sort(table[row])[::-1][:10], atol=3e-4)
        np.testing.assert_allclose(score, table[row][item], atol=3e-4)


def test_candidates_of_users_apart_equal_those_evaluated():
    engine, items, scorer, _ = made(actions=True, ranking=1.0)
    pasts, candidates = [history(5, 5), history(2, 2)], [np.array([3, 9, 1]), np.array([7])]
    got = engine.rank(items, engine.read(items, pasts), candidates, "ranking")
    for past, mine, logits in zip(pasts, candidates, got, strict=True):
        np.testing.assert_allclose(logits, scorer.clicks_for(past, mine), atol=3e-5)


def test_filters_compose_without_compiling_again():
    engine, items, scorer, _ = made()
    rng = np.random.default_rng(0)
    members = rng.random((ITEMS + ROOM, 3)) < 0.4
    added = rng.integers(1, 100, ITEMS + ROOM)
    facts = items.facts.replace(
        servable_I=items.facts.servable_I & (np.arange(ITEMS + ROOM) % 3 > 0),
        added_I=jnp.asarray(added, jnp.int32),
        attributes_IW=jnp.asarray(filters.bit_sets(members)),
    )
    items = dataclasses.replace(items, facts=facts)
    past = history(5)
    states = engine.read(items, [past])
    cases = [Wanted(NOTHING), Wanted(past.item, 50), Wanted(past.item, 50, np.array([0b101], np.uint32))]
    for way in ("retrieval", "generation"):
        engine.recommend(items, states, cases[:1], 5, way)
        compiled = engine.compiled()
        for wanted in cases:
            fits = (
                np.asarray(facts.servable_I) & (added >= wanted.oldest) & ~np.isin(np.arange(len(added)), wanted.hidden)
            )
            if wanted.any_of is not None:
                fits &= members[:, [0, 2]].any(1)
            item, _ = engine.recommend(items, states, [wanted], ITEMS, way)[0]
            assert sorted(item) == np.flatnonzero(fits).tolist()
        assert engine.compiled() == compiled


def test_narrow_beams_do_not_spend_themselves_on_items_that_are_not_allowed():
    """The only allowed item is found by a single beam, however unlikely its ID is."""
    engine, items, scorer, _ = made(dataclasses.replace(CONFIG, beams=1, sharing=1))
    past = history(4)
    states = engine.read(items, [past])
    for only in (0, 11, 25):
        facts = items.facts.replace(servable_I=jnp.arange(ITEMS + ROOM) == only)
        item, _ = engine.recommend(dataclasses.replace(items, facts=facts), states, [Wanted(NOTHING)], 5, "generation")[
            0
        ]
        assert item.tolist() == [only]


def test_items_that_share_an_id_are_all_returned():
    catalog = small_catalog()
    codes = np.array(catalog.codes_IL)
    codes[7] = codes[21] = codes[3]
    engine, items, _, _ = made()
    trie = build_trie(np.concatenate([codes, np.zeros((ITEMS, 1), int)], 1), items.trie.sizes, ITEMS + ROOM)
    items = dataclasses.replace(items, trie=trie)
    item, score = engine.recommend(
        items, engine.read(items, [history(4)]), [Wanted(np.array([21]))], ITEMS, "generation"
    )[0]
    places = [item.tolist().index(shared) for shared in (3, 7)]
    assert abs(places[0] - places[1]) == 1 and score[places[0]] == score[places[1]] and 21 not in item


@pytest.mark.parametrize("by", ["retrieval", "ranking"])
def test_a_hybrid_is_the_best_of_generated_and_cold_items(by):
    switches = {"actions": True, "ranking": 1.0} if by == "ranking" else {}
    engine, items, scorer, _ = made(dataclasses.replace(CONFIG, beams=6, cold_every=1), **switches)
    past = history(5)
    states = engine.read(items, [past])
    generated, _ = engine.recommend(items, states, [Wanted(NOTHING)], ITEMS, "generation")[0]
    item, score = engine.recommend(items, states, [Wanted(NOTHING)], ITEMS, "hybrid", by)[0]
    cold = np.flatnonzero(np.asarray(items.cold_I))
    assert set(item) == {*generated.tolist(), *cold.tolist()} and len(set(item)) == len(item)
    want = scorer.retrieval([past])[0] if by == "retrieval" else scorer.clicks_for(past, np.arange(ITEMS))
    np.testing.assert_allclose(score, want[item], atol=3e-4)
    assert (np.diff(score) <= 0).all()


@pytest.mark.parametrize("every", [3, 4])
def test_a_hybrid_gives_cold_items_one_of_so_many_places_and_loses_none(every):
    """All scores of cold items are raised far above the others'."""
    engine, items, _, _ = made(dataclasses.replace(CONFIG, beams=9, cold_every=every))
    states = engine.read(items, [history(5)])
    cold = np.asarray(items.cold_I)
    read = jnp.asarray(states[0].read)[None]
    user = steps.user_vectors(engine.model, engine.params, read)[0]
    items = dataclasses.replace(items, vectors_ID=items.vectors_ID + 100 * cold[:, None] * user / (user @ user))
    generated, _ = engine.recommend(items, states, [Wanted(NOTHING)], ITEMS, "generation")[0]
    item, score = engine.recommend(items, states, [Wanted(NOTHING)], ITEMS, "hybrid")[0]
    joined = np.isin(item, np.setdiff1d(np.flatnonzero(cold), generated))
    assert set(item) == {*generated.tolist(), *np.flatnonzero(cold).tolist()} and (np.diff(score) <= 0).all()
    ranked = min(len(item), (~joined).sum() // (every - 1) * every)
    places = np.flatnonzero(joined[:ranked]) + 1
    assert places.tolist() == [every * (n + 1) for n in range(len(places))] and len(places) > 1


def test_a_user_without_history_is_served_by_popularity_and_one_item_is_enough():
    engine, items, _, _ = made()
    states = [engine.empty(), *engine.read(items, [history(1)])]
    for way in engine.ways:
        new, one = engine.recommend(items, states, [Wanted(np.array([ITEMS - 1])), Wanted(NOTHING)], 5, way)
        assert new[0].tolist() == list(range(ITEMS - 2, ITEMS - 7, -1))
        assert len(one[0]) == 5


def test_a_new_item_is_recommendable_at_once_and_moves_nothing():
    engine, items, _, full = made()
    states = engine.read(items, [history(5)])
    before = dict(zip(*engine.recommend(items, states, [Wanted(NOTHING)], ITEMS, "generation")[0], strict=True))
    compiled = engine.compiled()
    new = ITEMS
    row = np.append(full[5, :-1], 3)
    catalog = items.catalog.replace(codes_IL=items.catalog.codes_IL.at[new].set(row[:-1]))
    catalog = catalog.replace(features={"text": catalog.features["text"].at[new].set(catalog.features["text"][5])})
    facts = items.facts.replace(servable_I=items.facts.servable_I.at[new].set(True))
    trie = build_trie(np.concatenate([full, row[None]]), items.trie.sizes, like=items.trie)
    items = dataclasses.replace(items, catalog=catalog, facts=facts, trie=trie, vectors_ID=engine.vectors(catalog))
    assert np.isfinite(np.asarray(items.vectors_ID)).all()
    after = dict(zip(*engine.recommend(items, states, [Wanted(NOTHING)], ITEMS, "generation")[0], strict=True))
    assert new in after and engine.compiled() == compiled
    np.testing.assert_allclose(
        [after[item] for item in before if item in after], [before[i] for i in before if i in after], atol=1e-5
    )
    assert new in engine.recommend(items, states, [Wanted(NOTHING)], ITEMS + 1, "retrieval")[0][0] or CONFIG.k == ITEMS


@pytest.mark.parametrize(("form", "tolerance"), [("float32", 0), ("bfloat16", 2**-8), ("int8", 2**-6)])
def test_packed_states_come_back(form, tolerance):
    engine, items, _, _ = made()
    state = engine.read(items, [history(6)])[0]
    data = state.packed("release", form)
    back = UserState.unpacked(data, "release")
    scale = np.abs(state.k).max()
    np.testing.assert_allclose(back.k.astype(np.float32), state.k, atol=tolerance * scale)
    np.testing.assert_allclose(back.v.astype(np.float32), state.v, atol=tolerance * np.abs(state.v).max())
    np.testing.assert_array_equal(back.read, state.read)
    assert (back.items, back.kept) == (6, 6)
    with pytest.raises(BrokenState, match="release"):
        UserState.unpacked(data, "another")


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_state_is_told(place, bit, cut):
    state = UserState(
        np.ones((2, 3, 1, 4), np.float32), np.ones((2, 3, 1, 4), np.float32), np.ones(8, np.float32), 3, 3
    )
    data = bytearray(state.packed("r"))
    place %= len(data)
    data[place] ^= 1 << bit
    with pytest.raises(BrokenState):
        UserState.unpacked(bytes(data[:place] if cut else data), "r")


@given(data=st.data(), items=st.integers(1, 90), block=st.integers(1, 40), k=st.integers(1, 30))
def test_top_items_by_blocks_equal_a_sort(data, items, block, k):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    user, vectors = rng.integers(-2, 3, (2, 3)).astype(np.float32), rng.integers(-2, 3, (items, 3)).astype(np.float32)
    allowed = rng.random((2, items)) < 0.7
    item, score = map(
        np.asarray, top_items(jnp.asarray(user), jnp.asarray(vectors), jnp.asarray(allowed), k, block=block)
    )
    for row in range(2):
        scores = np.where(allowed[row], vectors @ user[row], -1e30)
        want = np.argsort(-scores, kind="stable")[:k]
        want = want[allowed[row][want]]
        found = score[row] > -1e29
        assert item[row][found].tolist() == want.tolist()


@pytest.mark.parametrize("most", [ITEMS + ROOM, 9])
def test_a_ranking_head_alone_ranks_the_popular_allowed_items(most):
    """In blocks of eight candidates, the last one short."""
    switches = {"actions": True, "ranking": 1.0, "generation": 0.0, "retrieval": 0.0}
    engine, items, scorer, _ = made(dataclasses.replace(CONFIG, ranked=most), **switches)
    assert engine.ways == ("ranking",)
    past, hidden = history(5), np.arange(ITEMS - 4, ITEMS)  # the most popular ones
    new, known = engine.recommend(
        items, [engine.empty(), *engine.read(items, [past])], [Wanted(hidden)] * 2, ITEMS, "ranking"
    )
    candidates = np.arange(ITEMS - 4)[-min(most, ITEMS - 4) :]
    logits = scorer.clicks_for(past, candidates)
    assert sorted(known[0]) == candidates.tolist()
    np.testing.assert_allclose(known[1], np.sort(logits)[::-1], atol=3e-5)
    np.testing.assert_allclose(known[1], logits[known[0] - candidates[0]], atol=3e-5)
    assert new[0].tolist()[:5] == list(range(ITEMS - 5, ITEMS - 10, -1))


def test_a_way_that_was_not_trained_is_refused():
    engine, items, _, _ = made(generation=0.0)
    assert engine.ways == ("retrieval",)
    with pytest.raises(UserError, match="way"):
        engine.recommend(items, [engine.empty()], [Wanted(NOTHING)], 5, "generation")
