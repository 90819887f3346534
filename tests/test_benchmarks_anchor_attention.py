"""The kernels' benchmark: its rivals compute what they should, and its tables say what was measured."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_fixtures import Case, make

from benchmarks.anchor_attention import compiled, kernels, rivals, rope, shipped_steps, timing, train_step
from hisam_jax.kernels.anchor_attention import anchor_attention
from hisam_jax.kernels.flat_attention import flat_attention


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("name", ["dense", "merged"])
def test_rivals_compute_anchor_attention(name, heads):
    x = make(Case(items=9, tokens=3, heads=heads[0], kv_heads=heads[1], segments="one"))[:3]
    rival = rivals.rivals("cpu")[name]

    def pulled(attention):
        out, pull = jax.vjp(attention, *x)
        return out, *pull(jnp.cos(jnp.arange(out.size)).reshape(out.shape))

    for one, other in zip(pulled(rival), pulled(anchor_attention), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_the_flat_rival_is_full_causal_attention():
    x = make(Case(items=9, tokens=3, segments="one"))[:3]
    wanted = flat_attention(*x, jnp.ones((2, 9), jnp.int32))
    np.testing.assert_allclose(rivals.rivals("cpu")["flat"](*x), wanted, atol=2e-6)


def test_functions_take_turns_and_long_ones_run_once_more(monkeypatch):
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in ("short", "long")}
    monkeypatch.setattr(timing, "once", lambda function: function() or {"short": 0.1, "long": 9.0}[calls[-1]])
    assert timing.interleaved(functions, (), 3) == {"short": 0.1, "long": 9.0}
    assert calls == ["short"] * 2 + ["long"] * 2 + ["short"] * 2


def test_a_table_of_each_device_stays_and_an_absent_gpu_is_said():
    passes = {
        "forward": {"seconds": {"xla": 0.002, "flat": 0.03}, "memory": {"xla": 2**20}, "flops": 4e6, "bytes": 1e6}
    }
    made = {
        "ceilings": {"flops": 4e9, "bytes": 1e9},
        "settings": {"batch": 1, "heads": 2, "width": 8, "dtype": "float32", "limit": 2},
        "rows": [{"items": 1024, "tokens": 5, "passes": passes}],
        "flex": "not measured, torch is not installed",
    }
    page = kernels.markdown({"devices": {"some CPU": made}})
    assert "| 1,024 x 5 | forward | 2.00 (xla) | 30.0 (15.0) |  |  |  | 2.0 (50%) | 0.5 (50%) | 1.0 |  |" in page
    assert "### NVIDIA H100\n\nNot measured" in page
    assert "Not measured: none" not in kernels.markdown({"devices": {"some CPU": made, "NVIDIA H100 80GB x 1": made}})


def test_the_ratio_of_train_steps_is_to_the_faster_flat_form():
    speeds = {"HMAT": 300.0, "HMAT, last code as anchor": 375.0, "flat, dense": 100.0, "flat, chunks": 150.0}
    page = train_step.markdown({"rows": [{"items": 512, "codes": 6, "rows": 2, "items_per_second": speeds}]})
    assert "| 512 | 6 | 2 | 300 | 375 | 100 | 150 | 2.00 | 2.50 |" in page


def test_steps_of_shipped_configs_are_timed_and_held_against_flat(monkeypatch):
    monkeypatch.setattr(shipped_steps, "CATALOGS", {"ml_1m": 40})
    (row,) = shipped_steps.run(quick=True)["rows"]
    assert set(row["milliseconds"]) == set(shipped_steps.VARIANTS) and min(row["milliseconds"].values()) > 0
    row |= {"milliseconds": {"HMAT": 30.0, "HMAT, last token as anchor": 25.0, "flat": 40.0}}
    assert "| `configs/ml_1m.py` | 8 | 1 | 30 | 25 | 40 | 0.75 | 0.62 |" in shipped_steps.markdown({"rows": [row]})


def test_pairs_of_1024_items_of_8_allow_a_gain_of_8():
    (row,) = [
        row
        for row in map(lambda cell: compiled._count(*cell), compiled.CELLS)
        if (row["items"], row["tokens"]) == (1024, 8)
    ]
    assert 7.9 < row["flat_pairs"] / row["pairs"] < 8
    assert "| 1,024 x 8 | 7.9 |" in compiled.markdown(
        {"counts": [row], "cases": [], "vector_memory": [], "train_step": None}
    )


def test_rotation_is_compared_within_a_row():
    times = {"plain": 0.010, "rotated": 0.011}
    page = rope.markdown({"rows": [{"items": 50, "tokens": 8, "forward": times, "both": times, "bytes_share": 0.25}]})
    assert "| 50 x 8 | 10.00 | 11.00 | 10.00 | 11.00 | 10% | 10% | 25% |" in page
