"""Why an item is recommended: drops and parts against scores made anew."""

import numpy as np
import pytest

from hisam_jax.inference.engine import Wanted
from hisam_jax.inference.histories import History
from tests.serving_fixtures import load, tiny_run
from tests.test_inference_engine import made


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    root = tmp_path_factory.mktemp("explain")
    tiny_run(root)
    return load(root / "run")


def history(*items):
    gaps = np.linspace(0, 2, len(items)).astype(np.float32)
    return History(np.array(items, np.int32), np.full(len(items), 7, np.int32), gaps)


def explained(release, past, item, way):
    (state,) = release.engine.read(release.items, [past])
    return release.engine.explain(release.items, state, past, item, release.stock.codes(item), way)


def score(release, past, item, way):
    """Of one item as the engine's own steps give it."""
    (state,) = release.engine.read(release.items, [past])
    if way == "retrieval":
        return release.engine.rank(release.items, [state], [np.array([item], np.int32)], "retrieval")[0][0]
    engine = release.engine
    found = engine.recommend(release.items, [state], [Wanted(np.zeros(0, np.int32))], 50, "generation")[0]
    scores = dict(zip(*(x.tolist() for x in found), strict=True))
    return scores[item]


def some_item(release, past, way):
    (state,) = release.engine.read(release.items, [past])
    return int(release.engine.recommend(release.items, [state], [Wanted(past.item)], 5, way)[0][0][1])


@pytest.mark.parametrize("way", ["retrieval", "generation"])
def test_parts_sum_to_the_score_that_is_served(release, way):
    for past in (history(3), history(1, 5, 9), history(*range(20))):
        item = some_item(release, past, way)
        found = explained(release, past, item, way)
        assert found.score == pytest.approx(score(release, past, item, way), abs=1e-5)
        assert sum(found.parts.values()) == pytest.approx(found.score, abs=1e-5)
        assert len(found.drops) == min(len(past), release.engine.window)
    if way == "retrieval":
        assert {"code 0", "id"} < set(found.parts) and any(name.startswith("features ") for name in found.parts)
    else:
        assert list(found.parts) == [f"code {level}" for level in range(len(release.stock.codes(0)))]
        assert all(value <= 0 for value in found.parts.values())


@pytest.mark.parametrize("way", ["retrieval", "generation"])
def test_without_the_last_item_it_is_the_score_of_the_shorter_history(release, way):
    past = history(1, 5, 9, 14)
    item = some_item(release, past, way)
    found, shorter = explained(release, past, item, way), explained(release, past_before(past), item, way)
    assert found.drops[-1] == pytest.approx(found.score - shorter.score, abs=1e-5)
    assert np.abs(found.drops).min() > 1e-7


def past_before(past):
    return History(past.item[:-1], past.action[:-1], past.gap[:-1])


@pytest.mark.parametrize("way", ["retrieval", "generation"])
def test_each_drop_is_that_of_a_state_whose_anchor_is_masked(release, way):
    """One at a time, by steps of their own: the last item read again over a cache with a hole."""
    past = history(1, 5, 9, 14)
    item, engine, items = some_item(release, past, way), release.engine, release.items
    found = explained(release, past, item, way)
    (whole,) = engine.read(items, [past])
    for place in range(len(past) - 1):
        (before,) = engine.read(items, [past_before(past)])
        cache, items_B, _ = engine._stacked([before])
        cache = cache.replace(index_BM=cache.index_BM.at[0, place].set(-1))
        event = {name: getattr(past, name)[-1:] for name in ("item", "action", "gap")}
        read_BD, _ = engine._run["append"](engine.params, items.catalog, cache, items_B, event)
        if way == "retrieval":
            rows = np.array([[item] * 12], np.int32)
            without = engine._run["scores"](engine.params, items.vectors_ID, read_BD, rows)[0, 0]
        else:
            left, count, _ = engine._stacked([whole])
            left = left.replace(index_BM=left.index_BM.at[0, place].set(-1))
            without = _generated(engine, items, left, read_BD, count, item)
        assert found.drops[place] == pytest.approx(found.score - float(without), abs=1e-5)


def _generated(engine, items, cache, read_BD, count, item):
    request = engine.filter_of(items, [Wanted(np.zeros(0, np.int32))], 1)
    c = engine.config
    found = engine._run["generate_items"](
        engine.params, items.trie, items.popularity_I, cache, read_BD, count, items.facts, request, beams=c.beams,
        k=c.k, sharing=c.sharing,
    )  # fmt: skip
    item_k, score_k = (np.asarray(x)[0].tolist() for x in found)
    return score_k[item_k.index(item)]


def test_without_its_only_item_nothing_is_left(release):
    past = history(3)
    item = some_item(release, past, "retrieval")
    found = explained(release, past, item, "retrieval")
    assert found.drops.tolist() == pytest.approx([found.score], abs=1e-6)
    assert np.isfinite(explained(release, past, item, "generation").drops).all()


@pytest.mark.parametrize("switches", [{"anchors": False}, {"item_id": False, "features": False, "cosine": True}])
@pytest.mark.parametrize("way", ["retrieval", "generation"])
def test_other_models_too(switches, way):
    engine, items, _, full = made(**switches)
    past = history(1, 5, 9)
    states = engine.read(items, [past, past_before(past)])
    whole = engine.explain(items, states[0], past, 7, full[7], way)
    shorter = engine.explain(items, states[1], past_before(past), 7, full[7], way)
    assert whole.drops[-1] == pytest.approx(whole.score - shorter.score, abs=1e-4)
    assert len(whole.drops) == 3 and np.abs(whole.drops).min() > 0
    if way == "retrieval":
        (score,) = engine.rank(items, states[:1], [np.array([7], np.int32)], "retrieval")[0]
        assert whole.score == pytest.approx(score, abs=1e-5)
