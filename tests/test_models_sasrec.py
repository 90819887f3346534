"""SASRec: against plain numpy, what a state may depend on, its negatives, and a chain that it must learn."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hisam_jax.errors import UserError
from hisam_jax.inference.histories import History
from hisam_jax.inference.plain_scorer import PlainScorer
from hisam_jax.models.catalog import make_catalog
from hisam_jax.models.heads import make_objective
from hisam_jax.models.negatives import draw_negatives
from hisam_jax.models.sasrec import SASRec, SASRecConfig, places, train_flops
from hisam_jax.models.softmax import log_sum_exp
from hisam_jax.tokenizer.trie import build_trie
from tests.model_fixtures import ITEMS, LEVELS, SIZE, small_batch, small_catalog, small_params, traced_gradient

KNOWN = ITEMS - 3  # of `small_catalog`: the last three were never trained
WIDTH = 12


def _model(**switches):
    config = SASRecConfig(**{"width": WIDTH, "heads": 2, "mlp": 20, "dropout": 0.0, "positions": 16, **switches})
    return SASRec(config, (SIZE + 1,) * LEVELS, 4, ITEMS)


@pytest.fixture(scope="module", params=[False, True], ids=["ids", "ids and features"])
def fitted(request):
    """A model moved off its initial parameters, with a catalogue and a batch of packed users."""
    catalog, model = small_catalog(), _model(features=request.param)
    catalog.features["text"][-1] = 0.0  # an item that is new and has no text
    batch = small_batch(catalog)
    params, _ = small_params(model, catalog, batch)
    states = jax.jit(lambda batch: model.apply({"params": params}, batch, catalog, method="states"))
    return catalog, model, params, batch, np.asarray(states(batch))


def _table(params, catalog):
    """Item vectors in float64: the embedding of a trained item, and what its features say."""
    table = np.asarray(params["item_encoder"]["table"], np.float64) * (np.arange(ITEMS) < KNOWN)[:, None]
    if "content" not in params:
        return table
    weight = np.asarray(params["content"]["features_text"]["w"], np.float64)
    return table + np.asarray(catalog.features["text"], np.float64) @ weight


def _reference(params, catalog, item_n, heads):
    """States of one user's items `[n, D]` in float64, a loop over places and heads."""
    tree = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, p):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    table = _table(params, catalog)
    x = table[item_n] * np.sqrt(WIDTH) + tree["positions"]["table"][: len(item_n)]
    per = WIDTH // heads
    for p in (tree["blocks_0"], tree["blocks_1"]):
        y, added = norm(x, p["norm_attention"]), np.zeros_like(x)
        q, k, v = (y @ p[each]["kernel"] for each in "qkv")
        for n in range(len(x)):
            for part in (slice(h * per, (h + 1) * per) for h in range(heads)):
                weights = np.exp(k[: n + 1, part] @ q[n, part] / np.sqrt(per))
                added[n, part] = weights @ v[: n + 1, part] / weights.sum()
        x = x + added
        hidden = np.maximum(norm(x, p["norm_mlp"]) @ p["in"]["kernel"] + p["in"]["bias"], 0)
        x = x + hidden @ p["out"]["kernel"] + p["out"]["bias"]
    return norm(x, tree["final_norm"])


def test_states_of_packed_users_are_those_of_each_alone_in_plain_numpy(fitted):
    catalog, model, params, batch, states = fitted
    for row, cut in ((0, slice(0, 4)), (0, slice(4, 9)), (1, slice(0, 7))):
        want = _reference(params, catalog, batch["item"][row, cut], model.config.heads)
        np.testing.assert_allclose(states[row, cut], want, atol=5e-5)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_losses_are_those_of_the_papers_in_plain_numpy(loss, fitted):
    catalog, model, params, batch, states = fitted
    model = _model(loss=loss, features=model.config.features)
    loss_fn, _ = make_objective(model, catalog, jnp.zeros((ITEMS, LEVELS), jnp.int32))
    got, parts = jax.jit(loss_fn)(params, batch, jax.random.key(4))
    scores = states.astype(np.float64) @ _table(params, catalog).T
    rows, n = np.nonzero(batch["next_weight"][:, 1:])
    positive = scores[rows, n, batch["item"][rows, n + 1]]
    if loss == "cross_entropy":
        want = (np.log(np.exp(scores[rows, n, :KNOWN]).sum(-1)) - positive).mean()
        assert float(got) == pytest.approx(want, rel=1e-4)
    else:  # whatever negative was drawn, it costs something between the least and the most that one can
        each = np.logaddexp(0, scores[rows, n, :KNOWN])
        base = np.logaddexp(0, -positive)
        assert (base + each.min(-1)).mean() < float(got) < (base + each.max(-1)).mean()
    assert set(parts) == {"loss/retrieval"}


