from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from hisam_jax.training.metrics import Averages, MetricsLog, read_metrics


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), cut=st.integers(0, 20))
def test_means_are_the_same_when_saved_in_the_middle(values, cut):
    whole, first = Averages(), Averages()
    for value in values:
        whole.add({"loss": value})
    for value in values[:cut]:
        first.add({"loss": value})
    second = Averages(json.loads(json.dumps(first.state())))
    for value in values[cut:]:
        second.add({"loss": value})
    assert second.take() == whole.take()
    assert Averages({"loss": [6.0, 3]}).take() == {"loss": 2.0}


def test_what_is_not_finite_leaves_its_own_mean_only():
    averages = Averages()
    averages.add({"loss": 1.0, "loss/ranking": math.nan})
    averages.add({"loss": 3.0, "loss/ranking": 5.0})
    assert averages.take() == {"loss": 2.0, "loss/ranking": 5.0}
    assert averages.take() == {}


def test_a_restart_drops_later_lines_and_one_cut_short(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (5, 10, 15):
        log.write(step, {"loss": 1.0 / step})
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 20, "lo')
    log = MetricsLog(tmp_path, 10)
    assert log.last_step == 10
    log.write(15, {"loss": 0.5})
    log.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "metrics.jsonl")] == [
        (5, 0.2),
        (10, 0.1),
        (15, 0.5),
    ]


def test_no_file_has_no_lines(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_value_that_is_not_finite_is_null(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, {"loss": 1.0, "x": math.inf})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 1.0, "x": None}
