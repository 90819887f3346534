"""Requests gathered into batches: one worker thread runs the model, a bounded queue waits for it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hisam_jax.serving.errors import busy
from hisam_jax.serving.pace import Pace


@dataclasses.dataclass(frozen=True)
class _Waiting:
    job: Any
    future: asyncio.Future
    latest: float


class Batcher:
    """Takes jobs from the event loop, runs them together in a thread, and gives each its result.

    Args:
        run: jobs -> a result or an exception for each; called in the worker thread only.
        most: jobs of a batch.
        wait: seconds that a job waits for others while the worker is idle.
        queue: jobs that may wait; one more is refused with 503.

    Attributes:
        pace: of its batches.
    """

    def __init__(self, run: Callable[[Sequence[Any]], Sequence[Any]], most: int, wait: float, queue: int):
        self._run, self._most, self._wait, self._limit = run, most, wait, queue
        self._queue: collections.deque[_Waiting] = collections.deque()
        self.pace = Pace(most)
        self._arrived = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, "model")
        self._task: asyncio.Task | None = None

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._queue)

    def start(self) -> None:
        """Begins to work, on the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """Ends; jobs that still wait are refused."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for waiting in self._queue:
            if not waiting.future.done():
                waiting.future.set_exception(busy("the service is stopping"))
        await asyncio.to_thread(self._worker.shutdown)

    def expect(self, ahead: int, deadline: float) -> None:
        """Refuses a job at once that would wait too long; never one that nothing is before.

        Args:
            ahead: jobs that have come and are not yet answered.
            deadline: seconds.

        Raises:
            Refusal: with the seconds that what is ahead will take.
        """
        wait = self.pace.wait(ahead, asyncio.get_running_loop().time())
        if ahead and wait > deadline:
            raise busy(f"an answer would take {wait:.2f} seconds, past the deadline of {deadline:g}", _whole(wait))

    def _drained(self) -> int:
        return _whole(self.pace.wait(len(self._queue), asyncio.get_running_loop().time()))

    async def submit(self, job: Any, deadline: float) -> Any:
        """A job's result.

        Raises:
            Refusal: the queue is full, or no result came within `deadline` seconds.
        """
        if len(self._queue) >= self._limit:
            raise busy(f"{self._limit} requests are waiting already", self._drained())
        loop = asyncio.get_running_loop()
        waiting = _Waiting(job, loop.create_future(), loop.time() + deadline)
        self._queue.append(waiting)
        self._arrived.set()
        with contextlib.suppress(TimeoutError):
            result = await asyncio.wait_for(waiting.future, deadline)
            if loop.time() <= waiting.latest:  # a loop that is late can see the answer before the timer
                return result
        raise busy(f"no answer within {deadline:g} seconds", self._drained())

    async def run_alone(self, work: Callable[[], Any]) -> Any:
        """Something else that must run in the worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
                if self._wait:
                    await asyncio.sleep(self._wait)
            batch = self._take(loop.time())
            if not batch:
                continue
            start = loop.time()
            try:
                results = await loop.run_in_executor(self._worker, self._run, [one.job for one in batch])
            except Exception as error:
                results = [error] * len(batch)
            _deliver(batch, results)
            self.pace.took(len(batch), loop.time() - start, loop.time())

    def _take(self, now: float) -> list[_Waiting]:
        batch = []
        while self._queue and len(batch) < self._most:
            waiting = self._queue.popleft()
            if not waiting.future.done() and waiting.latest > now:
                batch.append(waiting)
        return batch


def _whole(seconds: float) -> int:
    return max(1, math.ceil(seconds))


def _deliver(batch: Sequence[_Waiting], results: Sequence[Any]) -> None:
    for waiting, result in zip(batch, results, strict=True):
        if waiting.future.done():
            continue
        if isinstance(result, Exception):
            waiting.future.set_exception(result)
        else:
            waiting.future.set_result(result)
