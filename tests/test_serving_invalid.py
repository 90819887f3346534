"""Every served slot holds an item that exists, is served, was asked for, and stands once in its list."""

import collections

import numpy as np
import pytest

from benchmarks.inference.invalid import FAULTS, Truth, counted
from hisam_jax.inference.run import load_run
from tests.serving_fixtures import load, tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("invalid")
    tiny_run(root)
    return root / "run"


@pytest.mark.slow
def test_no_slot_is_invalid_while_items_come_and_go(run):
    release = load(run)
    found = counted(release, Truth.of(load_run(run).assembly.dataset), slots=5000, k=10)
    assert found["slots"] >= 5000 and min(found["changes"][what] for what in ("came", "came back", "went")) > 3
    assert set(found["ways"]) == {"retrieval", "generation", "hybrid"}
    for way, count in found["ways"].items():
        assert count["slots"] > 1000 and not any(count[fault] for fault in FAULTS), (way, count)


def test_each_fault_is_found():
    truth = Truth(
        [True, False, True, True], [0, 0, 9, 20], [frozenset("a"), frozenset("a"), frozenset("a"), frozenset("b")]
    )
    want = {"repeated": 1, "not there": 2, "not served": 1, "hidden": 1, "too old": 1, "of another category": 1}
    found = truth.faults(np.array([0, 1, 2, 3, 3 + 1, -1, 0]), {3}, 15, ["a"])
    assert +collections.Counter(found) == want and set(want) == set(FAULTS)
    assert not +truth.faults(np.array([3, 0]), {1}, 15, [])
