"""HMAT: what a state may depend on, by gradients; the switches; one training step against recorded figures."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hisam_jax.errors import UserError
from hisam_jax.models.config import HMATConfig
from hisam_jax.models.items import id_row
from hisam_jax.models.rope import rotate, rotation
from hisam_jax.scaling.flops import block_weights
from tests.model_fixtures import ITEMS, LEVELS, small_batch, small_catalog, small_model, small_params, traced_gradient

VARIANTS = {
    "hmat": {},
    "strict": {"strict": True},
    "last_code": {"anchor_token": False},
    "actions": {"actions": True, "ranking": 1.0},
    "flat": {"anchors": False},
    "flat_actions": {"anchors": False, "actions": True, "ranking": 1.0},
    "hstu": {"anchors": False, "block": "hstu", "actions": True, "ranking": 1.0},
}


@pytest.fixture(scope="module")
def catalog():
    return small_catalog()


def _input_gradients(model, params, batch, catalog, pick):
    """|d pick(state) / d embedded token| summed over width: [B, N, T]."""

    def scalar(shift_BNTD):
        def run(module):
            x = module.embed(batch, catalog) + shift_BNTD
            item = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
            return module.run(x, item, jnp.asarray(batch["segment"]))[0]

        return pick(model.apply({"params": params}, method=run))

    shape = (*batch["item"].shape, model.slots, model.config.width)
    return np.abs(np.asarray(jax.jit(jax.grad(scalar))(jnp.zeros(shape)))).sum(-1)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_future_item_and_no_other_packed_user_reaches_a_state(name, catalog):
    model, batch = small_model(**VARIANTS[name]), small_batch(catalog)
    params, _ = small_params(model, catalog, batch)
    for n in (2, 6):
        reached = _input_gradients(model, params, batch, catalog, lambda state, n=n: state[0, n].sum())
        mine = batch["segment"][0] == batch["segment"][0, n]
        allowed = mine & (np.arange(9) <= n)
        assert not reached[1].any(), "another row"
        assert not reached[0][~allowed].any(), "the future or another packed user"
        assert (reached[0][allowed].sum(-1) > 0).all(), "an item of the history that does not reach the state"


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("anchor_token", [True, False])
def test_one_layer_reads_history_through_anchors_only(anchor_token, strict, catalog):
    model, batch = small_model(layers=1, strict=strict, anchor_token=anchor_token), small_batch(catalog)
    params, _ = small_params(model, catalog, batch)
    for slot in range(model.slots):
        reached = _input_gradients(model, params, batch, catalog, lambda state, s=slot: state[0, 3, s].sum())[0]
        assert not reached[:3, :-1].any(), "a fine token of an earlier item was read"
        reads_anchors = not (strict and slot == model.slots - 1)
        assert bool(reached[:3, -1].all()) == reads_anchors
        assert (reached[3, : slot + 1] > 0).all() and not reached[3, slot + 1 :].any()


def test_a_window_leaves_older_anchors_out(catalog):
    model, batch = small_model(layers=1, window=2), small_batch(catalog)
    params, _ = small_params(model, catalog, batch)
    reached = _input_gradients(model, params, batch, catalog, lambda state: state[1, 5].sum())[1]
    assert not reached[:3].any() and reached[3:6, -1].all() and not reached[3:5, :-1].any()


@pytest.mark.parametrize("name", ["actions", "flat_actions", "hstu"])
def test_a_click_logit_never_sees_its_own_action(name, catalog):
    model, batch = small_model(**VARIANTS[name]), small_batch(catalog)
    params, _ = small_params(model, catalog, batch)

    def logits(action):
        return model.apply(
            {"params": params},
            method=lambda m: m.click_logits(m({**batch, "action": action}, catalog)[0], batch["item"]),
        )

    base = np.asarray(logits(batch["action"]))
    changed = batch["action"].copy()
    changed[0, 5] = (changed[0, 5] + 3) % 11
    moved = np.abs(np.asarray(logits(changed)) - base) > 1e-7
    assert not moved[0, : 5 + 1].any() and not moved[1].any()
    assert moved[0, 6:].all(), "a past action must matter to later logits"


def test_without_action_tokens_the_answer_is_not_in_the_anchor(catalog):
    model, batch = small_model(ranking=1.0), small_batch(catalog)
    params, _ = small_params(model, catalog, batch)
    states = [
        model.apply({"params": params}, {**batch, "action": action}, catalog)[0]
        for action in (batch["action"], np.zeros_like(batch["action"]))
    ]
    np.testing.assert_array_equal(*states)


@pytest.mark.parametrize("name", ["hmat", "last_code", "flat", "flat_actions", "hstu"])
def test_a_code_is_predicted_without_seeing_it_or_what_follows(name, catalog):
    model, batch = small_model(**VARIANTS[name]), small_batch(catalog)
    params, _ = small_params(model, catalog, batch)
    for level in range(LEVELS + 1):
        slot = model.reading_slot(level)
        n = 6 if slot >= 0 else 5
        reached = _input_gradients(model, params, batch, catalog, lambda s, n=n, slot=slot: s[0, n, slot].sum())[0]
        assert not reached[6, min(level, LEVELS) :].any(), (level, slot)


def test_flat_model_reads_fine_tokens_of_history(catalog):
    model, batch = small_model(anchors=False, layers=1), small_batch(catalog)
    params, _ = small_params(model, catalog, batch)
    assert _input_gradients(model, params, batch, catalog, lambda state: state[0, 3, 0].sum())[0, :3].all()


def _turned(x, item, slot, mode="hierarchical"):
    where = jnp.array([[item]]), jnp.array([slot])
    return rotate(x, rotation(*where, x.shape[-1], mode=mode, slots=5))


def test_hierarchical_rope_depends_on_differences_of_item_and_slot_only():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def score(item_q, slot_q, item_k, slot_k, mode="hierarchical"):
        return float((_turned(q, item_q, slot_q, mode) * _turned(k, item_k, slot_k, mode)).sum())

    assert score(7, 3, 4, 1) == pytest.approx(score(13, 4, 10, 2), abs=1e-5)
    assert score(7, 3, 4, 1) != pytest.approx(score(8, 3, 4, 1), abs=1e-3)
    assert score(7, 3, 4, 1) != pytest.approx(score(7, 4, 4, 1), abs=1e-3)
    assert score(2, 1, 1, 4, "flat") == pytest.approx(score(3, 0, 2, 3, "flat"), abs=1e-5)
    assert score(7, 3, 4, 1, "none") == score(1, 0, 9, 4, "none")


@pytest.mark.parametrize(("mode", "parts"), [("hierarchical", 2), ("flat", 1)])
def test_rotation_is_multiplication_by_a_unit_complex_number(mode, parts):
    """Each part of the width is complex numbers, real halves first, turned by that part's position."""
    x_BNTHD = np.random.default_rng(1).normal(size=(2, 3, 5, 2, 8)).astype(np.float32)
    item_BN, slot_T = np.array([[0, 1, 7], [100, 3, 2]]), np.arange(5)
    pairs = 4 // parts
    places = [(item_BN[:, :, None] * 5 + slot_T, 1e4)]
    if parts == 2:
        places = [(item_BN[:, :, None] + 0 * slot_T, 1e4), (0 * item_BN[:, :, None] + slot_T, 1e2)]
    want = []
    for part, (place_BNT, base) in zip(np.split(x_BNTHD, parts, -1), places, strict=True):
        angle = place_BNT[..., None, None] * base ** (-np.arange(pairs) / pairs)
        turned = (part[..., :pairs] + 1j * part[..., pairs:]) * np.exp(1j * angle)
        want += [turned.real, turned.imag]
    got = rotate(jnp.asarray(x_BNTHD), rotation(jnp.asarray(item_BN), jnp.asarray(slot_T), 8, mode=mode, slots=5))
    np.testing.assert_allclose(got, np.concatenate(want, -1), atol=5e-5)


