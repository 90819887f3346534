"""Threads that each run one cell after another in processes; other starts, here or elsewhere, share the cells."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from hisam_jax.cells.processes import Failed, Stopped
from hisam_jax.claims import claim

C = TypeVar("C", bound=Hashable)
WAIT_SECONDS = 5.0  # between two looks at cells that other processes hold
GPU_SHARE, FRACTION = 0.9, "XLA_PYTHON_CLIENT_MEM_FRACTION"  # of a GPU, that all cells at a time have together


@dataclasses.dataclass(frozen=True)
class Work(Generic[C]):
    """What a pool must know of cells.

    Attributes:
        name: of the verb, for what is said on stderr.
        locks: folder of their locks.
        folder_of: a cell's folder, relative; its name too.
        done: whether a cell is done.
        run: does a cell, given the descriptor of its lock and what is set when it must stop.
        after: called when a cell is done.
        again: whether a cell that failed is to be tried once more by this start.
    """

    name: str
    locks: Path
    folder_of: Callable[[C], Path]
    done: Callable[[C], bool]
    run: Callable[[C, int, threading.Event], None]
    after: Callable[[], None]
    again: Callable[[C, Failed], bool] = lambda cell, error: False


class Pool(Generic[C]):
    """Runs cells, `jobs` at a time, each on its share of the cores and of a GPU's memory."""

    def __init__(self, work: Work[C], cells: Sequence[C], jobs: int):
        self._does, self._cells, self._jobs = work, cells, max(1, jobs)
        self._failed: dict[C, str] = {}
        self._errors: queue.Queue[BaseException] = queue.Queue()
        self._stop, self._taking = threading.Event(), threading.Lock()

    def work(self) -> dict[C, str]:
        """Runs all cells; returns those that failed, with what they said."""
        with _share_of_a_gpu(self._jobs):
            return self._work()

    def _work(self) -> dict[C, str]:
        while todo := self._left():
            turn = iter(todo)
            threads = [threading.Thread(target=self._thread, args=(n, turn), daemon=True) for n in range(self._jobs)]
            for thread in threads:
                thread.start()
            self._join(threads)
            if not self._errors.empty():
                raise self._errors.get()
            if len(todo) == len(self._left()):
                time.sleep(WAIT_SECONDS)  # all that is left is with other processes
        return self._failed

    def _left(self) -> list[C]:
        return [cell for cell in self._cells if not self._does.done(cell) and cell not in self._failed]

    def _join(self, threads: Sequence[threading.Thread]) -> None:
        try:
            while any(thread.is_alive() for thread in threads):
                threads[0].join(0.2)
                time.sleep(0.05)
        except BaseException:
            self._stop.set()
            for thread in threads:
                thread.join()  # its run saves what it has
            raise

    def _thread(self, number: int, turn: itertools.chain) -> None:
        try:
            if self._jobs > 1 and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, share(sorted(os.sched_getaffinity(0)), number, self._jobs))  # of this thread
            while not self._stop.is_set():
                with self._taking:
                    cell = next(turn, None)
                if cell is None:
                    return
                self._cell(cell)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            self._stop.set()
            self._errors.put(error)

    def _cell(self, cell: C) -> None:
        does, name = self._does, self._does.folder_of(cell)
        with claim(does.locks / ("-".join(name.parts) + ".lock")) as held:
            if held is None or does.done(cell):
                return
            print(f"{does.name}: {name}", file=sys.stderr, flush=True)
            try:
                does.run(cell, held, self._stop)
            except Stopped:
                return
            except Failed as error:
                print(f"{does.name}: {name} failed: {error}", file=sys.stderr, flush=True)
                if not does.again(cell, error):
                    self._failed[cell] = str(error)
                return
        does.after()


@contextlib.contextmanager
def _share_of_a_gpu(jobs: int) -> Iterator[None]:
    """Sets what tells cells' processes their share of a GPU's memory, of which the first would take nearly all."""
    if jobs == 1 or FRACTION in os.environ:
        yield
        return
    os.environ[FRACTION] = f"{GPU_SHARE / jobs:.3f}"
    try:
        yield
    finally:
        os.environ.pop(FRACTION, None)


def share(cores: Sequence[int], number: int, jobs: int) -> set[int]:
    """One of `jobs` parts of the cores; where there are fewer cores, parts overlap."""
    mine = {core for place, core in enumerate(cores) if place % jobs == number % len(cores)}
    return mine or {cores[number % len(cores)]}
