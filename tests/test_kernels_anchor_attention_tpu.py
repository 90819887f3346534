"""TPU kernels of anchor attention: against a dense float32 mask, interpreted; and by the real compiler, elsewhere."""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import attention_fixtures
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_fixtures import check, make, value_and_gradients
from jax.experimental.pallas import tpu as pltpu

from hisam_jax.kernels.anchor_attention import anchor_attention, count, tpu, tpu_layout
from hisam_jax.kernels.anchor_attention.core import Rule, attend
from hisam_jax.kernels.anchor_attention.tiles import Sizes, Tiles

Case = functools.partial(attention_fixtures.Case, kv_heads=1, segments="one", tiles=Tiles(16, 16, 16, 16), batch=2)

CASES = {
    "3 tiles, 3 blocks": Case(48, 5),
    "sizes that divide nothing": Case(53, 5, heads=3, kv_heads=3, width=8),
    "2 tokens": Case(70, 2, heads=4, kv_heads=2, segments="packed"),
    "8 tokens, blocks wider than tiles": Case(50, 8, tiles=Tiles(4, 40, 12, 24), segments="packed"),
    "17 tokens": Case(21, 17, tiles=Tiles(8, 8, 8, 8), segments="packed"),
    "strict": Case(50, 5, rule=Rule(strict=True), segments="packed"),
    "window": Case(60, 4, rule=Rule(window=7), tiles=Tiles(8, 8, 16, 8)),
    "window, strict, packed, cached": Case(
        40, 3, cached=37, rule=Rule(True, 21), segments="packed", tiles=Tiles(16, 8, 8, 24)
    ),
    "cached anchors": Case(5, 5, cached=61, width=32, tiles=Tiles(8, 16, 8, 8)),
    "cached anchors, many items": Case(40, 5, cached=40, segments="packed"),
    "empty users": Case(40, 5, segments="empty"),
    "users of one item": Case(40, 5, segments="single"),
    "segments shuffled": Case(48, 5, segments="shuffled"),
    "mask-free blocks": Case(64, 4, heads=4, kv_heads=4, tiles=Tiles(8, 8, 8, 16), segments="halves"),
    "bf16": Case(53, 5, dtype="bfloat16", segments="packed", width=64, heads=4, kv_heads=2),
    "bf16, 8 tokens": Case(50, 8, dtype="bfloat16", tiles=Tiles(6, 16, 4, 32), width=48),
    "one item": Case(1, 5),
    "more rows a kv head than a tile takes": Case(17, 17, heads=8, segments="packed", width=8, tiles=Tiles(8, 8, 8, 8)),
}


def _mask(x, rule):
    """bool `[B, N, T, M + N * T]`, pair by pair: anchors first, then tokens."""
    segment, anchor_segment, first = np.asarray(x.segment_BN), np.asarray(x.anchor_segment_BM), int(x.first)
    (batch, items), tokens, anchors = segment.shape, x.q_BNTHD.shape[2], anchor_segment.shape[1]
    mask = np.zeros((batch, items, tokens, anchors + items * tokens), bool)
    for b in range(batch):
        for n in range(items):
            if segment[b, n] < 1:
                continue
            for m in range(max(first + n - (rule.window or first + n), 0), min(first + n, anchors)):
                mask[b, n, :, m] = segment[b, n] == anchor_segment[b, m]
            if rule.strict:
                mask[b, n, -1, :anchors] = False
            for t in range(tokens):
                own = anchors + n * tokens
                mask[b, n, t, own : own + t + 1] = True
    return mask


def _run(x, rule, tiles):
    with tpu.interpreted():
        return value_and_gradients(lambda y: attend(y, tpu.IMPLEMENTATION, rule, tiles), x)


SLOW = {
    "3 tiles, 3 blocks",
    "strict",
    "window",
    "empty users",
    "8 tokens, blocks wider than tiles",
    "17 tokens",
    "cached anchors",
    "cached anchors, many items",
    "users of one item",
    "segments shuffled",
    "bf16, 8 tokens",
    "one item",
    "more rows a kv head than a tile takes",
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES])
def test_values_and_gradients_are_those_of_the_dense_mask(name):
    check(tpu.IMPLEMENTATION, CASES[name], tpu.interpreted)


@pytest.mark.parametrize(
    "case",
    [
        Case(12, 2, width=8, cached=8, segments="packed", tiles=Tiles(4, 8, 4, 8)),
        pytest.param(Case(40, 5, cached=3, rule=Rule(True, 9), tiles=Tiles(8, 16, 16, 8)), marks=pytest.mark.slow),
    ],
    ids=["packed", "window"],
)
def test_no_race_and_no_read_of_memory_that_was_not_written(case):
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter

    params = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", num_cores_or_threads=2, random_seed=0)
    try:
        check(tpu.IMPLEMENTATION, dataclasses.replace(case, batch=1), functools.partial(tpu.interpreted, params))
        assert interpreter.races is not None and not interpreter.races.races_found
    finally:
        pltpu.reset_tpu_interpret_mode_state()


