"""QARM's adapter: which pairs are negatives, that it learns what users tell, and its place in the tokenizer."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from fixtures import tiny_dataset
from tokenizer_fixtures import planted

from hisam_jax.data.encoders.behaviour import Interactions
from hisam_jax.tokenizer import registry
from hisam_jax.tokenizer.extension import extend_ids
from hisam_jax.tokenizer.item_alignment import contrastive_loss, negatives
from hisam_jax.tokenizer.qarm_codes import Qarm, QarmConfig, fit_qarm
from hisam_jax.tokenizer.run import tokenize

CONFIG = QarmConfig(
    sizes=(8, 8), neighbours=4, iterations=3, width=16, hidden=(32,), steps=150, batch_size=64, learning_rate=3e-3
)


@pytest.fixture(scope="module")
def fitted():
    """Users take items of one style, which the text tells beside a category that they do not care for."""
    features, present, truth = planted(200, categories=12, styles=4, colours=2, width=12)
    present["text"][7] = present["image"][7] = False
    train, rng = np.arange(200) % 5 > 0, np.random.default_rng(0)
    user_E = np.repeat(np.arange(150), 10)
    of_style = [np.flatnonzero((truth["style"] == style) & train) for style in range(4)]
    item_E = np.array([rng.choice(of_style[user % 4]) for user in user_E])
    return fit_qarm(CONFIG, features, present, train, 0, None, Interactions(user_E, item_E)), features, present, truth


def test_negatives_of_the_same_user_or_item_are_masked():
    trigger, target, user = jnp.array([0, 1, 2, 3, 0]), jnp.array([5, 6, 5, 2, 8]), jnp.array([1, 1, 2, -1, -1])
    found = np.asarray(negatives(trigger, target, user))
    expected = np.ones((5, 5), bool)
    np.fill_diagonal(expected, False)
    expected[0, 1] = expected[1, 0] = False  # one user
    expected[0, 2] = expected[2, 0] = False  # one target
    expected[2, 3] = False  # the target is this pair's own trigger
    expected[0, 4] = expected[4, 0] = False  # one trigger
    assert np.array_equal(found, expected), "pairs of no user are each other's negatives"


def test_what_is_masked_has_no_say_in_the_loss():
    rng = np.random.default_rng(0)
    trigger, target = (jnp.asarray(rng.normal(size=(4, 3)), jnp.float32) for _ in range(2))
    none = jnp.zeros((4, 4), bool)
    assert abs(float(contrastive_loss(trigger, target, none, 0.1))) < 1e-6, "without negatives nothing is to be told"
    one = none.at[0, 1].set(True)
    gradient = np.asarray(jax.grad(contrastive_loss, 1)(trigger, target, one, 0.1))
    assert np.abs(gradient[:2]).min() > 0 and not gradient[2:].any()
    score = np.asarray(trigger @ target.T) / 0.1
    forth, back = (np.log1p(np.exp(score[0, 1] - score[own, own])) / 4 for own in (0, 1))
    assert float(contrastive_loss(trigger, target, one, 0.1)) == pytest.approx((forth + back) / 2, rel=1e-5)


def test_aligned_items_lie_by_what_users_take_new_ones_too(fitted):
    qarm, features, present, truth = fitted
    beside = qarm.item_features(features, present)
    aligned, plain = beside["aligned"], fit_qarm(CONFIG, features, present, np.arange(200) % 5 > 0, 0)
    assert aligned.shape == (200, 16) and aligned.dtype == np.float32 and not aligned[7].any()
    has, new = np.arange(200) != 7, (np.arange(200) % 5 == 0) & (np.arange(200) != 7)
    np.testing.assert_allclose(np.linalg.norm(aligned[has], axis=1), 1, rtol=1e-4)
    by_features = plain.item_features(features, present)["neighbours"]
    assert "aligned" not in plain.item_features(features, present)

    def same_style(found, rows):
        return (truth["style"][found[rows]] == truth["style"][rows][:, None]).mean()

    assert same_style(beside["neighbours"], has & ~new) > 0.9 and same_style(beside["neighbours"], new) > 0.8
    assert same_style(by_features, has) < 0.7
    assert qarm.history[0]["alignment"] > qarm.history[7]["alignment"], "losses come before the levels' errors"
    assert all(0.05 <= row["temperature"] <= 0.1 for row in qarm.history if "temperature" in row)


def test_neighbours_are_the_nearest_aligned_training_items(fitted):
    qarm, features, present, _ = fitted
    beside = qarm.item_features(features, present)
    score = beside["aligned"] @ beside["aligned"].T
    score[:, (np.arange(200) % 5 == 0) | (np.arange(200) == 7)] = -np.inf
    np.fill_diagonal(score, -np.inf)
    found, has = beside["neighbours"], np.arange(200) != 7
    nearest = np.sort(score, axis=1)[:, ::-1][:, :4]
    np.testing.assert_allclose(np.take_along_axis(score, found, 1)[has], nearest[has], atol=1e-5)
    assert (found[7] == -1).all()


def test_the_tokenizer_is_the_same_after_a_file(fitted):
    qarm, features, present, _ = fitted
    again = Qarm.from_state(*qarm.state())
    assert np.array_equal(qarm.assign(features, present), again.assign(features, present))
    for name, values in qarm.item_features(features, present).items():
        assert np.array_equal(values, again.item_features(features, present)[name])
    assert again.history == qarm.history and again.levels == qarm.levels and again.targets(features) == {}


def test_interactions_without_pairs_leave_the_features_as_they_are_and_say_so():
    features, present, _ = planted(40, categories=4, width=6, missing=0.0)
    every, lonely = np.ones(40, bool), Interactions(np.arange(9), np.arange(9))
    qarm = fit_qarm(CONFIG, features, present, every, 0, None, lonely)
    plain = fit_qarm(CONFIG, features, present, every, 0)
    assert qarm.adapter is None and any("no pairs" in note for note in qarm.notes)
    assert np.array_equal(qarm.assign(features, present), plain.assign(features, present))


def test_tokenize_leaves_aligned_vectors_and_an_extension_gives_them_to_new_items(tmp_path):
    data = tiny_dataset(tmp_path / "data")
    config = Path(__file__).resolve().parents[1] / "configs" / "tokenizer" / "qarm.py"
    small = {"sizes": "(4, 4)", "neighbours": "3", "iterations": "2", "steps": "20", "batch_size": "32"}
    report = tokenize(data.path, config, tmp_path / "ids", {f"qarm.{name}": value for name, value in small.items()})
    stored, model = np.load(tmp_path / "ids" / "aligned.npy"), registry.load_tokenizer(tmp_path / "ids")
    assert stored.shape == (40, 64) and report["history"][0]["step"] == 20 and report["reconstruction"] == {}
    assert np.array_equal(stored, model.item_features(data.features, data.present)["aligned"])
    told = extend_ids(tmp_path / "ids", data.path, tmp_path / "more")
    assert told["beside"] == ["neighbours", "aligned"]
    for name in ("aligned", "neighbours"):
        more = np.load(tmp_path / "more" / f"{name}.npy")
        assert np.array_equal(more, np.load(tmp_path / "ids" / f"{name}.npy"))


def test_ids_of_training_items_follow_the_adapter(fitted):
    qarm, features, present, _ = fitted
    ids = pl.Series("item_id", [f"i{row}" for row in range(200)])
    rows = np.random.default_rng(0).permutation(200)
    moved = qarm.named(ids).renumbered(ids.gather(rows))
    found = moved.item_features(*({m: v[rows] for m, v in each.items()} for each in (features, present)))
    whole = qarm.item_features(features, present)
    np.testing.assert_allclose(found["aligned"], whole["aligned"][rows], atol=1e-6)
    same = rows[found["neighbours"]] == whole["neighbours"][rows]
    assert same[rows != 7].mean() > 0.99
