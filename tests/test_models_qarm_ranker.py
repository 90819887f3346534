"""QARM's ranker and DIN: what a logit may depend on, that codes help where ids cannot, and every switch."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from device_fixtures import run_on_devices
from model_fixtures import ITEMS, LEVELS, SIZE, small_batch, small_catalog, small_params
from sklearn.metrics import roc_auc_score

from hisam_jax.errors import UserError
from hisam_jax.models import qarm_ranker, target_attention
from hisam_jax.models.catalog import make_catalog
from hisam_jax.models.heads import make_objective
from hisam_jax.models.qarm_config import FILES, DINConfig, QarmRankerConfig, inputs_of, train_flops
from hisam_jax.models.qarm_ranker import QarmRanker
from hisam_jax.models.registry import architecture, name_of

TINY = {"width": 8, "mlp": 16, "attention_units": 4, "dropout": 0.0, "id_dropout": 0.0}


def with_extras(catalog, seed=0):
    rng = np.random.default_rng(seed)
    near = rng.integers(-1, ITEMS, (ITEMS, 5)).astype(np.int32)
    return catalog.replace(extras={"neighbours": near, "aligned": rng.normal(size=(ITEMS, 6)).astype(np.float32)})


def ranker(**switches):
    return QarmRanker(QarmRankerConfig(**{**TINY, **switches}), (SIZE + 1,) * LEVELS, 4, ITEMS)


@functools.cache
def made(codes="both"):
    """(model, params, batch, catalog, jitted clicks), one a switch."""
    catalog = with_extras(small_catalog())
    catalog.codes_IL[: ITEMS // 2, 0] = 3  # so that items share first codes
    batch = small_batch(catalog, items=12)
    model = ranker(codes=codes)
    params, _ = small_params(model, catalog, batch)
    run = jax.jit(lambda params, batch: model.apply({"params": params}, batch, catalog, method="clicks"))
    return model, params, batch, catalog, run


@pytest.mark.parametrize("codes", FILES)
def test_every_switch_trains_all_its_parameters_in_one_step(codes):
    model, params, batch, catalog, _ = made(codes)
    loss_fn, _ = make_objective(model, catalog, jnp.zeros((ITEMS, LEVELS), jnp.int32))
    step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (before, parts), gradient = step(params, batch, jax.random.key(0))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient)) and list(parts) == ["loss/ranking"]
    after = step(jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient), batch, jax.random.key(0))[0][0]
    assert after < before
    names = {name.rstrip("_0123456789") for name in params}
    assert ("code_table" in names) == (codes in ("rq", "both")) and ("near_table" in names) == (codes in ("vq", "both"))
    assert ("aligned" in names) == (codes == "frozen")
    assert params["last"]["hidden_0"]["w"].shape[0] == inputs_of(model.config)


def changed(batch, name, place, value):
    return {**batch, name: batch[name].copy()} | {name: np.asarray(jnp.asarray(batch[name]).at[place].set(value))}


@pytest.mark.parametrize("codes", ["none", "both", "frozen"])
def test_a_logit_knows_neither_its_own_action_nor_what_follows(codes):
    _, params, batch, _, run = made(codes)
    batch = {**batch, "segment": np.ones_like(batch["segment"])}
    before = np.asarray(run(params, batch))
    for name, value in (("action", 10), ("action", 1), ("item", 2)):
        after = np.asarray(run(params, changed(batch, name, (0, 5), value)))
        first = 5 if name == "item" else 6
        assert np.array_equal(before[0, :first], after[0, :first]) and np.array_equal(before[1], after[1])
    assert np.abs(before[0, 6:] - after[0, 6:]).min() > 0, "later events see the item"


def test_gradients_of_actions_reach_later_logits_alone():
    _, params, batch, _, run = made()
    ones = np.ones_like(batch["segment"])
    batch = {**batch, "segment": ones, "action": 0 * ones}
    batch["action"][0, 5] = 9  # the only event with that row of the action tables

    def logits(tables):
        return run({**params, **tables}, batch)[0]

    tables = {name: params[name] for name in ("action_table_id", "action_table_code")}
    reached = jax.jacobian(logits)(tables)
    for table in reached.values():
        by_logit = np.abs(np.asarray(table["table"]))[:, 9].sum(-1)
        assert not by_logit[:6].any() and by_logit[6:].all()
    by_gap = np.asarray(jax.jacobian(lambda gap: run(params, {**batch, "gap": gap})[0])(batch["gap"]))
    assert not np.triu(np.abs(by_gap[:, 0]), 1).any() and not by_gap[:, 1].any()


def test_packed_users_never_see_each_other_and_padding_is_never_seen():
    _, params, batch, _, run = made()
    alone = {name: values[:, 4:8] for name, values in batch.items()}
    alone = {**alone, "segment": np.where(np.arange(2)[:, None] == 0, alone["segment"], 0)}
    whole = np.asarray(run(params, batch))
    other = {name: values.copy() for name, values in batch.items()}
    for name, value in (("item", 1), ("action", 3), ("gap", 9.0), ("codes", 0)):
        other[name][0, :4] = value
        other[name][1, 7:] = value
    found = np.asarray(run(params, other))
    assert np.array_equal(whole[0, 4:], found[0, 4:]) and np.array_equal(whole[1, :7], found[1, :7])
    np.testing.assert_allclose(np.asarray(run(params, alone))[0], whole[0, 4:8], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("codes", ["none", "both", "frozen"])
def test_a_candidate_has_the_logit_of_the_event_that_it_becomes(codes):
    model, params, batch, catalog, run = made(codes)
    batch = {**batch, "segment": np.ones_like(batch["segment"])}
    along = np.asarray(run(params, batch))
    history = {name: values.copy() for name, values in batch.items()}
    history["segment"][:, 7:] = 0
    item = np.stack([batch["item"][:, 7], batch["item"][:, 1]], axis=1)
    call = jax.jit(lambda *given: model.apply({"params": params}, *given, method="candidate_clicks"))
    found = np.asarray(call(history, catalog, item, batch["gap"][:, 7]))
    np.testing.assert_allclose(found[:, 0], along[:, 7], rtol=1e-5, atol=1e-6)
    assert np.abs(found[:, 1] - found[:, 0]).min() > 1e-4


def test_blocks_change_nothing():
    model, params, batch, catalog, run = made()
    small = dataclasses.replace(model.config, block=5)
    split = QarmRanker(small, model.vocab, model.digit, model.items)

    def loss(model, params):
        return model.apply({"params": params}, batch, catalog, deterministic=True, method="losses")["ranking"]

    (one, first), (two, second) = (
        jax.jit(jax.value_and_grad(functools.partial(loss, m)))(params) for m in (model, split)
    )
    assert float(one) == pytest.approx(float(two), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), first, second)


def test_dropout_is_off_unless_asked_for():
    _, _, batch, catalog, _ = made()
    model = ranker(dropout=0.5, id_dropout=0.5)
    params = small_params(model, catalog, batch)[0]

    @functools.partial(jax.jit, static_argnums=1)
    def loss(key, deterministic):
        given = {"deterministic": deterministic, "rngs": {"dropout": key}, "method": "losses"}
        return model.apply({"params": params}, batch, catalog, **given)["ranking"]

    keys = jax.random.split(jax.random.key(0))
    assert loss(keys[0], True) == loss(keys[1], True) and loss(keys[0], False) != loss(keys[1], False)


def test_attention_is_dins_network_of_both_vectors_their_difference_and_product():
    rng = np.random.default_rng(0)
    t, p = rng.normal(size=(1, 3, 4)).astype(np.float32), rng.normal(size=(1, 5, 4)).astype(np.float32)
    own, past, less, times = rng.normal(size=(4, 4, 2)).astype(np.float32)
    w = {"bias": rng.normal(size=2), "out": rng.normal(size=2), "base": np.float32(0.3)}
    w = {k: jnp.float32(v) for k, v in w.items()} | {"recency": jnp.zeros((10, 2))}
    w |= {"target": own - less, "past": past + less, "product": times}  # of a network that reads p - t
    seen = np.arange(5) < np.array([0, 2, 5])[:, None]
    weight = target_attention.weigh(w, t, p, np.zeros((1, 3, 5), int))
    found = target_attention.weighted(weight, p, seen[None])
    expected = np.zeros((3, 4))
    for q in range(3):
        for n in np.flatnonzero(seen[q]):
            x = t[0, q] @ own + p[0, n] @ past + (p[0, n] - t[0, q]) @ less + (p[0, n] * t[0, q]) @ times + w["bias"]
            expected[q] += float(np.asarray(jax.nn.silu(x)) @ w["out"] + 0.3) * p[0, n] / seen[q].sum() ** 0.5
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cross", ["attention", "mean"])
def test_cross_features_read_only_past_items_that_share_the_first_codes(cross):
    """By hand: what an event gets of those before it, over the root of their number or as their mean."""
    rng = np.random.default_rng(1)
    c = QarmRankerConfig(codes="rq", cross=cross, depths=(1, 2))
    codes = np.array([[[1, 4], [1, 5], [2, 4], [1, 4], [1, 4], [1, 4], [1, 4]]])
    segment = np.array([[1, 1, 1, 1, 1, 2, 0]])  # the last two are another user's, and padding
    past = {name: rng.normal(size=(1, 7, 3)).astype(np.float32) for name in ("id", "code")}
    past |= {"codes": codes, "item": np.arange(7)[None], "segment": segment, "stats": np.ones((1, 7, 3), np.float32)}
    targets = {"id": past["id"] + 1, "code": past["code"] - 1, "codes": codes, "gap": np.zeros((1, 7), np.float32)}
    targets |= {"place": np.arange(7)[None], "segment": segment}
    kinds = {"target": (3, 2), "past": (3, 2), "product": (3, 2), "recency": (10, 2), "bias": 2, "out": 2, "base": ()}
    weights = {
        name: {kind: rng.normal(size=size).astype(np.float32) for kind, size in kinds.items()}
        for name in c.attentions
    }  # fmt: skip
    found = [vector for vector, _ in qarm_ranker._read(c, (9, 9), weights, targets, past)["crosses"]]
    weight_NN = np.ones((7, 7))
    if cross == "attention":
        ago_BQN = target_attention.recency(jnp.arange(7)[None], 7)
        weight_NN = target_attention.weigh(weights["id"], targets["id"], past["id"], ago_BQN)[0]
    for depth, vectors_BND in zip((1, 2), found, strict=True):
        for n in range(7):
            same = [
                m for m in range(n) if segment[0, m] == segment[0, n] and (codes[0, m] == codes[0, n])[:depth].all()
            ]
            wanted = sum((weight_NN[n, m] * past["id"][0, m] for m in same), np.zeros(3))
            wanted /= max(len(same), 1) ** (0.5 if cross == "attention" else 1)
            np.testing.assert_allclose(vectors_BND[0, n], wanted, atol=1e-5)


def test_what_is_shared_is_found_and_reserved_codes_are_nothing_to_share():
    target, past = jnp.array([[[1, 2], [3, 8], [8, 2]]]), jnp.array([[[1, 2], [1, 3], [8, 2], [3, 8]]])
    found = target_attention.same_codes(target, past, (8, 8))
    assert np.array_equal(found[0], [[True, False, False, False], [False] * 4, [False] * 4])
    assert np.array_equal(target_attention.same_codes(target[..., :1], past[..., :1], (8,))[0, 1], [0, 0, 0, 1])
    near = target_attention.among(jnp.array([[[4, -1], [7, 5]]]), jnp.array([[5, 4, 0]]))
    assert np.array_equal(near[0], [[False, True, False], [True, False, False]])
    ago = target_attention.recency(jnp.array([[9]]), 10)[0, 0]
    assert ago.tolist() == [3, 3, 2, 2, 2, 2, 1, 1, 0, 0]


def taste(rng, users, events, items, groups):
    """Rows of users who like the items of half of the groups, and rate them so: the id alone tells nothing."""
    item = rng.choice(items, (users, events)).astype(np.int32)
    likes = rng.permuted(np.tile(np.arange(groups) % 2, (users, 1)), axis=1)
    positive = np.take_along_axis(likes, item % groups, 1)
    ones = np.ones((users, events), np.float32)
    action = np.where(positive, rng.integers(7, 11, item.shape), rng.integers(1, 7, item.shape)).astype(np.int32)
    batch = {"item": item, "action": action, "positive": positive.astype(np.float32), "gap": 0 * ones}
    return batch | {"segment": ones.astype(np.int32), "rank_weight": ones}


def test_codes_tell_of_items_that_no_one_has_taken_and_ids_do_not():
    groups, items, rng = 6, 60, np.random.default_rng(0)
    warm, codes = np.arange(48), np.stack([np.arange(items) % groups, np.arange(items) % 4], axis=1)
    catalog = make_catalog(codes, {}, {}, np.arange(items) < 48)
    batches = [taste(rng, 16, 24, warm, groups) for _ in range(8)]
    cold = taste(rng, 64, 24, warm, groups)
    cold["item"][:, -1] = 48 + cold["item"][:, -1] % groups  # items of the same group, never seen
    auc = {}
    for name in ("none", "rq"):
        config = QarmRankerConfig(width=8, mlp=32, attention_units=8, dropout=0.0, codes=name, depths=(1,))
        model = QarmRanker(config, (groups + 1, 5), 0, items)
        loss_fn, init_fn = make_objective(model, catalog, jnp.asarray(codes))
        optimizer = optax.adam(1e-2)

        @jax.jit
        def step(params, state, batch, key, loss_fn=loss_fn, optimizer=optimizer):
            gradient = jax.grad(loss_fn, has_aux=True)(params, batch, key)[0]
            updates, state = optimizer.update(gradient, state)
            return optax.apply_updates(params, updates), state

        params = jax.jit(init_fn)(jax.random.key(0), batches[0])
        state = optimizer.init(params)
        for number in range(80):
            params, state = step(params, state, batches[number % 8], jax.random.key(number))
        logit = model.apply({"params": params}, cold, catalog, method="clicks")
        auc[name] = roc_auc_score(cold["positive"][:, -1], np.asarray(logit)[:, -1])
    assert auc["rq"] > 0.9 and auc["none"] < 0.7, auc


def test_names_costs_and_bad_settings():
    assert name_of(DINConfig()) == "din" and name_of(QarmRankerConfig()) == "qarm"
    assert architecture("qarm").extras(QarmRankerConfig()) == ("neighbours",)
    assert architecture("din").extras(DINConfig()) == ()
    din, both, catalog = DINConfig(), QarmRankerConfig(), small_catalog()
    assert train_flops(din, catalog, [4, 6]) == train_flops(din, catalog, [4]) + train_flops(din, catalog, [6])
    assert 0 < train_flops(din, catalog, [10]) < train_flops(both, catalog, [10]) < train_flops(both, catalog, [11])
    for field, bad in (
        ("generation", 1.0),
        ("ranking", 0.0),
        ("codes", "pq"),
        ("depths", (0,)),
        ("cross", "sum"),
        ("dropout", 1.0),
    ):
        with pytest.raises(UserError, match=rf"model\.{field}"):
            QarmRankerConfig(**{field: bad})
    with pytest.raises(UserError, match="'none', or architecture 'qarm'"):
        DINConfig(codes="rq")


@pytest.mark.slow
def test_meshes_change_nothing():
    found = run_on_devices("ranker_mesh_fixtures.py", devices=2, timeout=300)
    for name in ("data", "fsdp", "context"):
        assert found[name] == pytest.approx(found["alone"], rel=1e-4), name
