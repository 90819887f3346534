"""Sizes and operations from a config, beside the modules themselves and the programs that XLA makes of them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hisam_jax.compilation.products import product_flops
from hisam_jax.compilation.steps import count
from hisam_jax.models.config import HMATConfig
from hisam_jax.models.heads import make_objective
from hisam_jax.models.hmat import HMAT
from hisam_jax.scaling import counts
from hisam_jax.scaling.flops import Vocabulary, forward_flops, train_flops
from hisam_jax.tokenizer import dst_training
from hisam_jax.tokenizer.dst_config import DSTConfig, make_layout
from tests.model_fixtures import ITEMS, LEVELS, SIZE, small_batch, small_catalog, small_model, small_params

VOCABULARY = Vocabulary(ITEMS, (SIZE,) * LEVELS, 4, {"text": 5})


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"anchors": False, "mlp": 20, "kv_heads": 2},
        {"actions": True, "ranking": 1.0, "item_effect": True, "cosine": True, "layers": 1},
        {"item_id": False, "features": False, "qk_norm": False, "generation": 0.0},
        {"tied_query": True},
        {"block": "hstu", "anchors": False, "item_id_rows": 16, "retrieval": 0.0},
    ],
)
def test_parameters_are_those_of_the_module(switches):
    config = HMATConfig(**{"width": 16, "heads": 2, "kv_heads": 1, "mlp": 24, **switches})
    model, catalog = HMAT(config, VOCABULARY.vocab, VOCABULARY.digit, ITEMS), small_catalog()
    full = np.concatenate([catalog.codes_IL, np.arange(ITEMS)[:, None] % 4], axis=1)
    _, init_fn = make_objective(model, catalog, full)
    shapes = jax.eval_shape(init_fn, jax.random.key(0), small_batch(catalog))
    assert counts.parameters(config, VOCABULARY) == count(shapes)


def test_parameters_of_dst_are_those_of_its_state():
    cfg, layout, state, _ = _dst(residual_stop_gradient=True)
    found = counts.dst_parameters(cfg, layout)
    held = {"network": (state.trainable, state.club), "tables": [b.vectors_KD for g in state.books.values() for b in g]}
    assert found == {name: sum(np.size(leaf) for leaf in jax.tree.leaves(tree)) for name, tree in held.items()}


def test_products_of_a_program_without_loops_are_what_xla_counts():
    program = jax.jit(lambda a, b: a @ b @ b).lower(jnp.zeros((64, 32)), jnp.zeros((32, 32))).compile()
    assert product_flops(program.as_text()) == program.cost_analysis()["flops"] == 2 * 2 * 64 * 32 * 32


@pytest.mark.parametrize(
    ("switches", "items", "tokens", "keys", "products", "again"),
    [  # the dense form of each attention, its products a step, and whether blocks are computed again
        ({"anchors": False, "attention": "dense", "layers": 3}, 16, 3, 3, 7, False),
        ({"attention": "reference", "layers": 2, "ranking": 1.0, "actions": True}, 12, 6, 7, 6, False),
        ({"anchors": False, "attention": "dense", "remat": "all", "generation": 0.0}, 8, 3, 3, 8, True),
    ],
)
def test_operations_of_a_step_are_those_of_its_program(switches, items, tokens, keys, products, again):
    """Within 1 % where attention counts every pair as the program does: scans unrolled, the softmax's own backward.

    The program has each pair of tokens where only the allowed ones are of use, and computes again what is not kept; so
    attention's own count is replaced by that of its products, and with `remat` the blocks' forward pass is added, but
    for the last product of each, whose result no gradient needs.
    """
    catalog, batch = small_catalog(), small_batch(small_catalog(), items=items)
    model = small_model(width=32, mlp=48, **switches)
    params, loss_fn = small_params(model, catalog, batch)
    step = jax.jit(jax.grad(lambda p: loss_fn(p, batch, jax.random.key(0))[0]))
    found = product_flops(step.lower(params).compile().as_text())
    config, lengths = model.config, [items, items]
    parts = forward_flops(config, VOCABULARY, lengths)
    assert config.tokens(LEVELS) == tokens
    dense = 2 * 2 * (items * tokens) * (items * keys) * config.width * config.layers * products
    last = 2 * 2 * items * tokens * config.mlp * config.width * config.layers
    expected = train_flops(config, VOCABULARY, lengths) - 3 * parts["attention"] + dense
    assert found == pytest.approx(expected + again * (parts["blocks"] - last), rel=0.01)


def _dst(**switches):
    cfg = DSTConfig(
        width=32, hidden=64, shared=(32, 32), specific={"text": (32,), "image": (16,)}, mi_hidden=48, batch_size=64,
        init_rows=64, **switches,
    )  # fmt: skip
    rng, widths = np.random.default_rng(0), {"text": 40, "image": 24}
    layout = make_layout(cfg, widths, dict.fromkeys(widths, 500))
    x = {name: jnp.asarray(rng.normal(size=(64, width)), jnp.float32) for name, width in widths.items()}
    present = {name: jnp.ones(64, bool) for name in widths}
    return cfg, layout, dst_training.init_state(cfg, layout, 0, x, present), (x, present)


def test_operations_of_a_step_of_dst_are_those_of_its_program():
    cfg, layout, state, batch = _dst()
    step = jax.jit(dst_training.train_step, static_argnums=(0, 1))
    program = step.lower(cfg, layout, state, jax.random.key(0), jnp.int32(3), *batch).compile()
    found = counts.dst_flops(cfg, layout, 64)
    assert product_flops(program.as_text()) == pytest.approx(sum(found.values()), rel=0.05)


def test_costs_are_shared_out_over_items_and_tokens():
    config = HMATConfig(width=16, heads=2, kv_heads=2)
    cost = counts.train_cost(config, VOCABULARY, [5, 11])
    assert cost.step == train_flops(config, VOCABULARY, [5, 11])
    assert (cost.item, cost.token) == (cost.step / 16, cost.step / 16 / 4)


def test_a_tied_query_saves_its_projection():
    config = HMATConfig(width=16, heads=2, kv_heads=1, mlp=24)
    projected, tied = (
        forward_flops(dataclasses.replace(config, tied_query=way), VOCABULARY, [5, 3]) for way in (False, True)
    )
    assert projected["retrieval"] - tied["retrieval"] == 2 * 8 * 16 * 16
    assert {**projected, "retrieval": 0} == {**tied, "retrieval": 0}
