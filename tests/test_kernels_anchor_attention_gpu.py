"""Anchor attention's Mosaic GPU kernels: values by jax 0.12's interpreter, and a real compile for H100 without one."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import attention_fixtures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_fixtures import check, make
from hypothesis import given, settings
from hypothesis import strategies as st

from hisam_jax.compilation import target
from hisam_jax.kernels.anchor_attention import gpu, gpu_plan, reference
from hisam_jax.kernels.anchor_attention.core import Inputs, Rule, attend
from hisam_jax.kernels.anchor_attention.tiles import Tiles

SMALL = Tiles(26, 64, 26, 64)


def Case(tokens, items, anchors, first=0, *, heads=1, kv_heads=1, batch=1, width=64, dtype="bfloat16", **fields):  # noqa: N802
    """`items` query items stand at position `first` of `anchors`."""
    sizes = {"heads": heads, "kv_heads": kv_heads, "batch": batch, "width": width, "dtype": dtype}
    return attention_fixtures.Case(items, tokens, cached=first, after=anchors - first - items, **sizes, **fields)


def allowed(x: Inputs, rule: Rule):
    """`(local_BNTT, far_BNTM)`, from the rule in words, element by element."""
    items, tokens = x.q_BNTHD.shape[1:3]
    item_N, anchor_M = x.first + jnp.arange(items), jnp.arange(x.anchor_k_BMGD.shape[1])
    real_BN = x.segment_BN > 0
    distance_NM = item_N[:, None] - anchor_M[None]
    near_NM = (distance_NM > 0) & (distance_NM <= (10**6 if rule.window is None else rule.window))
    together_BNM = (x.segment_BN[:, :, None] == x.anchor_segment_BM[:, None]) & real_BN[..., None] & near_NM
    reads_T = ~((jnp.arange(tokens) == tokens - 1) & rule.strict)
    local_TT = jnp.arange(tokens)[:, None] >= jnp.arange(tokens)
    return real_BN[:, :, None, None] & local_TT, together_BNM[:, :, None] & reads_T[:, None]


@pytest.fixture
def interpreted():
    try:
        with gpu.interpreted():
            yield
    except NotImplementedError as error:
        pytest.skip(str(error))


def check_values(case, tiles: Tiles):
    """The forward pass alone."""
    x = make(case)
    out, lse = jax.block_until_ready(jax.jit(lambda x: gpu.forward(x, case.rule, tiles))(x))
    exact = Inputs(*(part.astype(jnp.float32) for part in x[:5]), *x[5:])
    truth, truth_lse = reference.attend(exact, case.rule)
    usual = reference.attend(x, case.rule, rounded=True)[0]
    error, allowed = (np.asarray(part, np.float32) - truth for part in (out, usual))
    assert np.isfinite(error).all() and (error**2).mean() <= 1.1**2 * (allowed**2).mean() + 1e-12
    assert np.abs(error).max() <= 2 * np.abs(allowed).max() + 1e-6  # one element wrong does not hide in a mean
    np.testing.assert_allclose(lse, truth_lse, atol=2e-5)  # -inf where nothing is read, in both


def check_gradients(case):
    """All of the shared body."""
    check(gpu.IMPLEMENTATION, dataclasses.replace(case, tiles=SMALL))


# Tiles of 128 rows: at least three; blocks of 64 anchors: at least three, of 128 in the anchors' gradients.
QUICK = {
    "cached, window, strict": Case(5, 54, 300, 210, rule=Rule(strict=True, window=150)),
    "grouped heads, packed": Case(8, 40, 260, 220, heads=2, segments="packed"),
}
THOROUGH = {
    "two tokens, many items": Case(2, 300, 300, segments="one"),
    "wide": Case(8, 40, 300, 260, heads=2, kv_heads=1, width=128, segments="one"),
    "seventeen tokens, grouped": Case(17, 24, 330, 306, heads=4, kv_heads=2, rule=Rule(strict=True)),
    "users of one item, and none": Case(5, 80, 300, 130, segments="sparse"),
    "narrow window": Case(2, 200, 300, 100, rule=Rule(window=20), segments="one"),
    "batch": Case(5, 60, 280, 220, batch=2, heads=2, kv_heads=1),
}


@pytest.mark.parametrize("case", QUICK.values(), ids=QUICK)
def test_values_equal_the_dense_ones(case, interpreted):
    check_values(case, SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("case", THOROUGH.values(), ids=THOROUGH)
def test_values_equal_the_dense_ones_thoroughly(case, interpreted):
    check_values(case, SMALL)
    check_values(case, gpu.tiles(case.sizes))


@pytest.mark.slow
@pytest.mark.parametrize("case", [*QUICK.values(), *THOROUGH.values()], ids=[*QUICK, *THOROUGH])
def test_gradients_equal_the_dense_ones(case, interpreted):
    check_gradients(case)


def test_gradients_of_several_users_equal_the_dense_ones(interpreted):
    check_gradients(Case(5, 30, 100, 70))


@settings(max_examples=10)  # each compiles its own shapes
@given(
    tokens=st.integers(2, 17),
    items=st.integers(1, 90),
    before=st.integers(0, 150),
    after=st.integers(0, 20),
    strict=st.booleans(),
    window=st.none() | st.integers(1, 100),
    packing=st.sampled_from(["one", "packed", "sparse"]),
    tile=st.sampled_from([64, 128]),
    block=st.sampled_from([64, 128]),
)
def test_the_plan_visits_all_that_is_read_and_leaves_masks_out_only_where_all_is(
    tokens, items, before, after, strict, window, packing, tile, block
):
    rule = Rule(strict=strict, window=window)
    case = Case(tokens, items, before + items + after, before, batch=2, rule=rule, segments=packing)
    x = make(case)
    rows = -(-items * tokens // tile) * tile
    marks = gpu_plan.row_marks(x, rule, rows)
    segment = gpu._padded(x.anchor_segment_BM, block)
    some, every = gpu_plan.visits(marks, segment, rule, tile, block)
    reads = np.zeros((2, rows, segment.shape[1]), bool)
    reads[:, : items * tokens, : case.anchors] = np.asarray(allowed(x, rule)[1]).reshape(2, -1, case.anchors)
    tiles = reads.reshape(2, rows // tile, tile, -1, block)
    assert not (tiles.any((2, 4)) & ~np.asarray(some)).any()
    reading = np.asarray(marks[:, 0] > 0).reshape(2, -1, tile)
    full = (tiles.all(axis=4) | ~reading[..., None]).all(axis=2)
    assert not (np.asarray(every) & ~full).any()
    for order, needed, unmasked in (
        (gpu_plan.order_of_visits(some, every), tiles.any((2, 4)), full),
        (gpu_plan.order_of_visits(*(x.swapaxes(1, 2) for x in (some, every))), *_turned(tiles.any((2, 4)), full)),
    ):
        _check_order(np.asarray(order), needed, unmasked)


def _turned(*arrays):
    return [array.swapaxes(1, 2) for array in arrays]


def _check_order(order, needed, unmasked):
    for at in np.ndindex(order.shape[:2]):
        low, turn, masked, total = order[at]
        visited = [low + (turn + step) % total for step in range(total)]
        assert len(set(visited)) == total and set(np.flatnonzero(needed[at])) <= set(visited)
        assert 0 <= masked <= total and unmasked[at][visited[masked:]].all()


def test_most_of_a_long_history_needs_no_mask():
    """1,024 items of 8: a tile of 16 items ends in one block of 128 anchors; only that one is masked."""
    case = Case(8, 1024, 1024, segments="one")
    x = make(case)
    marks = gpu_plan.row_marks(x, case.rule, 8192)
    order = np.asarray(gpu_plan.order_of_visits(*gpu_plan.visits(marks, x.anchor_segment_BM, case.rule, 128, 128)))
    assert (order[..., 2] == 1).all()
    assert (order[0, :, 3] == np.arange(64) // 8 + 1).all()


def test_strict_rows_do_not_spoil_the_tiles_that_need_no_mask():
    case = Case(8, 1024, 1024, segments="one", rule=Rule(strict=True))
    x = make(case)
    marks = gpu_plan.row_marks(x, case.rule, 8192)
    order = np.asarray(gpu_plan.order_of_visits(*gpu_plan.visits(marks, x.anchor_segment_BM, case.rule, 128, 128)))
    assert order[..., 2].max() == 1


@pytest.mark.parametrize(
    "case, word",
    [
        (Case(5, 8, 8, dtype="float32"), "bfloat16"),
        (Case(5, 8, 8, width=32), "width"),
        (Case(65, 2, 2), "tokens"),
    ],
    ids=["float32", "width", "tokens"],
)
def test_what_the_kernel_does_not_take_is_refused_with_the_reason(case, word):
    x = make(case)
    with pytest.raises(NotImplementedError, match=word):
        gpu.forward(x, case.rule, gpu.tiles(case.sizes))


@pytest.mark.parametrize("major", [8.6, 10.0, 0.0])
def test_other_gpus_than_hopper_are_refused(major, monkeypatch):
    monkeypatch.setattr(gpu.devices, "compute_capability", lambda: major)
    case = Case(5, 8, 8)
    with pytest.raises(NotImplementedError, match=f"Hopper, compute capability 9, not {major}"):
        gpu.forward(make(case), case.rule, gpu.tiles(case.sizes))


COMPILED = [  # all of the rule in some of them; heads 4, key/value heads 2
    Case(5, 1024, 1024, heads=4, kv_heads=2, width=128),
    Case(8, 1024, 1024, heads=4, kv_heads=2, width=128),
    Case(5, 1024, 1024, heads=4, kv_heads=4, width=64, rule=Rule(strict=True, window=100)),
    Case(8, 50, 50, heads=4, kv_heads=2, width=64, batch=8),
    Case(8, 4096, 4096, heads=4, kv_heads=4, width=128, rule=Rule(window=512)),
    Case(5, 8, 4096, 4088, heads=4, kv_heads=2, width=128, batch=4),
    Case(17, 300, 300, heads=2, kv_heads=1, width=128),
]


def compile_for_h100(case) -> None:
    """The gradient of one attention, through XLA, Mosaic GPU and ptxas."""
    mesh = jax.sharding.Mesh(np.array(target("h100:1").devices), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.P())
    tiles = gpu.tiles(case.sizes)
    x = jax.eval_shape(lambda: make(case))
    x = jax.tree.map(lambda part: jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=sharding), x)

    def step(x):
        def loss(*arrays):
            out, lse = attend(Inputs(*arrays, *x[5:]), gpu.IMPLEMENTATION, case.rule, tiles)
            return out.astype(jnp.float32).sum() + lse.sum()

        return jax.grad(loss, range(5))(*x[:5])

    jax.jit(step).trace(x).lower().compile()


@pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="jax-cuda13-plugin is not installed")
@pytest.mark.skipif(shutil.which("ptxas") is None, reason="there is no ptxas")
@pytest.mark.parametrize(
    "number", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, len(COMPILED)))], ids=str
)
def test_the_kernels_compile_for_h100_without_spilling(number):
    """In a process of its own: the CUDA plugin stays out of this one, and Mosaic reads its environment at the start."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "MOSAIC_GPU_DUMP_PTXAS": "1"}
    script = f"import {Path(__file__).stem} as t; t.compile_for_h100(t.COMPILED[{number}])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = done.stdout + done.stderr
    for part in ("forward", "queries", "own_tokens", "anchors"):
        assert f"'anchor_attention_{part}_mosaic_gpu_kernel' for 'sm_90a'" in report, report[-3000:]
    assert report.count("0 bytes spill stores, 0 bytes spill loads") == 4, report