def test_the_normaliser_and_its_gradient_are_those_of_autodiff():
    query, vectors = jax.random.normal(jax.random.key(0), (2, 3, 5)), jax.random.normal(jax.random.key(1), (7, 5))
    weight = jnp.arange(6.0).reshape(2, 3)
    vectors = vectors.at[3].set(-1e30)

    def value(function):
        return jax.value_and_grad(lambda q, v: (weight * function(jnp.abs(q), v)).sum(), (0, 1))(query, vectors)

    got, want = value(log_sum_exp), value(lambda q, v: jax.nn.logsumexp(q @ v.T, axis=-1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, want)


def test_no_future_item_and_no_other_packed_user_reaches_a_state(fitted):
    catalog, model, params, batch, _ = fitted

    def state(shift_BND):
        def shifted(call, args, kwargs, context):
            return call(*args, **kwargs) + (shift_BND if context.module.name == "item_encoder" else 0.0)

        with nn.intercept_methods(lambda *a: shifted(*a) if a[3].method_name == "__call__" else a[0](*a[1], **a[2])):
            return model.apply({"params": params}, batch, catalog, method="states")[0].sum(-1)

    reached_nBN = np.abs(np.asarray(jax.jit(jax.jacrev(state))(jnp.zeros((2, 9, WIDTH))))).sum(-1)
    for n in range(9):
        allowed = (batch["segment"][0] == batch["segment"][0, n]) & (np.arange(9) <= n)
        assert not reached_nBN[n, 1].any() and not reached_nBN[n, 0][~allowed].any()
        assert (reached_nBN[n, 0][allowed] > 0).all()


def test_places_begin_again_with_every_segment():
    segment = np.array([[1, 1, 1, 2, 2, 3, 0, 0], [5, 5, 5, 5, 5, 5, 5, 5]])
    np.testing.assert_array_equal(places(jnp.asarray(segment)), [[0, 1, 2, 0, 1, 0, 0, 1], range(8)])


def test_negatives_are_uniform_over_the_trained_items_that_a_segment_lacks():
    item = np.array([[3, 1, 3, 7, 0, 2, 4, 5], [0, 1, 2, 3, 4, 5, 6, 8]], np.int32)
    segment = np.array([[1, 1, 1, 1, 2, 2, 2, 0], [1] * 8], np.int32)
    trained = np.array([1, 1, 1, 1, 1, 1, 1, 0, 1, 0], bool)
    draw = jax.jit(jax.vmap(lambda key: draw_negatives(key, item, segment, trained)))
    drawn_KBN, there_KBN = (np.asarray(x) for x in draw(jax.random.split(jax.random.key(0), 4000)))
    free = {(0, 0): [0, 2, 4, 5, 6, 8], (0, 3): [0, 2, 4, 5, 6, 8], (0, 5): [1, 3, 5, 6, 8]}
    for place, items in free.items():
        counts = np.bincount(drawn_KBN[:, *place], minlength=10)
        assert set(np.flatnonzero(counts)) == set(items)
        assert np.abs(counts[items] / 4000 - 1 / len(items)).max() < 0.03  # five standard deviations
    assert there_KBN[:, 0].all() and not there_KBN[:, 1].any(), "the second user holds every trained item"


@pytest.fixture(scope="module")
def scorer(fitted):
    catalog, model, params, *_ = fitted
    trie = build_trie(catalog.codes_IL, (SIZE + 1,) * LEVELS)
    return PlainScorer(model, params, catalog, trie, np.arange(ITEMS), 16, rows=3)


def test_scores_are_those_of_training_and_an_untrained_item_is_found_by_its_features_or_never(fitted, scorer):
    catalog, model, params, batch, states = fitted
    histories = [
        History(batch["item"][row, cut], batch["action"][row, cut], batch["gap"][row, cut])
        for row, cut in ((0, slice(0, 3)), (0, slice(4, 9)), (1, slice(0, 7)))
    ]
    scores = scorer.retrieval(histories)
    last = states[[0, 0, 1], [2, 8, 6]]
    want = last @ _table(params, catalog).T
    found_I = (np.arange(ITEMS) < KNOWN) | (model.config.features & catalog.features["text"].any(-1))
    assert found_I.sum() == (ITEMS - 1 if model.config.features else KNOWN)
    np.testing.assert_allclose(scores[:, found_I], want[:, found_I], atol=2e-4)
    assert (want[:, :KNOWN] < 0).any(), "a zero vector would beat these"
    assert (scores[:, ~found_I] < scores[:, :KNOWN].min() - 1e20).all()


def test_features_of_a_dataset_without_any_leave_a_model_of_ids():
    catalog = make_catalog(np.zeros((ITEMS, LEVELS)), {}, {}, np.arange(ITEMS) < KNOWN)
    model = _model(features=True)
    params, _ = small_params(model, catalog, small_batch(catalog))
    vectors = np.asarray(model.apply({"params": params}, catalog, method="item_vectors"))
    assert "content" not in params
    assert (vectors[:KNOWN, -1] == 0).all() and (vectors[KNOWN:, -1] < -1e20).all()


def test_a_planted_chain_is_learnt_by_both_losses():
    """Item i is followed by i + 1, at one place in ten by any; users of two items, eight packed in a row."""
    rng, items = np.random.default_rng(0), ITEMS
    first = rng.integers(0, items, (32, 8))
    second = np.where(rng.random(first.shape) < 0.9, first + 1, rng.integers(0, items, first.shape)) % items
    item = np.stack([first, second], axis=-1).reshape(32, 16).astype(np.int32)
    segment = np.broadcast_to(np.arange(16, dtype=np.int32) // 2 + 1, item.shape)
    batch = {"item": item, "segment": segment, "next_weight": np.broadcast_to(np.float32([0, 1] * 8), item.shape)}
    catalog = make_catalog(np.zeros((items, LEVELS)), {}, {}, np.ones(items, bool))
    probe = {"item": np.arange(items, dtype=np.int32)[:, None], "segment": np.ones((items, 1), np.int32)}
    for loss in ("cross_entropy", "bce"):
        model = _model(loss=loss, layers=1, width=16, dropout=0.1)
        params = _trained(model, catalog, batch)
        user = model.apply({"params": params}, probe, catalog, method="users_of")
        scores = np.array(user @ model.apply({"params": params}, catalog, method="item_vectors").T)
        np.fill_diagonal(scores, -np.inf)  # what a user holds is never its negative
        follows = (scores.argmax(-1) == (np.arange(items) + 1) % items).mean()
        assert follows > 0.8, (loss, follows)


def _trained(model, catalog, batch, steps=150):
    loss_fn, init_fn = make_objective(model, catalog, np.zeros((ITEMS, LEVELS), np.int32))
    params, tx = init_fn(jax.random.key(0), batch), optax.adam(0.02)

    def update(carry, key):
        params, state = carry
        grads, _ = jax.grad(loss_fn, has_aux=True)(params, batch, key)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), steps)
    return jax.jit(lambda params: jax.lax.scan(update, (params, tx.init(params)), keys))(params)[0][0]


