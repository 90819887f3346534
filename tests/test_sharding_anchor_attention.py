"""Anchor attention split over a mesh is the unsplit one, in values and gradients, alone and inside HMAT.

The mesh needs several devices, so the comparisons run in a process of their own with eight host devices.
"""

from __future__ import annotations

import json

import pytest

from tests.device_fixtures import run_on_devices

pytestmark = pytest.mark.slow

SPLITS = {
    "batch": (("data", "fsdp"), "", ""),
    "heads": ("", "", "tensor"),
    "items": ("", "data", ""),
    "all": (("data", "fsdp"), "context", "tensor"),
}


def _compare() -> dict:
    """Largest differences between split and unsplit; run with eight devices."""
    import functools

    import jax
    import jax.numpy as jnp
    from attention_fixtures import QUICK, Case, make

    from hisam_jax.kernels.anchor_attention import Tiles, anchor_attention
    from hisam_jax.kernels.anchor_attention.sharded import Axes, sharded_anchor_attention
    from hisam_jax.sharding import AXES, MeshConfig, make_mesh
    from tests.model_fixtures import small_batch, small_catalog, small_model, small_params

    mesh = make_mesh(MeshConfig(data=2, tensor=2, context=2))
    x = make(Case(items=20, tokens=5, heads=4, kv_heads=2, batch=2))
    found, quick = {}, functools.partial(jax.jit, compiler_options=QUICK)

    def gap(one, other):
        return max(
            float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
        )

    def pulled(attend):
        def loss(floats):
            out = attend(*floats)
            return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum(), out

        return quick(jax.value_and_grad(loss, has_aux=True))(x[:3])

    for rule, names in (({}, ["all"]), ({"strict": True, "window": 6}, SPLITS)):
        options = {"segment_ids": x.segment_BN, "tiles": Tiles(4, 8, 4, 8), "implementation": "xla", **rule}
        whole = pulled(functools.partial(anchor_attention, **options))
        for name in names:
            with jax.set_mesh(mesh):
                split = pulled(functools.partial(sharded_anchor_attention, axes=Axes(*SPLITS[name]), **options))
            found[f"{name} {rule}"] = gap(split, whole)
    whole_attention = whole

    catalog = small_catalog()
    batch = small_batch(catalog, rows=2, items=8)
    config = {"heads": 4, "kv_heads": 2, "layers": 3, "remat": "all"}
    model = small_model(**config)
    params, loss_fn = small_params(model, catalog, batch)
    key = jax.random.key(0)
    whole = quick(jax.value_and_grad(lambda p: loss_fn(p, batch, key)[0]))(params)
    with jax.set_mesh(mesh):
        split = quick(jax.value_and_grad(lambda p: loss_fn(p, batch, key)[0]))(params)
    found["hmat"] = gap(split, whole)

    automatic = jax.make_mesh((2, 1, 2, 2), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)
    with jax.set_mesh(automatic):
        split = pulled(functools.partial(sharded_anchor_attention, axes=Axes(*SPLITS["all"]), **options))
    found["automatic axes"] = gap(split, whole_attention)

    refused = {}
    for name, axes in {"unknown": ("rows", "", ""), "uneven": ("", "", "data")}.items():
        try:
            with jax.set_mesh(mesh):
                sharded_anchor_attention(x.q_BNTHD[:, :, :, :1], *(p[:, :, :, :1] for p in x[1:3]), axes=Axes(*axes))
        except Exception as error:
            refused[name] = f"{type(error).__name__}: {error}"
    with jax.set_mesh(mesh):
        for name, bad in {"window": {"window": -1}, "ids": {"segment_ids": x.segment_BN[:, :4]}}.items():
            try:
                sharded_anchor_attention(*x[:3], axes=Axes("data"), **bad)
            except Exception as error:
                refused[name] = f"{type(error).__name__}: {error}"
        try:
            sharded_anchor_attention(*x[:3], axes=Axes("data", "data"))
        except Exception as error:
            refused["twice"] = f"{type(error).__name__}: {error}"
    return {"differences": found, "refused": refused}


@pytest.fixture(scope="module")
def compared():
    return run_on_devices("test_sharding_anchor_attention.py")


@pytest.mark.slow
def test_split_is_unsplit_in_values_and_gradients(compared):
    differences = compared["differences"]
    assert len(differences) == len(SPLITS) + 3
    assert {name: value for name, value in differences.items() if not value < 1e-4} == {}


def test_axes_that_do_not_fit_are_refused_by_name(compared):
    assert (
        "UserError: field 'batch': mesh axis 'rows'; expected data or fsdp or tensor or context"
        in compared["refused"]["unknown"]
    )
    assert "UserError: field 'window': window -1" in compared["refused"]["window"]
    assert "UserError: field 'segment_ids': segment_ids of shape (2, 4)" in compared["refused"]["ids"]
    assert "each mesh axis once" in compared["refused"]["twice"]
    assert "1 kv_heads over 2 devices of axis 'data'" in compared["refused"]["uneven"]


if __name__ == "__main__":
    print(json.dumps(_compare()))
