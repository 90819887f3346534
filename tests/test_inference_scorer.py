"""What is served equals what was trained: cached candidates and beams against full passes and exhaustive search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hisam_jax.inference.histories import History, bucket
from hisam_jax.inference.scorer import Scorer
from hisam_jax.tokenizer.trie import build_trie
from tests.model_fixtures import ITEMS, LEVELS, SIZE, small_batch, small_catalog, small_model, small_params

VARIANTS = [
    {},
    {"strict": True, "window": 3},
    {"anchors": False},
    {"anchor_token": False, "cosine": True, "tied_query": True},
    {"actions": True, "ranking": 1.0, "window": 4, "item_effect": True},
    {"anchors": False, "actions": True, "ranking": 1.0},
    {"anchors": False, "block": "hstu", "actions": True, "ranking": 1.0},
]


def _setup(switches, window=16):
    catalog = small_catalog()
    model, batch = small_model(**switches), small_batch(catalog)
    params, _ = small_params(model, catalog, batch)
    full = np.concatenate([catalog.codes_IL, np.arange(ITEMS)[:, None] % 4], axis=1)
    trie = build_trie(full, (*model.vocab, model.digit))
    scorer = Scorer(model, params, catalog, trie, np.arange(ITEMS), window, rows=3)
    rng = np.random.default_rng(3)
    histories = [
        History(
            rng.integers(0, ITEMS, n).astype(np.int32), rng.integers(0, 11, n).astype(np.int32), np.ones(n, np.float32)
        )
        for n in (5, 1, 12, 3)
    ]
    return catalog, model, params, full, trie, scorer, histories


def _row(history, catalog, extra=()):
    item = np.concatenate([history.item, np.asarray(extra, np.int32)])[None]
    pad = np.zeros(len(extra), np.int32)
    return {
        "item": item,
        "codes": catalog.codes_IL[item],
        "segment": np.ones_like(item),
        "action": np.concatenate([history.action, pad])[None],
        "gap": np.concatenate([history.gap, pad.astype(np.float32)])[None],
    }


def _exhaustive(model, params, catalog, history, full):
    """log p of every item, by a full pass over the history with the item appended."""
    out = []

    @jax.jit
    def logp(batch, codes):
        def run(module):
            state, _ = module(batch, catalog)
            total = 0.0
            for level in range(LEVELS + 1):
                slot = module.reading_slot(level)
                at = state[0, -2, -1] if slot < 0 else state[0, -1, slot]
                total += jax.nn.log_softmax(module.code_logits(at, level))[codes[level]]
            return total

        return model.apply({"params": params}, method=run)

    for item in range(ITEMS):
        out.append(float(logp(_row(history, catalog, [item]), jnp.asarray(full[item]))))
    return np.array(out)


@pytest.mark.parametrize("switches", VARIANTS)
def test_wide_beams_equal_exhaustive_search(switches):
    catalog, model, params, full, _, scorer, histories = _setup(switches)
    seen = [history.item for history in histories]
    free, masked = scorer.generation(histories, seen, beams=ITEMS)
    for index in (0, 1):
        want = _exhaustive(model, params, catalog, histories[index], full)
        np.testing.assert_allclose(free[index], want, atol=2e-4)
        unseen = ~np.isin(np.arange(ITEMS), seen[index])
        np.testing.assert_allclose(masked[index][unseen], want[unseen], atol=2e-4)
        assert np.isneginf(masked[index][~unseen]).all()


def test_narrow_beams_find_existing_items_only_and_the_list_is_deterministic():
    _, _, _, _, _, scorer, histories = _setup({})
    seen = [np.array([], np.int32)] * len(histories)
    first, _ = scorer.generation(histories, seen, beams=5)
    again, _ = scorer.generation(histories, seen, beams=5)
    np.testing.assert_array_equal(first, again)
    assert (np.isfinite(first).sum(1) == 5).all()


@pytest.mark.parametrize("switches", VARIANTS)
def test_retrieval_equals_the_full_pass_whatever_the_padding(switches):
    catalog, model, params, _, _, scorer, histories = _setup(switches)
    got = scorer.retrieval(histories)
    for index, history in enumerate(histories):
        state, _ = model.apply({"params": params}, _row(history, catalog), catalog)
        user = model.apply({"params": params}, state[:, -1:], method="user_vectors")[0, 0]
        want = model.apply({"params": params}, catalog, method="item_vectors") @ user
        np.testing.assert_allclose(got[index], want, atol=3e-4)


@pytest.mark.parametrize("switches", [v for v in VARIANTS if v.get("ranking")])
def test_candidates_over_the_cache_equal_appending_them(switches):
    catalog, model, params, _, _, scorer, histories = _setup(switches)
    got = scorer.clicks_for(histories[0], np.array([7, 3, 39]))
    for logit, item in zip(got, (7, 3, 39), strict=True):
        batch = _row(histories[0], catalog, [item])
        want = model.apply({"params": params}, method=lambda m, b=batch: m.click_logits(m(b, catalog)[0], b["item"]))
        np.testing.assert_allclose(logit, want[0, -1], atol=2e-5)
    along = scorer.clicks_along(histories)
    assert [len(x) for x in along] == [len(h) for h in histories]


@pytest.mark.parametrize("switches", [v for v in VARIANTS if v.get("ranking")])
def test_candidates_of_many_histories_are_those_of_each(switches, monkeypatch):
    *_, scorer, histories = _setup(switches)
    candidates = [np.array(items, np.int32) for items in ([7, 3, 39], [], range(ITEMS), [5] * 9)]
    want = [
        scorer.clicks_for(history, items) for history, items in zip(histories, candidates, strict=True) if len(items)
    ]
    monkeypatch.setattr("hisam_jax.inference.scorer.TOGETHER", 8)  # several parts for the longest
    offered, widths = scorer._candidates, []

    def watched(batch, gap_B):
        score = offered(batch, gap_B)
        return lambda item_BC: widths.append(item_BC.shape[1]) or score(item_BC)

    monkeypatch.setattr(scorer, "_candidates", watched)
    got = scorer.clicks_after(histories, candidates, [0.0] * len(histories))
    assert len(widths) >= ITEMS // 8 and max(widths) == 8
    assert [len(logits) for logits in got] == [len(items) for items in candidates]
    for mine, theirs in zip((logits for logits in got if len(logits)), want, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)
    later = scorer.clicks_after(histories, candidates, [6.0, 0.0, 0.0, 0.0])
    assert np.abs(later[0] - got[0]).max() > 1e-3  # the time since the last event counts
    np.testing.assert_allclose(later[3], got[3], atol=2e-5)


def test_an_empty_history_is_served_by_popularity():
    _, _, _, _, _, scorer, histories = _setup({})
    empty = History(*(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32)))
    scores = scorer.retrieval([histories[0], empty])
    assert np.argmax(scores[1]) == ITEMS - 1
    free, _ = scorer.generation([empty], [empty.item], beams=4)
    assert np.argmax(free[0]) == ITEMS - 1


def test_trie_holds_exactly_the_existing_prefixes():
    codes = small_catalog().codes_IL
    trie = build_trie(codes, (SIZE + 1,) * LEVELS)
    node_of = {(): 0}
    for level in range(LEVELS):
        existing = {tuple(row[: level + 1]) for row in codes.tolist()}
        for prefix in sorted({p[:-1] for p in existing}):
            child, exists = trie.children(jnp.array([node_of[prefix]]), level)
            for code in range(SIZE + 1):
                assert bool(exists[0, code]) == ((*prefix, code) in existing)
                if exists[0, code]:
                    node_of[(*prefix, code)] = int(child[0, code])
    for prefix, leaf in ((p, n) for p, n in node_of.items() if len(p) == LEVELS):
        assert sorted(trie.items_of_leaf(leaf)) == [i for i, row in enumerate(codes.tolist()) if tuple(row) == prefix]


def test_buckets_are_few_and_large_enough():
    sizes = {bucket(n, 300) for n in range(301)}
    assert sizes == {8, 16, 32, 64, 128, 256, 300}
    assert all(bucket(n, 300) >= n for n in range(301))
    assert {bucket(n, 300, shortest=300) for n in range(301)} == {300}, "all padded to one length"


def test_a_scorer_may_pad_every_history_to_one_length():
    catalog, histories = small_catalog(), [History(*np.ones((3, n), np.int32)) for n in (5, 1, 12, 3)]
    trie = build_trie(catalog.codes_IL, (SIZE,) * LEVELS)
    usual, one = (Scorer(None, None, catalog, trie, np.zeros(ITEMS), 16, **more) for more in ({}, {"shortest": 16}))
    lengths = [{batch["item"].shape[1] for _, batch in scorer._batches(histories, 2)} for scorer in (usual, one)]
    assert lengths == [{8, 16}, {16}]


def test_the_hybrid_ranks_what_was_generated_by_vector_and_lets_cold_items_join():
    _, _, _, _, trie, scorer, histories = _setup({})
    seen = [history.item for history in histories]
    cold_I = np.arange(ITEMS) % 5 == 0
    vectors = scorer.retrieval(histories)
    reached = scorer.generation(histories, seen, beams=4)
    found = scorer.hybrid(histories, seen, cold_I, beams=4)
    for row, history in enumerate(histories):
        for hybrid, generated in zip(found, reached, strict=True):
            there = np.isfinite(hybrid[row])
            assert np.all(there[np.isfinite(generated[row])])
            assert np.all(cold_I[there & ~np.isfinite(generated[row])])
            assert (there & ~np.isfinite(generated[row])).any()
            warm = there & np.isfinite(generated[row])
            np.testing.assert_allclose(hybrid[row, warm], vectors[row, warm], rtol=1e-5, atol=1e-5)
        assert not np.isfinite(found[1][row, history.item]).any()