def test_bfloat16_computes_near_float32_with_float32_parameters(catalog):
    batch = small_batch(catalog)
    params, loss32 = small_params(small_model(), catalog, batch)
    half = small_model(dtype="bfloat16")
    _, loss16 = small_params(half, catalog, batch)
    one, other = (jax.jit(f)(params, batch, jax.random.key(0))[0] for f in (loss32, loss16))
    assert other.dtype == jnp.float32
    assert float(other) == pytest.approx(float(one), rel=0.03)


@pytest.mark.parametrize("block", ["transformer", "hstu"])
def test_a_step_of_the_flat_model_is_placed_on_a_mesh_that_splits_rows_and_heads(block, catalog):
    """Traced, not run: an explicit mesh refuses what has no place."""
    model = small_model(anchors=False, block=block, heads=4, kv_heads=2)
    gradient = traced_gradient(model, catalog, np.zeros((ITEMS, LEVELS + 1), np.int32))
    out = gradient["blocks"]["out"] if block == "hstu" else gradient["blocks"]["attention"]["out"]
    assert tuple(out["w"].sharding.spec)[1] == "tensor"


@pytest.mark.parametrize("name", ["flat", "hstu"])
def test_operations_of_a_block_are_those_of_its_weights(name, catalog):
    model, batch = small_model(**VARIANTS[name]), small_batch(catalog)
    params, _ = small_params(model, catalog, batch)
    leaves = jax.tree_util.tree_leaves_with_path(params["blocks"])
    sizes = [leaf.size for path, leaf in leaves if jax.tree_util.keystr(path).endswith("['w']")]
    assert sum(sizes) == model.config.layers * block_weights(model.config)


