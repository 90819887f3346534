"""RQ-VAE: planted clusters, both kinds of codebooks, what a step reports, and a loss that reads only what is there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score
from tokenizer_fixtures import planted

from hisam_jax.tokenizer import fitting, quantization, rqvae
from hisam_jax.tokenizer.rqvae import RQVAEConfig, fit_rqvae

SMALL = {"width": 8, "hidden": (32,), "batch_size": 64}


@pytest.mark.parametrize("codebooks", ["ema", "gradient"])
def test_planted_categories_are_told_apart_and_every_level_is_used(codebooks):
    features, present, truth = planted(400, categories=8, styles=1, colours=1, width=12)
    cfg = RQVAEConfig((16, 16), codebooks=codebooks, steps=120, **SMALL)
    seen = []
    model = fit_rqvae(
        cfg, features, present, np.ones(400, bool), 0, lambda done, total, row: seen.append((done, total))
    )
    codes = model.assign(features, present)
    assert adjusted_mutual_info_score(truth["category"], codes[:, 0], average_method="min") > 0.8
    assert all(len(np.unique(codes[:, level])) >= 0.9 * 16 for level in range(2))
    assert seen[-1] == (120, 120) and len(model.history) == len(seen)
    first, last = model.history[0], model.history[-1]
    assert last["loss"] < first["loss"] and last["reconstruction"] < first["reconstruction"]
    for level in ("shared/0", "shared/1"):
        assert 0.9 <= last[f"used/{level}"] <= 1 and 8 < last[f"perplexity/{level}"] <= 16.01
    assert 0.3 < last["spread/shared"] <= 1.01, "unit latents that are no single point"


def test_the_loss_reads_only_what_is_there():
    guess = {"a": jnp.ones((3, 2)), "b": jnp.zeros((3, 4))}
    x = {"a": jnp.array([[1.0, 3.0], [9, 9], [1, 1]]), "b": jnp.full((3, 4), 2.0)}
    present = {"a": jnp.array([1.0, 0.0, 1.0]), "b": jnp.array([0.0, 0.0, 0.0])}
    empty = quantization.residual_quantize(jnp.zeros((3, 2)), [jnp.zeros((1, 2))])
    parts = rqvae.losses(guess, x, present, empty, jnp.array([1.0, 0.0, 1.0]))
    assert float(parts["reconstruction"]) == pytest.approx(((0 + 4) / 2 + 0) / 2 / 2)
    changed = {"a": x["a"].at[1].set(-50.0), "b": x["b"] * 7}
    assert float(rqvae.losses(guess, changed, present, empty, jnp.ones(3))["reconstruction"]) == float(
        parts["reconstruction"]
    )


def test_spread_is_the_variance_of_rows_that_count():
    x = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    weight = (np.arange(9) < 6).astype(np.float32)
    np.testing.assert_allclose(fitting.spread(jnp.asarray(x), jnp.asarray(weight)), x[:6].var(0).sum(), rtol=1e-5)
    assert float(fitting.spread(jnp.ones((4, 3)), jnp.ones(4))) == 0


def test_a_step_moves_networks_and_books_and_reports_what_the_contract_asks():
    features, present, _ = planted(64, categories=4, width=6, missing=0.0)
    networks = rqvae.Autoencoder(RQVAEConfig((8,), codebooks="gradient", **SMALL), (("text", 6), ("image", 6)))
    state = rqvae.with_books(networks, rqvae.init_networks(networks, 0), (8,), 0, features, 64)
    step = jax.jit(rqvae.train_step, static_argnums=0)
    after, metrics = step(networks, state, jax.random.key(0), jnp.int32(networks.cfg.warm_steps), features, present)
    asked = {"loss", "reconstruction", "commitment", "gradient_norm", "spread/shared", "used/shared/0"}
    assert asked | {"perplexity/shared/0"} <= metrics.keys()
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.trainable, after.trainable)
    assert min(jax.tree.leaves(moved["net"])) > 0 and moved["codebooks"][0] > 0
    assert np.array_equal(after.trainable["codebooks"][0], after.books["shared"][0].vectors_KD)
    warm, _ = step(networks, state, jax.random.key(0), jnp.int32(0), features, present)
    still = jnp.abs(state.trainable["codebooks"][0] - warm.trainable["codebooks"][0]).max(1)
    assert float(jnp.median(still)) == 0, "without codes nothing pulls at them; dead ones may move"
