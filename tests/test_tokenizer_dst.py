"""DST: planted factors come apart, missing views add nothing, every switch does what it says and nothing else."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from sklearn.metrics import adjusted_mutual_info_score
from tokenizer_fixtures import planted

from hisam_jax.errors import UserError
from hisam_jax.tokenizer import dst, dst_information, dst_training, mutual_information, quantization
from hisam_jax.tokenizer.base import fit_standardiser
from hisam_jax.tokenizer.dst_config import SHARED, DSTConfig, make_layout
from hisam_jax.tokenizer.dst_training import fit_dst, init_state
from hisam_jax.tokenizer.registry import load_tokenizer, save_tokenizer

SMALL = DSTConfig(
    shared=(16, 8),
    specific={"text": (8,), "image": (8,)},
    unnamed=(8,),
    width=16,
    hidden=32,
    mi_hidden=16,
    batch_size=64,
    steps=40,
    init_rows=128,
)
TRAIN = np.arange(300) < 200
WIDTHS = (("text", 6), ("image", 6))


def data():
    """(features, present) of 300 items, some without text, some without a picture, some with neither."""
    features, present, _ = planted(300, categories=8, width=12, missing=0.0)
    present["text"], present["image"] = np.arange(300) % 7 != 0, np.arange(300) % 5 != 0
    return features, present


def fit(cfg=SMALL, features=None, present=None, train=TRAIN, seed=0):
    if features is None:
        features, present = data()
    return fit_dst(cfg, features, present, train, seed)


@pytest.fixture(scope="module")
def model():
    """One fit that most tests look at; whatever is fitted again has its shapes, and so its compiled functions."""
    return fit()


def batch(rows=12, seed=0):
    rng = np.random.default_rng(seed)
    x = {m: jnp.asarray(rng.normal(size=(rows, width)), jnp.float32) for m, width in WIDTHS}
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


def fresh(cfg):
    """(networks, parameters, books) for `batch`, without a fit."""
    networks = dst.Networks(cfg, WIDTHS)
    shapes = jax.eval_shape(networks.init, jax.random.key(0), batch()[0])["params"]
    rng = np.random.default_rng(0)
    net = jax.tree.map(lambda leaf: mutual_information.initial(rng, leaf.shape), shapes)
    books = {name: [rng.normal(size=(5, cfg.width)).astype(np.float32)] for name in (SHARED, "text", "image")}
    return networks, net, books


def ami(a, b):
    return adjusted_mutual_info_score(a, b, average_method="min")


# what it is for


@pytest.mark.slow
def test_planted_factors_come_apart_and_stay_apart():
    features, present, truth = planted()
    cfg = DSTConfig(
        shared=(64, 16), specific={"text": (16,), "image": (16,)}, width=32, hidden=128, batch_size=256, steps=400
    )
    model = fit(cfg, features, present, np.ones(1500, bool))
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


@pytest.mark.slow
def test_no_level_collapses_on_features_without_clusters():
    rng = np.random.default_rng(0)
    both = rng.normal(size=(1000, 6))
    features = {
        m: (both @ rng.normal(size=(6, 12)) + rng.normal(size=(1000, 4)) @ rng.normal(size=(4, 12))).astype(np.float32)
        for m in ("text", "image")
    }
    present = {m: np.ones(1000, bool) for m in features}
    cfg = dataclasses.replace(SMALL, shared=(16, 16), specific={"text": (16,), "image": (16,)}, steps=200)
    model = fit(cfg, features, present, np.ones(1000, bool))
    codes = model.assign(features, present)
    for i, level in enumerate(model.levels):
        assert len(np.unique(codes[:, i])) >= 0.9 * level.size, level
    assert model.history[-1]["reconstruction"] < 0.7


# switches


LATENT = {"alignment": "infonce", "residual": "latent", "mi_estimator": "gaussian", "standardise": "column"}
OPEN = {"alignment": "volume", "shared_context": False, "residual_stop_gradient": False, "mi_shared_gradient": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    "switched", [LATENT | {"codebooks": "gradient"}, OPEN | {"settle_iterations": 0, "dropout": 0.0}]
)
def test_switched_over_it_trains_and_lowers_the_loss(switched):
    cfg = dataclasses.replace(SMALL, mi_specific_weight=0.1, uniformity_weight=0.1, **switched)
    features, present = data()
    if cfg.alignment == "volume":  # three modalities, and levels of the unnamed one after the named ones
        features["behaviour"] = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
        present["behaviour"] = np.arange(300) % 2 == 0
    model = fit(cfg, features, present)
    first, last = model.history[0], model.history[-1]
    assert [level.modality for level in model.levels] == ["shared", "shared", *features]
    assert last["reconstruction"] < first["reconstruction"] and last["alignment"] > 0
    assert all(np.isfinite(value) for row in model.history for value in row.values())
    assert {"mi/shared|text", "mi/shared|image", "mi/text|image"} <= last.keys()
    assert ("mi/shared|behaviour" in last) == ("behaviour" in features) == ("mi/image|behaviour" in last)
    variance = model.targets(features)["text"][TRAIN & present["text"]].var(0)
    np.testing.assert_allclose(variance if cfg.standardise == "column" else variance.mean(), 1, rtol=1e-3)
    assert np.ptp(variance) > 0.1 or cfg.standardise == "column"
    codes = model.assign(features, present)
    for i, level in enumerate(model.levels[2:], 2):
        assert np.array_equal(codes[:, i] == level.size, ~present[level.modality])


def test_weights_multiply_the_loss_of_their_name_and_those_of_information_rise():
    """Whatever has weight 0 is off: alignment, uniformity, shared-only reconstruction, each information."""
    names = ("reconstruction", "shared_reconstruction", "alignment", "uniformity", "commitment")
    parts = dict(zip((*names, "codebook", "mi/shared|text", "mi/text|image"), 2.0 ** np.arange(8), strict=True))
    plain = dict.fromkeys([f"{name}_weight" for name in (*names, "codebook")], 0.0)
    off = DSTConfig(**plain, mi_weight=0.0, mi_specific_weight=0.0)
    total = lambda ramp=1.0, **on: dst_training._weighted(dataclasses.replace(off, **on), parts, ramp)  # noqa: E731
    assert total() == 0
    for name in names:
        assert total(**{f"{name}_weight": 3.0}) == total(0.0, **{f"{name}_weight": 3.0}) == 3 * parts[name]
    assert total(codebook_weight=3.0) == 0, "moving averages learn without a loss"
    assert total(codebook_weight=3.0, codebooks="gradient") == 3 * parts["codebook"]
    for name, weight in (("mi/shared|text", "mi_weight"), ("mi/text|image", "mi_specific_weight")):
        assert [total(ramp, **{weight: 3.0}) for ramp in (0.0, 0.5, 1.0)] == [0, 1.5 * parts[name], 3 * parts[name]]


def test_defaults_have_on_what_the_issue_asks_for():
    cfg = DSTConfig()
    assert cfg.shared_reconstruction_weight > 0 and cfg.mi_weight > 0 and 0 < cfg.mi_ramp <= 1
    assert (cfg.alignment, cfg.residual, cfg.residual_stop_gradient) == ("rbf_volume", "feature", True)


def test_alignment_is_chosen_by_name_and_only_infonce_learns_its_temperature():
    networks, net, books = fresh(SMALL)
    x, present = batch()
    passed = dst.compiled_forward(networks, net, books, x, present)

    def loss(log_temperature, name):
        cfg = dataclasses.replace(SMALL, alignment=name)
        return dst.losses(cfg, passed, x, present, log_temperature)["alignment"]

    names = ("none", "infonce", "volume", "rbf_volume")
    every = jax.jit(lambda t: [jax.value_and_grad(loss)(t, name) for name in names])(jnp.float32(-1.0))
    values, slopes = ([float(part[i]) for part in every] for i in (0, 1))
    assert values[0] == 0 and min(values[1:]) > 0 and len(set(values)) == 4
    assert [slope != 0 for slope in slopes] == [False, True, False, False]


@pytest.mark.parametrize("residual", ["feature", "latent"])
def test_a_stopped_residual_sends_nothing_to_the_shared_branch(residual):
    """Of what specific codes quantise, the shared decoder (`feature`) or another modality's view (`latent`)."""
    x, present = batch()
    for stop in (True, False):
        networks, net, books = fresh(dataclasses.replace(SMALL, residual=residual, residual_stop_gradient=stop))

        def specific_loss(net, networks=networks, books=books):
            passed = dst.forward(networks, net, books, x, present)
            return quantization.commitment_losses(passed.quantized["text"], present["text"])[0]

        gradients = jax.jit(jax.grad(specific_loss))(net)
        own, other = {"feature": ("F_text", "D_text"), "latent": ("P_text", "P_image")}[residual]
        reached = [any(np.any(np.asarray(g) != 0) for g in jax.tree.leaves(gradients[m])) for m in (own, other)]
        assert reached == [True, not stop]