def test_remat_changes_nothing(catalog):
    batch = small_batch(catalog)
    params, loss = small_params(small_model(), catalog, batch)
    _, again = small_params(small_model(remat="all"), catalog, batch)
    gradients = [jax.jit(jax.grad(f, has_aux=True))(params, batch, jax.random.key(0))[0] for f in (loss, again)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *gradients)


def test_items_never_trained_on_have_no_id_but_still_a_vector(catalog):
    model, batch = small_model(), small_batch(catalog)
    params, _ = small_params(model, catalog, batch)

    def vectors(params):
        return np.asarray(model.apply({"params": params}, catalog, method="item_vectors"))

    before = vectors(params)
    table = params["item_encoder"]["item_id"]["table"]
    params["item_encoder"]["item_id"]["table"] = table + 1.0
    moved = np.abs(vectors(params) - before).max(-1)
    assert (moved[: ITEMS - 3] > 0.5).all() and not moved[ITEMS - 3 :].any()
    assert np.abs(before[ITEMS - 3 :]).max() > 0


@pytest.mark.parametrize("name", ["actions", "flat_actions"])
def test_golden_first_step(name, catalog):
    """Losses and the length of the first AdamW step, recorded once: any change of the computation shows here."""
    model, batch = small_model(**VARIANTS[name]), small_batch(catalog)
    params, loss_fn = small_params(model, catalog, batch)
    (loss, parts), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, batch, jax.random.key(0))
    tx = optax.adamw(1e-2)
    updates, _ = tx.update(gradient, tx.init(params), params)
    after, _ = loss_fn(optax.apply_updates(params, updates), batch, jax.random.key(0))
    got = [float(loss), *(float(parts[f"loss/{h}"]) for h in ("ranking", "generation", "retrieval"))]
    got += [float(optax.tree.norm(gradient)), float(after)]
    np.testing.assert_allclose(got, GOLDEN[name], rtol=2e-4)


GOLDEN = {
    "actions": [22.81619, 0.8008004, 10.21401, 11.80138, 33.19045, 16.10072],
    "flat_actions": [20.16584, 0.6425913, 11.21761, 8.305645, 23.4433, 14.51962],
}


