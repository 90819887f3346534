"""Processes that are told to end: all stop behind the same step, soon enough for who will kill them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from hisam_jax.training import leaving
from hisam_jax.training.leaving import STEPS, Leaving

BEGIN, TOLD, END = 3, 27, 70


class Agreement:
    """`agree` between threads; breaks where they ask unequally often."""

    def __init__(self, processes: int):
        self.barrier, self.flags, self.asked = threading.Barrier(processes, timeout=10), [], 0

    def __call__(self, flag: bool) -> bool:
        self.flags.append(flag)
        self.barrier.wait()
        found = any(self.flags)
        if self.barrier.wait() == 0:
            self.flags.clear()
            self.asked += 1
        self.barrier.wait()
        return found


@pytest.fixture
def agreement(monkeypatch) -> Agreement:
    agreement = Agreement(2)
    monkeypatch.setattr(leaving, "agree", agreement)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    return agreement


def run(seconds: float, told: bool) -> int:
    """The step behind which a process of steps of so many seconds leaves."""
    event, now = threading.Event(), [0.0]
    asking = Leaving(event, BEGIN, lambda: now[0])
    for step in range(BEGIN, END):
        if told and step == TOLD:
            event.set()
        if asking.behind(step):
            assert asking.behind(step)
            return step
        now[0] += seconds
    return END


def together(*seconds: float, told: bool = True) -> list[int]:
    with ThreadPoolExecutor(len(seconds)) as pool:
        return list(pool.map(run, seconds, (False, told)))


@pytest.mark.parametrize("seconds", [(12.0, 12.0), (0.1, 12.0), (12.0, 0.1)])
def test_slow_steps_end_at_once(agreement, seconds):
    assert together(*seconds) == [TOLD, TOLD]


def test_fast_steps_seldom_ask(agreement):
    first, second = together(0.1, 0.2)
    assert first == second and TOLD <= first <= TOLD + STEPS
    assert agreement.asked <= 2 * (2 + first // STEPS)


def test_who_is_told_nothing_goes_on(agreement):
    assert together(0.1, 30.0, told=False) == [END, END]


def test_one_process_asks_nobody(monkeypatch):
    monkeypatch.setattr(leaving, "agree", None)
    assert run(0.1, told=True) == TOLD and run(0.1, told=False) == END
