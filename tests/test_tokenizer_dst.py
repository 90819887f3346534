"""DST: planted factors come apart, missing views add nothing, nothing depends on what must not matter."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from sklearn.metrics import adjusted_mutual_info_score
from tokenizer_fixtures import planted

from hisam_jax.errors import UserError
from hisam_jax.tokenizer import dst, dst_information
from hisam_jax.tokenizer.base import fit_standardiser
from hisam_jax.tokenizer.dst_config import DSTConfig, make_layout
from hisam_jax.tokenizer.dst_training import fit_dst, init_state
from hisam_jax.tokenizer.registry import load_tokenizer, save_tokenizer

SMALL = DSTConfig(
    shared=(16, 16),
    specific={"text": (16,), "image": (16,)},
    unnamed=(16,),
    width=16,
    hidden=32,
    mi_hidden=16,
    batch_size=64,
    steps=40,
    init_rows=300,
)


def fit(cfg=SMALL, features=None, present=None, train=None, seed=0):
    if features is None:
        features, present, _ = planted(300, categories=8, width=12)
    train = np.ones(len(next(iter(features.values()))), bool) if train is None else train
    return fit_dst(cfg, features, present, train, seed)


def batch(rows=12, seed=0):
    rng = np.random.default_rng(seed)
    x = {m: jnp.asarray(rng.normal(size=(rows, 6)), jnp.float32) for m in ("text", "image")}
    return x, {"text": jnp.arange(rows) % 3 != 0, "image": jnp.arange(rows) % 4 != 0}


def total_loss(cfg, x, present):
    layout = make_layout(cfg, {m: v.shape[1] for m, v in x.items()}, {m: 12 for m in x})
    state = init_state(cfg, layout, 0, x, present)
    books = {name: [b.vectors_KD for b in group] for name, group in state.books.items()}

    def value(net, x):
        passed = dst.forward(dst.Networks(cfg, layout.widths), net, books, x, present)
        parts = dst.losses(cfg, passed, x, present, state.trainable["log_temperature"])
        parts |= dst_information.bounds(cfg, layout, state.club, passed, books, dst.weights_of(present))
        return sum(parts.values())

    return value, state.trainable["net"]


def ami(a, b):
    return adjusted_mutual_info_score(a, b, average_method="min")


def test_planted_factors_come_apart_and_stay_apart():
    features, present, truth = planted()
    cfg = DSTConfig(
        shared=(64, 16), specific={"text": (16,), "image": (16,)}, width=32, hidden=128, batch_size=256, steps=400
    )
    model = fit(cfg, features, present)
    codes = model.assign(features, present)
    has = present["image"]
    found = {
        (level.name, name): ami(truth[name][has], codes[has, i])
        for i, level in enumerate(model.levels)
        for name in truth
    }
    for pair in (("shared/0", "category"), ("text/0", "style"), ("image/0", "colour")):
        assert found[pair] > 0.8, found
    for pair in (("shared/0", "style"), ("shared/0", "colour"), ("text/0", "colour"), ("image/0", "style")):
        assert found[pair] < 0.1, found
    assert found["text/0", "category"] < 0.2 and found["image/0", "category"] < 0.2, found


def test_no_level_collapses_on_features_without_clusters():
    rng = np.random.default_rng(0)
    both = rng.normal(size=(1000, 6))
    features = {
        m: (both @ rng.normal(size=(6, 12)) + rng.normal(size=(1000, 4)) @ rng.normal(size=(4, 12))).astype(np.float32)
        for m in ("text", "image")
    }
    present = {m: np.ones(1000, bool) for m in features}
    model = fit(dataclasses.replace(SMALL, steps=200), features, present)
    codes = model.assign(features, present)
    for i, level in enumerate(model.levels):
        assert len(np.unique(codes[:, i])) >= 0.9 * level.size, level
    assert model.history[-1]["reconstruction"] < 0.7


@pytest.mark.parametrize(
    "alignment, codebooks, residual",
    [
        ("none", "ema", "latent"),
        ("infonce", "gradient", "feature"),
        ("volume", "ema", "feature"),
    ],
)
def test_every_switch_trains_and_lowers_the_loss(alignment, codebooks, residual):
    cfg = dataclasses.replace(
        SMALL,
        alignment=alignment,
        codebooks=codebooks,
        residual=residual,
        mi_specific_weight=0.1,
        uniformity_weight=0.1,
    )
    history = fit(cfg).history
    assert history[-1]["reconstruction"] < history[0]["reconstruction"]
    assert all(np.isfinite(value) for row in history for value in row.values())
    assert any(name.startswith("mi/text|image") for name in history[-1])


def test_gradients_of_the_whole_loss_are_those_of_finite_differences():
    """Straight-through and stopped gradients are no derivatives; without codes the rest must be exact."""
    x, present = batch()
    cfg = dataclasses.replace(SMALL, residual_stop_gradient=False, shared_context=False)
    networks = dst.Networks(cfg, (("text", 6), ("image", 6)))
    net = networks.init(jax.random.key(0), x)["params"]
    books = {"shared": [], "text": [], "image": []}

    def value(net):
        passed = dst.forward(networks, net, books, x, present)
        parts = dst.losses(cfg, passed, x, present, jnp.float32(0))
        return parts["reconstruction"] + parts["alignment"] + parts["uniformity"]

    check_grads(jax.jit(value), (net,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-3)


def test_a_missing_view_has_no_gradient_and_no_effect_on_others():
    x, present = batch()
    value, net = total_loss(SMALL, x, present)
    value = jax.jit(value)
    gradients = jax.jit(jax.grad(value, argnums=1))(net, x)
    for m in x:
        assert np.all(np.asarray(gradients[m])[~np.asarray(present[m])] == 0)
        assert np.any(np.asarray(gradients[m]) != 0)
    other = {m: jnp.where(present[m][:, None], v, 7.0) for m, v in x.items()}
    np.testing.assert_allclose(value(net, x), value(net, other), rtol=1e-6)


def test_a_stopped_residual_sends_nothing_to_the_shared_branch():
    x, present = batch()
    for stop in (True, False):
        cfg = dataclasses.replace(SMALL, residual_stop_gradient=stop)
        networks = dst.Networks(cfg, (("text", 6), ("image", 6)))
        net = networks.init(jax.random.key(0), x)["params"]
        books = {"shared": [jnp.eye(16)], "text": [jnp.eye(16)], "image": [jnp.eye(16)]}
        of_target = lambda net, n=networks, b=books: dst.forward(n, net, b, x, present).targets["text"].sum()  # noqa: E731
        gradients = jax.jit(jax.grad(of_target))(net)
        reached = any(np.any(np.asarray(g) != 0) for g in jax.tree.leaves(gradients["D_text"]))
        assert reached is not stop


def test_codes_are_reserved_exactly_where_a_view_is_missing():
    features, present, _ = planted(300, categories=8, width=12)
    present["text"] = np.arange(300) % 7 != 0
    present["image"] = np.arange(300) % 5 != 0
    model = fit(SMALL, features, present)
    codes, sizes = model.assign(features, present), [level.size for level in model.levels]
    nothing = ~present["text"] & ~present["image"]
    assert nothing.any()
    for i, level in enumerate(model.levels):
        missing = nothing if level.modality == "shared" else ~present[level.modality]
        assert np.array_equal(codes[:, i] == sizes[i], missing)
    assert codes.dtype == np.int32 and codes.min() >= 0


def test_an_items_codes_do_not_depend_on_the_items_beside_it():
    features, present, _ = planted(300, categories=8, width=12)
    model = fit(SMALL, features, present)
    some = np.array([5, 200, 17])
    alone = model.assign({m: v[some] for m, v in features.items()}, {m: v[some] for m, v in present.items()})
    assert np.array_equal(alone, model.assign(features, present)[some])
    for level in range(len(model.levels)):
        costs = model.costs(features, present, level)
        known = model.assign(features, present)[:, level] < model.levels[level].size
        assert np.array_equal(costs.argmin(1)[known], model.assign(features, present)[known, level])


def test_one_modality_turns_alignment_and_information_off():
    features, present, _ = planted(300, categories=8, width=12)
    model = fit(SMALL, {"text": features["text"]}, {"text": present["text"]})
    assert [level.name for level in model.levels] == ["shared/0", "shared/1", "text/0", "text/1"]
    assert model.history[-1]["alignment"] == 0 and not any(name.startswith("mi/") for name in model.history[-1])
    assert any("image" in note for note in model.notes) and any("one modality" in note for note in model.notes)
    assert model.assign({"text": features["text"]}, {"text": present["text"]}).shape == (300, 4)


def test_a_modality_that_no_training_item_has_gives_its_levels_away():
    features, present, _ = planted(300, categories=8, width=12)
    train = np.arange(300) >= 50
    present["image"] = ~train
    model = fit(SMALL, features, present, train)
    assert [level.name for level in model.levels] == ["shared/0", "shared/1", "text/0", "text/1"]
    assert model.assign(features, present).shape == (300, 4)


def test_a_third_modality_gets_levels_after_the_named_ones():
    features, present, _ = planted(300, categories=8, width=12)
    features["behaviour"] = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    present["behaviour"] = np.arange(300) % 2 == 0
    model = fit(SMALL, features, present)
    assert [level.modality for level in model.levels] == ["shared", "shared", "text", "image", "behaviour"]
    assert np.isfinite(model.history[-1]["loss"])


def test_fewer_items_than_codes_shrinks_the_books_and_says_so():
    features, present, _ = planted(10, categories=3, width=6, missing=0.2)
    model = fit(SMALL, features, present)
    codes = model.assign(features, present)
    assert all(level.size <= 10 for level in model.levels) and any("shrunk" in note for note in model.notes)
    assert np.all(codes <= [level.size for level in model.levels]) and np.isfinite(model.history[-1]["loss"])


@pytest.mark.parametrize("case", ["equal items", "constant columns", "zero vectors"])
def test_degenerate_features_give_codes_without_nan(case):
    features, present, _ = planted(300, categories=8, width=12)
    if case == "equal items":
        features = {m: np.tile(v[:1], (300, 1)) for m, v in features.items()}
    elif case == "constant columns":
        features["text"][:, :6] = 3.0
    else:
        features["text"][:150] = 0
    present = {m: np.ones(300, bool) for m in features}
    model = fit(SMALL, features, present)
    assert np.isfinite(model.history[-1]["loss"])
    assert model.assign(features, present).shape == (300, 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused_with_the_row(bad):
    features, present, _ = planted(300, categories=8, width=12)
    features["text"][17, 3] = bad
    with pytest.raises(UserError, match="item row 17"):
        fit(SMALL, features, present)
    present["text"][17] = False
    fit(SMALL, features, present)


def test_features_of_another_width_are_refused():
    features, present, _ = planted(300, categories=8, width=12)
    model = fit(SMALL, features, present)
    with pytest.raises(UserError, match="12 columns"):
        model.assign({**features, "text": features["text"][:, :5]}, present)


def test_only_training_items_are_looked_at():
    features, present, _ = planted(300, categories=8, width=12)
    train = np.arange(300) < 200
    first = fit(SMALL, features, present, train)
    changed = {m: np.where(train[:, None], v, 50 * v + 3) for m, v in features.items()}
    second = fit(SMALL, changed, present, train)
    kept = {m: v[:200] for m, v in features.items()}, {m: v[:200] for m, v in present.items()}
    assert np.array_equal(first.assign(*kept), second.assign(*kept))


def test_same_seed_same_codes_other_seed_other_codes():
    features, present, _ = planted(300, categories=8, width=12)
    codes = [fit(SMALL, seed=seed).assign(features, present) for seed in (0, 0, 1)]
    assert np.array_equal(codes[0], codes[1]) and not np.array_equal(codes[0], codes[2])


def test_a_saved_tokenizer_gives_new_items_the_same_codes(tmp_path):
    features, present, _ = planted(300, categories=8, width=12)
    model = fit(SMALL, features, present, np.arange(300) < 200)
    save_tokenizer(model, tmp_path)
    again = load_tokenizer(tmp_path)
    assert np.array_equal(again.assign(features, present), model.assign(features, present))
    assert again.levels == model.levels and again.cfg == model.cfg and again.history == model.history
    for branch in ("full", "shared_only", "specific_only"):
        codes = model.assign(features, present)
        for m, guess in again.reconstruct(codes, branch).items():
            np.testing.assert_array_equal(guess, model.reconstruct(codes, branch)[m])


def test_standardiser_has_unit_variance_on_fitted_rows_and_zeros_elsewhere():
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(9000, 3)) * [1, 50, 1e-4] + [0, 1000, 5]).astype(np.float32)
    rows = rng.random(9000) < 0.7
    x = fit_standardiser(values, rows)(values, rows)
    np.testing.assert_allclose(x[rows].mean(0), 0, atol=5e-3)
    np.testing.assert_allclose(x[rows].std(0), 1, rtol=2e-2)
    assert np.all(x[~rows] == 0)
