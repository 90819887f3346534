"""Figures of a run: lengths, waiting, utilisation; traces; a state kept in fewer digits."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hisam_jax.chips import CHIPS, chip_of
from hisam_jax.errors import UserError
from hisam_jax.training import watching
from hisam_jax.training.config import TrainingConfig
from hisam_jax.training.optimizer import OptimizerConfig, make_optimizer
from hisam_jax.training.profile import Profile
from hisam_jax.training.watching import Cost, Watch, lengths_of


@given(st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=1, max_size=4), st.booleans())
def test_lengths_are_those_of_the_packed_histories(rows, full):
    """Rows packed back to back, padded to one width; a row may be all padding, or none of it."""
    width = max(1, max(sum(row) for row in rows) + (not full))
    segment_BN = np.zeros((len(rows), width), np.int32)
    for row, lengths in zip(segment_BN, rows, strict=True):
        row[: sum(lengths)] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    assert lengths_of(segment_BN).tolist() == [length for row in rows for length in row]


def test_a_line_says_paces_waiting_and_utilisation(monkeypatch):
    clock = iter([10.0, 12.0, 14.0, 20.0])
    monkeypatch.setattr(watching, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    watch = Watch(Cost(5, lambda lengths: 1000 * int(np.sum(lengths))))
    watch._peak = 8000.0
    batch = {"segment": np.array([[1, 1, 2, 0]])}
    for _ in range(4):
        watch.waited(0.5)
        watch.dispatched(batch)
        watch.finished()
    line = watch.take()
    assert line["step_seconds_p50"] == 2 and line["step_seconds_p95"] == pytest.approx(5.6)
    assert line["input_wait"] == pytest.approx(1.5 / 10)
    assert line["tokens_per_second"] == pytest.approx(3 * 3 * 5 / 10)
    assert line["mfu"] == pytest.approx(3 * 3000 / 10 / 8000 / jax.local_device_count())
    assert line["memory_bytes"] > 1e6 and watch.take() == {}


@pytest.mark.parametrize("share", [1, 2])
def test_rows_that_processes_hold_alike_count_once(monkeypatch, share):
    """Two processes of two devices: they split rows over `tensor` or `context`, or have rows of their own."""
    for name, count in {"process_count": 2, "device_count": 4, "local_device_count": 2}.items():
        monkeypatch.setattr(jax, name, lambda count=count: count)
    clock = iter([0.0, 2.0])
    monkeypatch.setattr(watching, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    watch = Watch(Cost(5, lambda lengths: 1000 * int(np.sum(lengths))), share)
    watch._peak = 8000.0
    watch.finished()
    watch.dispatched({"segment": np.array([[1, 1, 2, 0]])})
    watch.finished()
    line = watch.take()
    assert line["tokens_per_second"] == pytest.approx(share * 3 * 5 / 2)
    assert line["mfu"] == pytest.approx(share * 3000 / 2 / 8000 / 4)


def test_time_that_is_no_step_s_is_not_counted(monkeypatch):
    clock = iter([0.0, 1.0, 100.0, 101.0])
    monkeypatch.setattr(watching, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    watch = Watch(None)
    watch.finished()
    watch.finished()
    watch.paused()
    watch.finished()
    watch.finished()
    line = watch.take()
    assert line["step_seconds_p95"] == 1 and "mfu" not in line and "tokens_per_second" not in line


def test_chips_are_known_by_what_jax_calls_them():
    names = {
        "NVIDIA H100 80GB HBM3": "h100",
        "TPU v5 lite": "v5e",
        "TPU v5": "v5p",
        "TPU v6 lite": "v6e",
        "TPU v4": "v4",
    }
    for kind, name in names.items():
        assert chip_of(kind) is CHIPS[name]
    assert chip_of("cpu") is None and chip_of("NVIDIA A100-SXM4-80GB") is None


def test_given_steps_are_traced(tmp_path):
    profile = Profile((1, 2), tmp_path / "profile")
    for step in range(5):
        profile.before(step)
        jnp.arange(4).sum().block_until_ready()
        assert (tmp_path / "profile").exists() == (step >= 1)
    profile.end()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", [(3,), (4, 2), (-1, 2)])
def test_steps_that_are_no_range_are_refused(steps):
    with pytest.raises(UserError, match="training.profile"):
        TrainingConfig(profile=steps)


def test_a_state_in_bfloat16_is_half_as_large_and_steps_nearly_alike():
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(32, 8)), jnp.float32), "bias": jnp.zeros(8)}
    target = jnp.asarray(np.random.default_rng(1).normal(size=(32, 8)), jnp.float32)

    def descend(dtype: str):
        tx = make_optimizer(OptimizerConfig(learning_rate=0.05, warmup_steps=1, state_dtype=dtype), 60)
        now, state = params, tx.init(params)
        for _ in range(60):
            grads = jax.grad(lambda p: ((p["w"] + p["bias"] - target) ** 2).mean())(now)
            updates, state = tx.update(grads, state, now)
            now = jax.tree.map(jnp.add, now, updates)
        return now, state

    exact, whole = descend("float32")
    short, half = descend("bfloat16")
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree) if leaf.ndim) for tree in (whole, half)]
    assert sizes[1] * 2 == sizes[0]
    start = float(jnp.abs(params["w"] - target).mean())
    assert float(jnp.abs(short["w"] - exact["w"]).mean()) < 0.02 * start
    assert float(jnp.abs(exact["w"] + exact["bias"] - target).mean()) < 0.5 * start  # it had far to go