@pytest.mark.parametrize("context", [True, False])
def test_shared_context_shows_specific_networks_the_shared_codes_but_sends_them_no_gradient(context):
    networks, net, _ = fresh(dataclasses.replace(SMALL, shared_context=context))
    rng = np.random.default_rng(0)
    x, _ = batch()
    first, second = (rng.normal(size=(12, 16)).astype(np.float32) for _ in range(2))
    specific = {m: rng.normal(size=(12, 16)).astype(np.float32) for m in x}
    nothing = {m: jnp.zeros_like(v) for m, v in x.items()}

    @jax.jit
    def seen(q_BD):
        """Residuals and decoded specific codes, all else the same."""
        run = functools.partial(networks.apply, {"params": net})
        return run(x, {}, q_BD, nothing, method="residuals"), run(q_BD, nothing, specific, method="decode")

    for one, other in zip(jax.tree.leaves(seen(first)), jax.tree.leaves(seen(second)), strict=True):
        assert np.array_equal(one, other) != context
    slope = jax.jit(jax.grad(lambda q_BD: sum(leaf.sum() for leaf in jax.tree.leaves(seen(q_BD)))))(first)
    assert np.all(np.asarray(slope) == 0)
    assert net["F_text"]["first"]["w"].shape[0] == 6 + 16 * context