def test_blocks_past_the_diagonal_are_not_computed():
    """They hold NaN, which no mask takes out of a product."""
    case = Case(24, 4, cached=24, tiles=Tiles(8, 8, 8, 8))
    x = make(case)._replace(first=jnp.int32(0))
    late = jnp.arange(48)[:, None, None] >= 24
    poisoned = x._replace(
        anchor_k_BMGD=jnp.where(late, jnp.nan, x.anchor_k_BMGD), anchor_v_BMGD=jnp.where(late, jnp.nan, x.anchor_v_BMGD)
    )
    clean, poisoned = (_run(y, case.rule, case.tiles) for y in (x, poisoned))
    for name, true in clean.items():
        np.testing.assert_array_equal(poisoned[name], true, err_msg=name)


@pytest.mark.slow
@hypothesis.settings(max_examples=5, phases=[hypothesis.Phase.generate])  # each compiles
@hypothesis.given(
    items=st.integers(1, 40), tokens=st.integers(2, 17), kv_heads=st.sampled_from([1, 2, 4]), cached=st.integers(0, 30),
    strict=st.booleans(), window=st.none() | st.integers(0, 50), segments=st.sampled_from(["packed", "sparse"]),
    dtype=st.sampled_from(["float32", "bfloat16"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_random_problems_equal_the_dense_mask(strict, window, **shape):
    case = Case(heads=4, rule=Rule(strict, window), **shape)
    check(tpu.IMPLEMENTATION, case, tpu.interpreted)


def test_the_public_function_takes_a_kernel_that_is_interpreted():
    x = make(Case(5, 3, kv_heads=2))
    with tpu.interpreted():
        out = anchor_attention(*x[:3], segment_ids=x.segment_BN, implementation="tpu")
    np.testing.assert_allclose(out, anchor_attention(*x[:3], segment_ids=x.segment_BN), atol=1e-5)


def test_nothing_is_interpreted_unless_asked():
    case = CASES["one item"]
    with pytest.raises(ValueError, match="interpret"):
        jax.jit(lambda x: attend(x, tpu.IMPLEMENTATION, case.rule, case.tiles)).lower(make(case))


@st.composite
def _cases(draw):
    """Of few shapes, for each is compiled."""
    shape = draw(st.sampled_from([(1, 5, 0, 8, 8), (33, 3, 0, 8, 16), (40, 8, 21, 5, 8), (17, 2, 40, 8, 24)]))
    return Case(
        *shape[:2],
        cached=shape[2],
        segments=draw(st.sampled_from(["one", "packed", "empty", "single", "halves", "shuffled"])),
        rule=Rule(draw(st.booleans()), draw(st.sampled_from([None, 1, 3, 17]))),
        tiles=Tiles(*shape[3:], 1, 1),
        width=1,
    )


@hypothesis.settings(max_examples=15)
@hypothesis.given(_cases(), st.integers(0, 9), st.booleans())
def test_spans_hold_every_pair_and_mask_free_blocks_hold_nothing_else(case, seed, shared):
    x = make(dataclasses.replace(case, seed=seed))
    with pytest.MonkeyPatch.context() as patch:
        if shared:
            patch.setattr(tpu_layout, "SCALARS", 0)
        plan = tpu_layout.make_plan(x, case.rule, case.tiles.items, case.tiles.anchors)
        by_tile, by_block = (np.asarray(tpu_layout.spans(x, plan, by_anchors=by)) for by in (False, True))
    rows = 1 if shared else 2
    pairs = np.zeros((2, plan.tiles * plan.tile_items, case.tokens, plan.blocks * plan.tile_anchors), bool)
    pairs[:, : case.items, :, : case.anchors] = _mask(x, case.rule)[..., : case.anchors]
    blocks = pairs.reshape(2, plan.tiles, -1, plan.blocks, plan.tile_anchors)
    some, every = blocks.any((2, 4)), blocks.all((2, 4))
    if shared:
        some, every = some.any(0, keepdims=True), every.all(0, keepdims=True)
    for flat, has, full in ((by_tile, some, every), (by_block, some.swapaxes(1, 2), every.swapaxes(1, 2))):
        start, count, whole_start, whole_end = flat.reshape(4, rows, has.shape[1], 1)
        other = np.arange(has.shape[2])
        inside, whole = (other >= start) & (other < start + count), (other >= whole_start) & (other < whole_end)
        assert not (has & ~inside).any() and not (inside & whole & ~full).any()
        assert count.max() <= (plan.block_steps if flat is by_tile else plan.tile_steps)
        if case.segments == "one" and not case.rule.strict:
            np.testing.assert_array_equal(inside & whole, full)
            real = np.arange(plan.tiles) * plan.tile_items + plan.tile_items <= case.items
            held = has == inside
            assert (held[:, real] if flat is by_tile else held[:, :, real]).all()


@hypothesis.given(
    st.integers(1, 5000), st.integers(1, 17), st.sampled_from([(1, 1), (4, 4), (4, 1), (6, 2)]), st.integers(0, 5000),
    st.sampled_from([8, 16, 48, 64, 128]), st.sampled_from([2, 4]),
)  # fmt: skip
def test_default_tiles_are_aligned_bounded_and_waste_little(items, tokens, heads, cached, width, size):
    sizes = Sizes(items, tokens, *heads, width, cached + items, size)
    tiles, unit, pack = tpu.tiles(sizes), tpu_layout.item_unit(sizes), 32 // size
    rows = tiles.items * tokens * (heads[0] // heads[1])
    assert tiles.items % unit == 0 and tiles.items * tokens % pack == 0 and tiles.anchors % pack == 0
    assert rows <= tpu.ROWS or tiles.items == unit
    assert rows * tiles.anchors <= tpu.SCORES or tiles.anchors <= tpu_layout.LANES or rows > tpu.ROWS
    parts = -(-items // tiles.items)
    assert parts * tiles.items - items < parts * unit
    assert tiles.anchors <= tpu.MOST_ANCHORS


@hypothesis.given(_cases())
def test_pairs_are_those_of_the_mask(case):
    x = make(dataclasses.replace(case, segments="one", batch=1))
    assert count.allowed_pairs(case.items, case.tokens, case.anchors, case.rule) == _mask(x, case.rule).sum()
    x = x._replace(first=jnp.int32(3))
    assert count.allowed_pairs(case.items, case.tokens, case.anchors, case.rule, 3) == _mask(x, case.rule).sum()


def test_work_counts_products_and_arrays():
    """40 items of 8 tokens, 4 heads of 64 over 2, 10 cached anchors, by hand."""
    sizes, rule = Sizes(40, 8, 4, 2, 64, 50, 2), Rule()
    pairs = 3 * 4 * (40 * 36 + 8 * sum(range(10, 50)))
    queries, keys, rows = 3 * 40 * 8 * 4 * 64, 3 * (40 * 8 + 10) * 2 * 64 * 2, 3 * 40 * 8 * 4
    assert count.forward_work(3, sizes, rule) == count.Work(4 * 64 * pairs, pairs, 2 * (2 * queries + keys) + 4 * rows)
    backward = count.Work(10 * 64 * pairs, pairs, 2 * (3 * queries + 2 * keys) + 8 * rows)
    assert count.backward_work(3, sizes, rule) == backward


def _compile(script, cases=()):
    """What a script of the benchmarks says, by the real compiler in a process of its own."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("no libtpu: pip install libtpu, at the version that jax[tpu] asks for, to compile for TPU")
    run = subprocess.run(
        [sys.executable, "-m", f"benchmarks.anchor_attention.{script}"], input=json.dumps(cases), capture_output=True,
        text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


def _target(target, items, tokens, width, dtype, *, heads=(4, 4), anchors=0, batch=2, rule=(False, None), tiles=None):
    return dict(
        target=target, batch=batch, items=items, tokens=tokens, heads=heads[0], kv_heads=heads[1], width=width,
        anchors=max(anchors, items), dtype=dtype, rule=rule, tiles=tiles,
    )  # fmt: skip


def _fits(cases):
    for case, memory in zip(cases, _compile("mosaic_tpu", cases), strict=True):
        assert set(memory) == {"forward", "backward_queries", "backward_anchors"}
        assert max(memory.values()) < 12 << 20, (case, memory)  # of the 16 MiB that a kernel may take unasked


def test_mosaic_compiles_it():
    _fits(
        [
            _target("v5e", 200, 5, 64, "bfloat16"),
            _target("v5p", 24, 8, 128, "float32", heads=(4, 2), tiles=(8, 8, 8, 8), rule=(True, 9)),
            _target("v6e", 48, 8, 128, "bfloat16", tiles=(16, 16, 16, 16)),
        ]
    )


@pytest.mark.slow
def test_mosaic_compiles_all_sizes():
    """Each kind of problem once, and the one that matters most for every target."""
    _fits(
        [
            *[_target(target, 1024, 8, 128, "bfloat16") for target in ("v5e", "v5p", "v6e")],
            _target("v5e", 1024, 8, 128, "float32", rule=(True, None)),
            _target("v6e", 4096, 5, 64, "bfloat16", rule=(False, 256)),
            _target("v5p", 3, 8, 128, "bfloat16", anchors=4096),
        ]
    )


@pytest.mark.slow
def test_mosaic_compiles_odd_sizes():
    odd = [(2, 8, "bfloat16"), (3, 16, "float32"), (17, 32, "bfloat16"), (7, 48, "float32")]
    cases = [_target("v5e", 50, *shape, heads=(6, 2), anchors=77) for shape in odd]
    _fits([*cases, _target("v5e", 64, 17, 128, "bfloat16", heads=(16, 1))])


def test_more_tokens_than_a_tile_holds_are_left_to_another_implementation():
    for tokens, fits in ((64, True), (1100, False)):
        sizes = Sizes(64, tokens, 2, 2, 64, 64, 4)
        with contextlib.nullcontext() if fits else pytest.raises(NotImplementedError, match="1100 tokens"):
            tpu.tiles(sizes)
