"""What DST's codes tell of one another: the bound against loops and closed forms; no `q` judges what it knows."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hisam_jax.tokenizer import dst_information, quantization
from hisam_jax.tokenizer import mutual_information as mi
from hisam_jax.tokenizer.dst import Forward
from hisam_jax.tokenizer.dst_config import SHARED, DSTConfig, Layout, make_layout

ROWS, WIDTH, CODES = 1024, 8, 8
CFG = DSTConfig(shared=(CODES,), specific={"text": (CODES,)}, width=WIDTH, mi_hidden=64)
ESTIMATORS = ("categorical", "gaussian")
PAIR = f"{SHARED}|text"


def layout_of(cfg: DSTConfig, *modalities: str) -> Layout:
    return make_layout(cfg, {m: 5 for m in modalities}, {m: 99 for m in modalities})


LAYOUT = layout_of(dataclasses.replace(CFG, specific={"text": (CODES,), "image": ()}), "text", "image")


def passed_of(shared_BD, text_BD, book_KD) -> Forward:
    """What `dst.forward` would say of these latents; shared codes are taken as they are."""
    quantized = {"text": quantization.residual_quantize(text_BD, [book_KD])}
    sums = {SHARED: shared_BD, "text": quantization.straight_through(text_BD, quantized["text"].sum_ND)}
    return Forward({}, {}, quantized, sums, {}, {})


def everything(rows: int = ROWS) -> dict[str, np.ndarray]:
    return {SHARED: np.ones(rows, np.float32), "text": np.ones(rows, np.float32)}


def settings(estimator: str = "categorical", moves_shared: bool = True, temperature: float = 0.25) -> DSTConfig:
    return dataclasses.replace(CFG, mi_estimator=estimator, mi_shared_gradient=moves_shared, mi_temperature=temperature)


def fresh(cfg: DSTConfig):
    return dst_information.init_clubs(cfg, LAYOUT, np.random.default_rng(0))


@functools.partial(jax.jit, static_argnums=0)
def fitted(cfg: DSTConfig, latents, book_KD, weight, steps):
    """Every q after climbing on its own half."""
    passed, adam = passed_of(*latents, book_KD), optax.adam(1e-2)
    samples = dst_information.samples_of(cfg, LAYOUT, passed, {"text": [book_KD]}, weight)

    def climb(_, carry):
        clubs, state = carry
        gradients = jax.grad(lambda c: -dst_information.log_likelihood(cfg, c, samples))(clubs)
        updates, state = adam.update(gradients, state)
        return optax.apply_updates(clubs, updates), state

    clubs = jax.tree.map(jnp.asarray, fresh(cfg))
    return jax.lax.fori_loop(0, steps, climb, (clubs, adam.init(clubs)))[0]


def bound(cfg: DSTConfig, clubs, latents, book_KD, weight):
    passed = passed_of(*latents, book_KD)
    return dst_information.bounds(cfg, LAYOUT, clubs, passed, {"text": [book_KD]}, weight)[f"mi/{PAIR}"]


of_bound = jax.jit(jax.value_and_grad(bound, argnums=2), static_argnums=0)


def cases(follows: float, noise: float, rows: int = ROWS, seed: int = 0):
    """(latents, book) where the text code is the shared code with this probability, else any."""
    rng = np.random.default_rng(seed)
    book_KD = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0].astype(np.float32)
    code = rng.integers(CODES, size=rows)
    own = np.where(rng.random(rows) < follows, code, rng.integers(CODES, size=rows))
    text_BD = book_KD[own] + noise * rng.normal(size=(rows, WIDTH))
    return (np.eye(CODES, dtype=np.float32)[code], text_BD.astype(np.float32)), book_KD


# the bound of codes


def test_the_categorical_bound_is_the_sum_over_all_pairs():
    rng, sizes, rows = np.random.default_rng(0), (4, 3), [0, 1, 3, 5, 6]
    params = mi.init_categorical(rng, 3, sizes, 8)
    x = rng.normal(size=(7, 3)).astype(np.float32)
    shares = [rng.dirichlet(np.ones(size), 7).astype(np.float32) for size in sizes]
    weight = np.isin(np.arange(7), rows).astype(np.float32)

    def log_q(level: int, item: int) -> np.ndarray:
        hidden = np.maximum(x[item] @ params["input_w"] + params["input_b"], 0)
        logits = (hidden @ params[f"head{level}_w"] + params[f"head{level}_b"]).astype(np.float64)
        return logits - np.log(np.exp(logits).sum())

    own, expected = 0.0, 0.0
    for level, share in enumerate(shares):
        own += np.mean([share[i] @ log_q(level, i) for i in rows])
        pairs = np.mean([share[i] @ log_q(level, j) for i in rows for j in rows])
        expected += np.mean([share[i] @ log_q(level, i) for i in rows]) - pairs
    np.testing.assert_allclose(mi.code_vclub(params, x, shares, weight), expected, rtol=1e-4)
    np.testing.assert_allclose(mi.code_log_likelihood(params, x, shares, weight), own, rtol=1e-5)


def test_a_fitted_bound_has_its_closed_form_for_codes_and_lies_above_the_information():
    """With the true q(y | x) vCLUB is I(x; y) + KL(p(x) p(y) || p(x, y)), both in nats."""
    follows, cfg = 0.4, settings(temperature=0.02)  # soft codes as good as hard ones
    latents, book_KD = cases(follows, 0.01)
    clubs = fitted(cfg, latents, book_KD, everything(), 60)
    found, _ = of_bound(cfg, clubs, latents, book_KD, everything())
    joint = (follows * np.eye(CODES) + (1 - follows) / CODES) / CODES
    information, opposite = np.sum(joint * np.log(joint * CODES**2)), -np.mean(np.log(joint * CODES**2))
    np.testing.assert_allclose(found, information + opposite, rtol=0.15)
    assert information < found


# halves


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_q_that_knows_its_items_by_heart_finds_nothing_in_the_other_half(estimator):
    """The point of the two halves: each q has learnt noise, which within its own half looks like information."""
    cfg, rng = settings(estimator, temperature=0.02), np.random.default_rng(0)
    (_, text_BD), book_KD = cases(0, 0.01)
    latents = rng.normal(size=text_BD.shape).astype(np.float32), text_BD
    few = (np.arange(ROWS) % (ROWS // 2) < 100).astype(np.float32)
    weight = {SHARED: few, "text": few}
    clubs = fitted(cfg, latents, book_KD, weight, 300)
    by_heart = {pair: both[::-1] for pair, both in clubs.items()}
    within, _ = of_bound(cfg, by_heart, latents, book_KD, weight)
    across, _ = of_bound(cfg, clubs, latents, book_KD, weight)
    assert within > 2, "this q was meant to overfit"
    assert 0 <= across < 0.15 * within


def test_each_q_climbs_on_its_own_half_alone():
    cfg, before = settings(), fresh(settings())
    latents, book_KD = cases(0.5, 0.3)
    first = (np.arange(ROWS) < ROWS // 2).astype(np.float32)
    for half, expected in ((first, [True, False]), (1 - first, [False, True])):
        after = fitted(cfg, latents, book_KD, {SHARED: half, "text": half}, 1)
        moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), before, after)
        assert [any(jax.tree.leaves(q)) for q in moved[PAIR]] == expected


# gradients


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("moves_shared", [False, True])
def test_the_bound_moves_latents_and_shared_codes_only_when_asked(estimator, moves_shared):
    latents, book_KD = cases(0.9, 0.3)
    clubs = fitted(settings(estimator), latents, book_KD, everything(), 60)
    found, (shared, text) = of_bound(settings(estimator, moves_shared), clubs, latents, book_KD, everything())
    assert found > 0.3 and np.all(np.isfinite(shared)) and np.all(np.isfinite(text))
    assert np.abs(text).max() > 1e-5
    assert bool(np.any(np.asarray(shared) != 0)) == moves_shared


def test_following_the_gradient_lowers_the_bound_of_codes():
    (shared_BD, text_BD), book_KD = cases(0.9, 0.3)
    cfg = settings()
    clubs = fitted(cfg, (shared_BD, text_BD), book_KD, everything(), 60)
    found, (_, slope) = of_bound(cfg, clubs, (shared_BD, text_BD), book_KD, everything())
    step = 0.05 * np.asarray(slope) / np.linalg.norm(slope)
    assert of_bound(cfg, clubs, (shared_BD, text_BD - step), book_KD, everything())[0] < found


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rows_without_a_view_have_no_effect_and_no_gradient(estimator):
    cfg, rows = settings(estimator), np.arange(ROWS)
    latents, book_KD = cases(0.9, 0.3)
    weight = {SHARED: (rows % 5 > 0).astype(np.float32), "text": (rows % 3 > 0).astype(np.float32)}
    counted = weight[SHARED] * weight["text"] > 0
    other = tuple(np.where(counted[:, None], part, np.float32(9)) for part in latents)
    clubs = fitted(cfg, latents, book_KD, weight, 60)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), clubs, fitted(cfg, other, book_KD, weight, 60)
    )
    found, gradients = of_bound(cfg, clubs, latents, book_KD, weight)
    np.testing.assert_allclose(of_bound(cfg, clubs, other, book_KD, weight)[0], found, rtol=1e-5)
    for part in map(np.asarray, gradients):
        assert np.all(part[~counted] == 0) and np.mean(np.any(part[counted] != 0, axis=1)) > 0.9


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_tiny_batches_give_finite_numbers(estimator, rows):
    cfg, clubs = settings(estimator), fresh(settings(estimator))
    latents, book_KD = cases(0.9, 0.3, rows)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def both(latents, clubs, weight):
        passed = passed_of(*latents, book_KD)
        samples = dst_information.samples_of(cfg, LAYOUT, passed, {"text": [book_KD]}, weight)
        return bound(cfg, clubs, latents, book_KD, weight) + dst_information.log_likelihood(cfg, clubs, samples)

    for weight in (everything(rows), {name: 0 * part for name, part in everything(rows).items()}):
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(both(latents, clubs, weight)))


# soft codes, scale, pairs


@jax.jit
def soft(x_BD, books, temperature):
    """(soft codes, hard codes)."""
    passed = quantization.residual_quantize(x_BD, books)
    return dst_information.soft_codes(passed, books, jnp.ones(len(x_BD)), temperature), passed.codes_NL


def test_soft_codes_are_shares_whose_greatest_is_the_nearest_code():
    rng = np.random.default_rng(0)
    books = [rng.normal(size=(size, 3)).astype(np.float32) for size in (6, 4)]
    x_BD = rng.normal(size=(50, 3)).astype(np.float32)
    for temperature in (0.05, 0.25, 5.0):
        shares, codes_BL = soft(x_BD, books, temperature)
        for level, share_BK in enumerate(map(np.asarray, shares)):
            np.testing.assert_allclose(share_BK.sum(1), 1, rtol=1e-5)
            assert np.array_equal(share_BK.argmax(1), codes_BL[:, level])
    scaled, _ = soft(7 * x_BD, [7 * part for part in books], 5.0)
    for share, same in zip(shares, scaled, strict=True):
        np.testing.assert_allclose(share, same, atol=1e-4, err_msg="the unit of distance is the data's own")


def test_soft_codes_send_no_gradient_into_the_books():
    rng = np.random.default_rng(0)
    book_KD, x_BD = (rng.normal(size=(size, 3)).astype(np.float32) for size in (5, 9))
    gradients = jax.jit(jax.grad(lambda x, book: soft(x, [book], 0.25)[0][0][:, 0].sum(), argnums=(0, 1)))
    of_x, of_book = gradients(x_BD, book_KD)
    assert np.any(np.asarray(of_x) != 0) and np.all(np.asarray(of_book) == 0)


def test_unit_spread_knows_neither_scale_nor_shift():
    rng = np.random.default_rng(0)
    q_BD, at = rng.normal(size=(20, 4)) * [1, 2, 3, 4], np.arange(20) < 15
    weight_B = jnp.asarray(at, jnp.float32)
    unit = np.asarray(dst_information.unit_spread(jnp.asarray(q_BD, jnp.float32), weight_B))
    centred = q_BD[at] - q_BD[at].mean(0)
    np.testing.assert_allclose(unit[at], centred / np.sqrt(np.mean(centred**2)), rtol=1e-4, atol=1e-5)
    assert np.all(unit[~at] == 0)
    moved = dst_information.unit_spread(jnp.asarray(30 * q_BD + [5, -9, 2, 0], jnp.float32), weight_B)
    np.testing.assert_allclose(moved, unit, atol=1e-4)


def test_shrinking_is_no_way_to_lower_what_is_read_off_unit_spread():
    rng = np.random.default_rng(0)
    q_BD, towards_BD = (jnp.asarray(rng.normal(size=(20, 4)), jnp.float32) for _ in range(2))
    of_q = jax.grad(lambda q: jnp.sum(dst_information.unit_spread(q, jnp.ones(20)) * towards_BD))(q_BD)
    along = float(jnp.vdot(of_q, q_BD - q_BD.mean(0)))
    assert abs(along) < 1e-4 * float(jnp.linalg.norm(of_q) * jnp.linalg.norm(q_BD)), "no gradient along the scale"
    np.testing.assert_allclose(np.asarray(of_q).sum(0), 0, atol=1e-5, err_msg="nor along a shift")
    assert float(jnp.linalg.norm(of_q)) > 0.1
    point = jax.grad(lambda q: jnp.sum(dst_information.unit_spread(q, jnp.ones(20)) * towards_BD))(jnp.ones((20, 4)))
    assert np.all(np.isfinite(point))


@pytest.mark.parametrize(
    "modalities, between, pairs",
    [
        (("text",), 1.0, ()),
        (("text", "image"), 0.0, ("shared|text", "shared|image")),
        (("text", "image"), 1.0, ("shared|text", "shared|image", "text|image")),
        (
            ("text", "image", "behaviour"),
            1.0,
            ("shared|text", "shared|image", "shared|behaviour", "text|image", "text|behaviour", "image|behaviour"),
        ),
    ],
)
def test_pairs_that_are_bounded(modalities, between, pairs):
    cfg = dataclasses.replace(DSTConfig(), mi_specific_weight=between)
    layout = layout_of(cfg, *modalities)
    assert tuple(f"{a}|{b}" for a, b in dst_information.pairs_of(cfg, layout)) == pairs
    small = dataclasses.replace(cfg, mi_hidden=2)
    assert set(dst_information.init_clubs(small, layout, np.random.default_rng(0))) == {*pairs}


def test_a_modality_without_codes_is_in_no_pair():
    assert dst_information.pairs_of(dataclasses.replace(CFG, mi_specific_weight=1.0), LAYOUT) == ((SHARED, "text"),)