@pytest.mark.parametrize("modalities", [1, 2])
def test_inputs_are_dropped_only_where_there_are_pairs_to_learn_by_heart(modalities):
    x = {m: batch()[0][m] for m, _ in WIDTHS[:modalities]}
    networks = dst.Networks(SMALL, WIDTHS[:modalities])
    net = {name: part for name, part in fresh(SMALL)[1].items() if modalities == 2 or name.endswith("text")}
    views = jax.jit(lambda key: networks.apply({"params": net}, x, False, method="views", rngs={"dropout": key}))
    one, other = (np.asarray(views(jax.random.key(seed))["text"]) for seed in (0, 1))
    assert np.array_equal(one, other) == (modalities == 1)


def test_codebooks_are_trained_only_where_they_learn_by_gradient():
    x, present = batch()
    layout = make_layout(SMALL, dict(WIDTHS), {m: 12 for m in x})
    for codebooks in ("ema", "gradient"):
        state = init_state(dataclasses.replace(SMALL, codebooks=codebooks), layout, 0, x, present)
        vectors = dst_training.vectors_of(state.trainable, state.books)
        assert ("codebooks" in state.trainable) == (codebooks == "gradient")
        assert {name: tuple(len(v) for v in group) for name, group in vectors.items()} == dict(layout.groups)
        np.testing.assert_array_equal(vectors["text"][0], state.books["text"][0].vectors_KD)