def test_operations_are_those_of_the_weights_the_pairs_and_the_scores():
    config = SASRecConfig(width=8, layers=2, mlp=16)
    by_hand = 2 * (2 * 5 * (3 * 64 + 2 * 8 * 16) + 4 * (3 + 6) * 8) + 2 * 5 * 8 * ITEMS
    assert train_flops(config, small_catalog(), [2, 3]) == 3 * by_hand
    described = 5 + ITEMS  # five features each; no gradient flows into them
    with_features = train_flops(dataclasses.replace(config, features=True), small_catalog(), [2, 3])
    assert with_features == 3 * by_hand + 2 * 2 * described * 8 * 5
    of_two = dataclasses.replace(config, loss="bce")  # a target was projected as an input, its negative was not
    with_features = train_flops(dataclasses.replace(of_two, features=True), small_catalog(), [2, 3])
    assert with_features == train_flops(of_two, small_catalog(), [2, 3]) + 2 * 2 * (5 + 5) * 8 * 5


@pytest.mark.parametrize(
    "bad", [{"heads": 5}, {"dropout": 1.0}, {"retrieval": 0.0}, {"positions": 1}, {"layers": 0}, {"mlp": 0}]
)
def test_sizes_that_do_not_fit_are_refused_by_name(bad):
    with pytest.raises(UserError, match=f"model.{next(iter(bad))}"):
        SASRecConfig(**bad)


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_a_step_is_placed_on_a_mesh_that_splits_rows_and_tables(loss, features):
    """Traced, not run: an explicit mesh refuses what has no place."""
    items = 8192
    text, present = {"text": np.ones((items, 8), np.float32)}, {"text": np.ones(items, bool)}
    catalog = make_catalog(np.zeros((items, LEVELS)), text, present, np.arange(items) < items - 3)
    config = SASRecConfig(width=16, heads=2, positions=16, loss=loss, features=features)
    model = SASRec(config, (SIZE + 1,) * LEVELS, 0, items)
    gradient = traced_gradient(model, catalog, np.zeros((items, LEVELS), np.int32))
    assert gradient["item_encoder"]["table"].sharding.spec[0] == ("fsdp", "tensor")