def test_losses_weigh_only_what_they_should(catalog):
    model, batch = small_model(actions=True, ranking=1.0), small_batch(catalog)
    params, loss_fn = small_params(model, catalog, batch)
    loss = jax.jit(loss_fn)
    _, parts = loss(params, batch, jax.random.key(0))
    flipped = {**batch, "positive": np.where(batch["rank_weight"] > 0, batch["positive"], 1 - batch["positive"])}
    assert loss(params, flipped, jax.random.key(0))[1]["loss/ranking"] == parts["loss/ranking"]
    silent = {**batch, "next_weight": np.zeros_like(batch["next_weight"])}
    _, none = loss(params, silent, jax.random.key(0))
    assert none["loss/generation"] == 0 and none["loss/retrieval"] == 0 and none["loss/ranking"] > 0


def test_hashed_id_rows_stay_in_the_table_and_spread():
    rows = np.asarray(id_row(jnp.arange(10_000), 10_000, 64))
    assert rows.min() == 0 and rows.max() == 63
    assert np.bincount(rows).max() < 2 * 10_000 / 64
    np.testing.assert_array_equal(id_row(jnp.arange(10), 10, 10), np.arange(10))


@pytest.mark.parametrize(
    "bad",
    [{"window": 3, "anchors": False}, {"attention": "dense"}, {"negatives": 1}, {"softmax_items": -1}]
    + [{"anchors": False, "attention": "tpu"}, {"block": "hstu"}]
    + [{"width": 30}, {"kv_heads": 3, "heads": 2}, {"generation": 0.0, "retrieval": 0.0}, {"width": 8, "heads": 4}],
)
def test_sizes_that_do_not_fit_are_refused(bad):
    with pytest.raises(UserError, match="model"):
        HMATConfig(**bad)


@pytest.mark.parametrize(
    ("field", "value"),
    [("layers", 0), ("heads", 0), ("item_id_rows", -1), ("retrieval", -1.0), ("ranking", float("nan"))]
    + [("dropout", 1.0), ("id_dropout", -0.1), ("code_dropout", 1.5)],
)
def test_values_without_a_meaning_are_refused_by_name(field, value):
    with pytest.raises(UserError, match=f"model.{field}"):
        HMATConfig(**{field: value})


def test_cosine_scores_do_not_depend_on_the_length_of_an_item():
    catalog = small_catalog()
    model, batch = small_model(cosine=True), small_batch(catalog)
    params, _ = small_params(model, catalog, batch)
    vectors = model.apply({"params": params}, catalog, method="item_vectors")
    np.testing.assert_allclose(jnp.linalg.norm(vectors, axis=-1), 1.0, rtol=1e-3)
    state = model.apply({"params": params}, batch, catalog)[0]
    users = model.apply({"params": params}, state, method="user_vectors")
    np.testing.assert_allclose(jnp.linalg.norm(users, axis=-1), jnp.exp(params["log_scale"]), rtol=1e-3)


@pytest.mark.parametrize("switches", [{}, {"anchors": False}, {"anchor_token": False}], ids=["anchor", "flat", "code"])
def test_a_tied_query_is_the_state_and_its_anchor_is_given_the_item_times_the_root_of_the_width(switches, catalog):
    batch = small_batch(catalog)
    tied, plain = (small_model(tied_query=way, **switches) for way in (True, False))
    params, _ = small_params(plain, catalog, batch)
    projection = params.pop("user_projection")
    state = tied.apply({"params": params}, batch, catalog)[0]
    users = tied.apply({"params": params}, state, method="user_vectors")
    np.testing.assert_array_equal(users, state[:, :, -1])
    assert projection["w"].shape == (16, 16) and "user_projection" not in small_params(tied, catalog, batch)[0]
    inputs = [np.asarray(model.apply({"params": params}, batch, catalog, method="embed")) for model in (tied, plain)]
    np.testing.assert_array_equal(inputs[0][:, :, :-1], inputs[1][:, :, :-1])
    vectors = np.asarray(tied.apply({"params": params}, catalog, method="item_vectors"))[batch["item"]]
    np.testing.assert_allclose(inputs[0][:, :, -1] - inputs[1][:, :, -1], (16**0.5 - 1) * vectors, atol=2e-5)
