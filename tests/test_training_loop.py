from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import tiny_dataset
from run_fixtures import equal, lines
from training_fixtures import CONFIG, compile_once, init_fn, loss_fn, pipeline_of, same_group  # noqa: F401

from hisam_jax.data.dataset import Dataset
from hisam_jax.errors import UserError
from hisam_jax.training import checkpoints
from hisam_jax.training.config import TrainingConfig
from hisam_jax.training.loop import train
from hisam_jax.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data") / "dataset", users=40)


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """A run that nothing disturbed: its folder and last state."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run(dataset, workdir)


def run(dataset: Dataset, workdir: Path, config: TrainingConfig = CONFIG, **options):
    options = {"evaluators": [same_group], **options}
    return train(loss_fn, init_fn, lambda: pipeline_of(dataset), config, workdir, **options)


def key_of(step: int):
    """What a loss gets as its key in the 1-based `step`."""
    return jax.random.fold_in(jax.random.split(jax.random.key(CONFIG.seed))[1], step - 1)


class Interrupted(Exception):
    """Stands for a fault at a chosen step."""


def interrupt_at(step: int):
    def on_step(now: int, values: dict) -> None:
        if now == step:
            raise Interrupted

    return on_step


def test_it_learns_and_logs_what_the_contract_names(dataset, tmp_path, capfd):
    config = dataclasses.replace(CONFIG, steps=120, evaluate_every=60)
    state = run(dataset, tmp_path, config)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert int(state.step) == 120
    assert same_group(state.params)["validation/same_group"] > 0.45  # 0.25 untrained, 0.85 in the data
    assert [row["step"] for row in rows] == list(range(3, 121, 3))
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    for row in rows:
        assert {"loss", "loss/retrieval", "items_per_second", "seconds", "learning_rate", "grad_norm"} <= row.keys()
        assert row["items_per_second"] > 0
    assert [row["step"] for row in rows if "validation/same_group" in row] == [60, 120]
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    assert list((tmp_path / "tensorboard").glob("events*"))
    printed = capfd.readouterr()
    assert printed.out == "" and "absl" not in printed.err and "orbax" not in printed.err.lower()
    assert "loss=" in printed.err and "120/120" in printed.err


def test_a_line_holds_means_over_its_steps(dataset, tmp_path):
    seen = {}
    run(dataset, tmp_path, on_step=lambda step, values: seen.update({step: values["loss"]}))
    for row in lines(tmp_path):
        last = max((other["step"] for other in lines(tmp_path) if other["step"] < row["step"]), default=0)
        steps = range(last + 1, row["step"] + 1)
        assert row["loss"] == pytest.approx(np.mean([seen[step] for step in steps]), rel=1e-12)


@pytest.mark.parametrize("step", [2, 9, 17, 23])
def test_interrupted_and_started_again_it_ends_the_same(dataset, whole, tmp_path, step):
    workdir, state = whole
    with pytest.raises(Interrupted):
        run(dataset, tmp_path, on_step=interrupt_at(step))
    again = run(dataset, tmp_path)
    assert equal(state.params, again.params) and equal(state.opt_state, again.opt_state)
    assert lines(workdir) == lines(tmp_path)


def test_a_finished_run_started_again_does_nothing(dataset, whole):
    workdir, state = whole
    before = (workdir / "metrics.jsonl").read_bytes()
    calls = []
    second = run(dataset, workdir, on_step=lambda step, values: calls.append(step))
    assert not calls and equal(state.params, second.params)
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_seconds_go_on_after_a_restart(dataset, tmp_path):
    with pytest.raises(Interrupted):
        run(dataset, tmp_path, on_step=interrupt_at(14))
    step = checkpoints.saved_steps(tmp_path / "checkpoints")[-1]
    spent = checkpoints.describe(tmp_path / "checkpoints", step).memory["seconds"]
    run(dataset, tmp_path)
    assert spent > 0
    assert all(row["seconds"] >= spent for row in read_metrics(tmp_path / "metrics.jsonl") if row["step"] > step)


@pytest.mark.parametrize(("bad", "where"), [(math.nan, "loss"), (math.inf, "loss"), (math.nan, "gradient")])
def test_a_loss_or_gradient_that_is_not_finite_stops_and_keeps_the_last_good(dataset, whole, tmp_path, bad, where):
    @jax.custom_jvp
    def poison(x, factor):
        return x * factor if where == "loss" else x

    poison.defjvp(lambda primals, tangents: (poison(*primals), tangents[0] * primals[1]))

    def spoiled(params, batch, key):
        loss, metrics = loss_fn(params, batch, key)
        return poison(loss, jnp.where((key == key_of(10)).all(), bad, 1.0)), metrics

    workdir = tmp_path / "run"
    with pytest.raises(UserError, match=r"became (nan|inf) at step 10.*last good checkpoint: step 8.*learning rate"):
        train(spoiled, init_fn, lambda: pipeline_of(dataset), CONFIG, workdir, evaluators=[same_group])
    assert checkpoints.saved_steps(workdir / "checkpoints") == [4, 8]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(checkpoints.load_params(workdir, "last")))
    resumed = run(dataset, workdir)  # the cause gone, it goes on
    assert equal(resumed.params, whole[1].params)


def test_a_bad_step_is_never_saved_even_when_a_save_is_due(dataset, tmp_path):
    def spoiled(params, batch, key):
        loss, metrics = loss_fn(params, batch, key)
        return jnp.where(
            (key == jax.random.fold_in(jax.random.split(jax.random.key(5))[1], 7)).all(), jnp.nan, loss
        ), metrics

    with pytest.raises(UserError, match="at step 8.*last good checkpoint: step 4"):
        train(spoiled, init_fn, lambda: pipeline_of(dataset), CONFIG, tmp_path, evaluators=[same_group])
    assert checkpoints.saved_steps(tmp_path / "checkpoints") == [4]


def test_early_stopping_keeps_the_best(dataset, tmp_path):
    scores = iter([0.1, 0.5, 0.3, 0.2, 0.9])
    config = dataclasses.replace(CONFIG, evaluate_every=3, monitor="score", patience=2, keep=1)
    state = run(dataset, tmp_path, config, evaluators=[lambda params: {"score": next(scores)}])
    assert int(state.step) == 12
    assert checkpoints.saved_steps(tmp_path / "checkpoints") == [6, 12]
    best, last = (checkpoints.load_params(tmp_path, which) for which in ("best", "last"))
    assert equal(last, state.params) and not equal(best, last)
    again = run(dataset, tmp_path, config, evaluators=[lambda params: {"score": next(scores)}])
    assert int(again.step) == 12, "stopped for good"


def test_less_may_be_better(dataset, tmp_path):
    scores = iter([0.5, 0.2, 0.3])
    config = dataclasses.replace(CONFIG, monitor="score", mode="min")
    run(dataset, tmp_path, config, evaluators=[lambda params: {"score": next(scores)}])
    last = checkpoints.describe(tmp_path / "checkpoints", 24)
    assert last.memory["best_step"] == 16


def test_an_unknown_monitor_names_the_known_ones(dataset, tmp_path):
    with pytest.raises(UserError, match="training.monitor.*expected one of validation/same_group"):
        run(dataset, tmp_path, dataclasses.replace(CONFIG, monitor="recall"))


def test_a_time_limit_ends_the_run_evaluated_and_saved(dataset, tmp_path):
    config = dataclasses.replace(CONFIG, steps=10**6, max_minutes=0.02)
    state = run(dataset, tmp_path, config)
    step = int(state.step)
    assert 0 < step < 10**6
    assert checkpoints.saved_steps(tmp_path / "checkpoints")[-1] == step
    assert "validation/same_group" in lines(tmp_path)[-1]
    assert int(run(dataset, tmp_path, config).step) == step
    assert int(run(dataset, tmp_path, dataclasses.replace(config, max_minutes=0.03)).step) >= step


def test_an_evaluation_at_a_step_that_was_saved_before_is_remembered(dataset, tmp_path):
    config = dataclasses.replace(CONFIG, evaluate_every=0)

    def terminate(step: int, values: dict) -> None:
        if step == 23:  # called while step 24, the last one, is on its way
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        run(dataset, tmp_path, config, on_step=terminate)
    assert checkpoints.describe(tmp_path / "checkpoints", 24).memory["best_step"] is None
    calls = []
    for _ in range(2):
        run(dataset, tmp_path, config, evaluators=[lambda params: calls.append(1) or same_group(params)])
    memory = checkpoints.describe(tmp_path / "checkpoints", 24).memory
    assert len(calls) == 1 and memory["best_step"] == memory["evaluated_step"] == 24


def test_data_that_ends_ends_the_run(dataset, tmp_path):
    state = train(loss_fn, init_fn, lambda: pipeline_of(dataset, epochs=2), CONFIG, tmp_path, evaluators=[same_group])
    assert 2 <= int(state.step) < 24
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert lines(tmp_path)[-1]["step"] == int(state.step)
    train(loss_fn, init_fn, lambda: pipeline_of(dataset, epochs=2), CONFIG, tmp_path, evaluators=[same_group])
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_it_also_trains_outside_the_main_thread(dataset, tmp_path):
    thread = threading.Thread(target=run, args=(dataset, tmp_path))
    thread.start()
    thread.join()
    assert checkpoints.saved_steps(tmp_path / "checkpoints")[-1] == 24


@pytest.mark.parametrize(("field", "value"), [("steps", 0), ("save_every", 0), ("max_minutes", 0.0), ("keep", 0)])
def test_impossible_settings_are_refused_by_name(field, value):
    with pytest.raises(UserError, match=f"training.{field}"):
        TrainingConfig(**{field: value})


def test_every_line_is_strict_json(dataset, tmp_path):
    run(dataset, tmp_path, evaluators=[lambda params: {"validation/same_group": math.nan}])
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))
