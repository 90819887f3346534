from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_fixtures import init_fn, loss_fn

from hisam_jax.errors import UserError
from hisam_jax.training.optimizer import OptimizerConfig, decay_mask, make_optimizer, make_schedule
from hisam_jax.training.state import init_state, make_train_step

BATCH = {
    "item": np.array([[3, 4, 5, 0], [7, 8, 9, 10]], np.int32),
    "next_weight": np.array([[0, 1, 1, 0], [0, 1, 0, 1]], np.float32),
}


def test_the_schedule_rises_to_the_peak_and_falls_to_its_fraction():
    schedule = make_schedule(OptimizerConfig(learning_rate=0.1, warmup_steps=10, final_fraction=0.2), 110)
    rates = np.array([schedule(step) for step in range(111)])
    assert rates[0] == pytest.approx(0.01)
    assert rates.argmax() == 10 and rates[10] == pytest.approx(0.1)
    assert (np.diff(rates[:11]) > 0).all() and (np.diff(rates[10:]) <= 0).all()
    assert rates[110] == pytest.approx(0.02) and rates[60] == pytest.approx(0.06, rel=1e-3)


@given(steps=st.integers(1, 50), warmup=st.integers(0, 80))
def test_any_schedule_is_positive_and_never_above_the_peak(steps, warmup):
    schedule = make_schedule(OptimizerConfig(learning_rate=0.5, warmup_steps=warmup), steps)
    rates = np.array([schedule(step) for step in range(steps)])
    assert ((rates > 0) & (rates <= 0.5 * (1 + 1e-6))).all()


PARAMS = {
    "blocks": {
        "attention": {"query": jnp.ones((2, 4, 4))},
        "norm_mlp": {"scale": jnp.ones((2, 4))},  # stacked layers: a matrix by its shape, a norm by its name
        "mlp": {"kernel": jnp.ones((2, 4, 8)), "bias": jnp.ones((2, 8))},
    },
    "code_embedding": jnp.ones((9, 4)),
    "anchor": jnp.ones((1, 4)),
    "log_temperature": jnp.ones(()),
}


def test_norms_biases_vectors_and_tables_do_not_decay():
    decays = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, yes in jax.tree_util.tree_leaves_with_path(decay_mask(PARAMS))
        if yes
    }
    assert decays == {"blocks/attention/query", "blocks/mlp/kernel"}
    assert decay_mask(PARAMS, decay_embeddings=True)["code_embedding"]


def test_only_what_decays_moves_without_a_gradient():
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    tx = make_optimizer(config, 10)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
    moved = jax.tree.map(lambda update: bool((update != 0).any()), updates)
    assert moved == decay_mask(PARAMS)
    np.testing.assert_allclose(updates["blocks"]["mlp"]["kernel"], -0.05, rtol=1e-6)


def test_one_step_equals_adamw_by_hand():
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5, clip_norm=1.0, b1=0.9, b2=0.98)
    tx = make_optimizer(config, 10)
    params, grad = {"kernel": jnp.array([[2.0, -1.0]])}, np.array([[3.0, 4.0]])  # of norm 5, clipped to 1
    updates, _ = tx.update({"kernel": jnp.array(grad)}, tx.init(params), params)
    clipped = grad / 5
    by_hand = -0.1 * (clipped / (np.abs(clipped) + 1e-8) + 0.5 * np.array([[2.0, -1.0]]))
    np.testing.assert_allclose(updates["kernel"], by_hand, rtol=1e-5)


def test_a_step_is_pure_and_its_key_follows_the_step():
    tx = make_optimizer(OptimizerConfig(warmup_steps=0), 10)
    state = init_state(init_fn, tx, 0, BATCH)
    step = jax.jit(make_train_step(loss_fn, tx))
    once, metrics = step(state, BATCH)
    again, same = step(state, BATCH)
    assert int(state.step) == 0 and int(once.step) == 1
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), (once.params, metrics), (again.params, same)))
    later = step(state.replace(step=jnp.int32(5)), BATCH)[1]  # the same parameters under another step's dropout
    assert float(later["loss"]) != float(metrics["loss"])
    assert {"loss", "loss/retrieval", "grad_norm", "update_norm"} <= metrics.keys()
    grads = jax.grad(lambda params: loss_fn(params, BATCH, jax.random.fold_in(state.key, 0))[0])(state.params)
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(grads)))
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)


def test_seeds_differ_in_parameters_and_keys():
    tx = make_optimizer(OptimizerConfig(), 10)
    first, second = (init_state(init_fn, tx, seed, BATCH) for seed in (0, 1))
    assert not np.array_equal(first.params["output"]["kernel"], second.params["output"]["kernel"])
    assert first.key != second.key


@pytest.mark.parametrize(("field", "value"), [("learning_rate", 0.0), ("weight_decay", -1.0), ("clip_norm", -0.1)])
def test_impossible_settings_are_refused_by_name(field, value):
    with pytest.raises(UserError, match=f"optimizer.{field}"):
        dataclasses.replace(OptimizerConfig(), **{field: value})