def test_settling_lowers_the_error_and_leaves_no_shared_code_unused(model):
    features, present = data()
    rows = np.flatnonzero(TRAIN & (present["text"] | present["image"]))
    p = {m: present[m][rows] for m in features}
    x = {m: scale(features[m][rows], p[m]) for m, scale in model.scales.items()}
    rough = {name: [v + 0.2 * np.sign(v[:1]) for v in group] for name, group in model.books.items()}
    rough[SHARED][0][3:] = 9.0  # five codes that nothing takes
    settled = dst_training.settle(model.cfg, model.layout, model.params, rough, x, p)
    networks, errors = dst.Networks(model.cfg, model.layout.widths), []
    for books in (rough, settled):
        passed = dst.compiled_forward(networks, model.params, books, x, p)
        errors.append(float(quantization.commitment_losses(passed.quantized[SHARED], dst.weights_of(p)[SHARED])[0]))
    assert errors[1] < 0.9 * errors[0]
    assert len(np.unique(passed.quantized[SHARED].codes_NL[:, 0])) == len(settled[SHARED][0])


# one step


@pytest.mark.slow
def test_a_step_moves_what_it_should_and_reports_what_the_contract_asks():
    cfg = dataclasses.replace(SMALL, dropout=0.0, specific_dropout=0.0, mi_specific_weight=0.1, steps=100)
    x, present = batch(24)
    layout = make_layout(cfg, dict(WIDTHS), {m: 24 for m in x})
    state = init_state(cfg, layout, 0, x, present)
    step = jax.jit(dst_training.train_step, static_argnums=(0, 1))
    state, _ = step(cfg, layout, state, jax.random.key(0), jnp.int32(0), x, present)  # a first q
    rows = {at: step(cfg, layout, state, jax.random.key(0), jnp.int32(at), x, present) for at in (0, 14, 29, 99)}
    names = [f"{group}/{depth}" for group, sizes in layout.groups for depth in range(len(sizes))]
    metrics = rows[0][1]
    asked = {f"{kind}/{name}" for kind in ("used", "perplexity") for name in names} | {
        f"spread/{g}" for g in dict(layout.groups)
    }
    asked |= {"loss", "reconstruction", "shared_reconstruction", "alignment", "commitment", "gradient_norm"}
    assert asked | {"mi/shared|text", "mi/text|image", "mi_log_likelihood"} <= metrics.keys()
    assert all(0 <= metrics[f"used/{name}"] <= 1 for name in names)
    assert all(1 <= metrics[f"perplexity/{name}"] <= 16.01 for name in names)
    bounds = {name: float(value) for name, value in metrics.items() if name.startswith("mi/")}
    weighted = sum(value * (cfg.mi_weight if "shared" in name else 0.1) for name, value in bounds.items())
    assert weighted > 0
    for at, ramp in ((14, 0.5), (29, 1.0), (99, 1.0)):  # it rises over the first 30 of 100 steps, from next to nothing
        np.testing.assert_allclose(rows[at][1]["loss"] - metrics["loss"], (ramp - 1 / 30) * weighted, rtol=2e-2)
    after = rows[0][0]
    for name in ("trainable", "books", "club"):
        moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), getattr(state, name), getattr(after, name))
        live = moved["net"] if name == "trainable" else moved
        assert np.mean(np.asarray(jax.tree.leaves(live)) > 0) > 0.9, name


