"""How fast batches are answered, and how long a request would wait behind those before it."""

from __future__ import annotations

SHARE = 0.25  # of a new measurement in an estimate
HELD = 2  # batches for which an estimate holds that nothing confirms
HALVED = 4  # batches, besides a second, in which it then counts half


class Pace:
    """Seconds of a batch by its size, as they were lately.

    An estimate fades where no batch of its size follows, so that one slow moment does not refuse for ever.

    Args:
        most: jobs of a batch.
    """

    def __init__(self, most: int):
        self._most = most
        self._known: dict[int, tuple[float, float]] = {}

    def took(self, jobs: int, seconds: float, now: float) -> None:
        """A batch of so many jobs was answered `now`, which is in seconds of any clock."""
        size = _size(jobs)
        old = self._lately(size, now) if size in self._known else seconds
        self._known[size] = old + SHARE * (seconds - old), now

    def wait(self, ahead: int, now: float) -> float:
        """Seconds until a job is answered that so many others stand before; 0 while nothing is known."""
        full, rest = divmod(ahead + 1, self._most)
        return full * self._batch(self._most, now) + (self._batch(rest, now) if rest else 0.0)

    def _batch(self, jobs: int, now: float) -> float:
        """Of its size; else of the next larger one that is known, else of the largest."""
        size = _size(jobs)
        larger = [known for known in self._known if known >= size]
        nearest = min(larger) if larger else max(self._known, default=None)
        return 0.0 if nearest is None else self._lately(nearest, now)

    def _lately(self, size: int, now: float) -> float:
        seconds, then = self._known[size]
        late = max(0.0, now - then - HELD * seconds)
        return seconds * 0.5 ** (late / (1.0 + HALVED * seconds))


def _size(jobs: int) -> int:
    """Sizes up to the same power of two are alike."""
    return (jobs - 1).bit_length()