def test_gradients_of_the_whole_loss_are_those_of_finite_differences():
    """Straight-through and stopped gradients are no derivatives; without codes the rest must be exact."""
    x, present = batch()
    cfg = dataclasses.replace(SMALL, residual_stop_gradient=False, shared_context=False)
    networks, net, _ = fresh(cfg)
    books = {"shared": [], "text": [], "image": []}

    def value(net):
        passed = dst.forward(networks, net, books, x, present)
        parts = dst.losses(cfg, passed, x, present, jnp.float32(0))
        return parts["reconstruction"] + parts["alignment"] + parts["uniformity"]

    check_grads(jax.jit(value), (net,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-3)


def test_a_missing_view_has_no_gradient_and_no_effect_on_others():
    x, present = batch()
    value, net = total_loss(SMALL, x, present)
    both = jax.jit(jax.value_and_grad(value, argnums=1))
    found, gradients = both(net, x)
    for m in x:
        assert np.all(np.asarray(gradients[m])[~np.asarray(present[m])] == 0)
        assert np.any(np.asarray(gradients[m]) != 0)
    other = {m: jnp.where(present[m][:, None], v, 7.0) for m, v in x.items()}
    np.testing.assert_allclose(both(net, other)[0], found, rtol=1e-6)


# codes


def test_codes_are_reserved_exactly_where_a_view_is_missing(model):
    features, present = data()
    codes, sizes = model.assign(features, present), [level.size for level in model.levels]
    nothing = ~present["text"] & ~present["image"]
    assert nothing.any()
    for i, level in enumerate(model.levels):
        missing = nothing if level.modality == "shared" else ~present[level.modality]
        assert np.array_equal(codes[:, i] == sizes[i], missing)
    assert codes.dtype == np.int32 and codes.min() >= 0


def test_an_items_codes_do_not_depend_on_the_items_beside_it(model):
    features, present = data()
    some = np.array([5, 200, 17])
    every = model.assign(features, present)
    alone = model.assign({m: v[some] for m, v in features.items()}, {m: v[some] for m, v in present.items()})
    assert np.array_equal(alone, every[some])
    for level in range(len(model.levels)):
        costs = model.costs(features, present, level)
        known = every[:, level] < model.levels[level].size
        assert np.array_equal(costs.argmin(1)[known], every[known, level])


def test_a_saved_tokenizer_gives_new_items_the_same_codes(model, tmp_path):
    features, present = data()
    save_tokenizer(model, tmp_path)
    again, codes = load_tokenizer(tmp_path), model.assign(features, present)
    assert np.array_equal(again.assign(features, present), codes)
    assert again.levels == model.levels and again.cfg == model.cfg and again.history == model.history
    for branch in ("full", "shared_only", "specific_only"):
        for m, guess in again.reconstruct(codes, branch).items():
            np.testing.assert_array_equal(guess, model.reconstruct(codes, branch)[m])


def test_only_training_items_are_looked_at(model):
    features, present = data()
    changed = {m: np.where(TRAIN[:, None], v, 50 * v + 3) for m, v in features.items()}
    second = fit(SMALL, changed, present)
    kept = {m: v[TRAIN] for m, v in features.items()}, {m: v[TRAIN] for m, v in present.items()}
    assert np.array_equal(model.assign(*kept), second.assign(*kept))


def test_same_seed_same_codes_other_seed_other_codes(model):
    features, present = data()
    first, same, other = (m.assign(features, present) for m in (model, fit(), fit(seed=1)))
    assert np.array_equal(first, same) and not np.array_equal(first, other)


# what a catalogue may lack


@pytest.mark.slow
@pytest.mark.parametrize("case", ["not given", "never present", "present only outside training"])
def test_one_usable_modality_takes_all_levels_and_turns_alignment_and_information_off(case):
    features, present = data()
    if case == "not given":
        del features["image"], present["image"]
    else:
        present["image"] = ~TRAIN & (case != "never present")
    model = fit(SMALL, features, present)
    assert [level.name for level in model.levels] == ["shared/0", "shared/1", "text/0", "text/1"]
    last = model.history[-1]
    assert last["alignment"] == 0 and not any(name.startswith("mi/") for name in last)
    assert any("image" in note for note in model.notes) and any("one modality" in note for note in model.notes)
    codes = model.assign(features, present)
    assert codes.shape == (300, 4) and np.array_equal(codes[:, 3] == 8, ~present["text"])


def test_no_usable_modality_is_a_user_error():
    features, present = data()
    with pytest.raises(UserError, match="no training item has any features"):
        fit(SMALL, features, {m: ~TRAIN for m in present})
    with pytest.raises(UserError, match="no features"):
        fit(SMALL, {}, {})
    with pytest.raises(UserError, match="dst.shared"):
        fit(dataclasses.replace(SMALL, shared=()), features, present)


def test_no_book_outgrows_the_items_that_have_what_it_quantises():
    layout = make_layout(SMALL, {"text": 6, "image": 6}, {"text": 10, "image": 3})
    assert dict(layout.groups) == {"shared": (10, 8), "text": (8,), "image": (3,)}
    assert [note.split(":")[0] for note in layout.notes] == ["shared/0", "image/0"]
    assert all("shrunk" in note for note in layout.notes)


@pytest.mark.slow
def test_a_catalogue_of_one_item_has_codes():
    features, present, _ = planted(1, categories=3, width=6, missing=0.0)
    model = fit(SMALL, features, present, np.ones(1, bool))
    assert all(level.size == 1 for level in model.levels) and any("shrunk" in note for note in model.notes)
    assert np.array_equal(model.assign(features, present), [[0, 0, 0, 0]])
    assert all(np.isfinite(value) for row in model.history for value in row.values())


@pytest.mark.parametrize("case", ["equal items", "constant columns", "zero vectors", "all constant", "huge", "tiny"])
def test_degenerate_features_give_codes_without_nan(case):
    features, present = data()
    if case == "equal items":
        features = {m: np.tile(v[:1], (300, 1)) for m, v in features.items()}
    elif case == "constant columns":
        features["text"][:, :6] = 3.0
    elif case == "zero vectors":
        features["text"][:150] = 0
    elif case == "all constant":
        features["image"][:] = -2.0
    else:
        features["text"] *= np.float32(1e15 if case == "huge" else 1e-15)
    model = fit(SMALL, features, present)
    assert all(np.isfinite(value) for row in model.history for value in row.values())
    codes = model.assign(features, present)
    assert codes.shape == (300, 4) and np.all(codes <= [level.size for level in model.levels])
    for guess in model.reconstruct(codes, "full").values():
        assert np.all(np.isfinite(guess))
    if case == "equal items":
        both = present["text"] & present["image"]
        assert len(np.unique(codes[both], axis=0)) == 1, "equal items have equal codes"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused_with_the_row(model, bad):
    features, present = data()
    features["text"][17, 3] = bad
    with pytest.raises(UserError, match="item row 17"):
        fit(SMALL, features, present)
    with pytest.raises(UserError, match="item row 17"):
        model.assign(features, present)
    present["text"][17] = False
    assert np.isfinite(fit(SMALL, features, present).history[-1]["loss"])


def test_features_of_another_width_are_refused(model):
    features, present = data()
    with pytest.raises(UserError, match="12 columns"):
        model.assign({**features, "text": features["text"][:, :5]}, present)
    with pytest.raises(UserError, match="no such features"):
        model.assign({"text": features["text"]}, {"text": present["text"]})
    with pytest.raises(UserError, match=r"features\.image"):
        fit(SMALL, {**features, "image": features["image"][:40]}, present)


def test_standardiser_has_unit_variance_on_fitted_rows_and_zeros_elsewhere():
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(9000, 3)) * [1, 50, 1e-4] + [0, 1000, 5]).astype(np.float32)
    rows = rng.random(9000) < 0.7
    x = fit_standardiser(values, rows)(values, rows)
    np.testing.assert_allclose(x[rows].mean(0), 0, atol=5e-3)
    np.testing.assert_allclose(x[rows].std(0), 1, rtol=2e-2)
    assert np.all(x[~rows] == 0)
