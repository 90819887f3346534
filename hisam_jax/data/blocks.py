"""Windows read and sent between processes many at a time: a window is short, and each message costs as much as it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

BLOCK = 256  # windows


class Reader(Protocol):
    """Windows of one source, an epoch of them behind another."""

    def __len__(self) -> int:
        """Windows of an epoch."""

    def read(self, place_P: np.ndarray) -> list[np.ndarray]:
        """EVENT records of the window at each place, the places ascending; an empty one is left out of training."""


@dataclasses.dataclass(frozen=True)
class ReadBlock(grain.transforms.Map):
    """Positions in a stream -> `event`, their windows' EVENT records in a row, and `length`, int32 of each window.

    A block is the number of one, which stands for BLOCK consecutive positions in the first reader's order, or
    `(reader, position)` of each window.

    Attributes:
        readers: what is read.
        stream, streams: this stream reads each `streams`-th window of an epoch.
        end: positions of the first reader there are.
    """

    readers: Sequence[Reader]
    stream: int = 0
    streams: int = 1
    end: int | None = None

    def map(self, element: int | Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
        if isinstance(element, (int, np.integer)):
            last = (element + 1) * BLOCK
            events = self._read(0, np.arange(element * BLOCK, last if self.end is None else min(last, self.end)))
        else:
            reader_P, position_P = np.array(element).T
            events = [np.empty(0)] * len(element)
            for number in np.unique(reader_P):
                mine = np.flatnonzero(reader_P == number)
                for place, event in zip(mine, self._read(number, position_P[mine]), strict=True):
                    events[place] = event
        return {"event": np.concatenate(events), "length": np.array([len(event) for event in events], np.int32)}

    def per_epoch(self, reader: int) -> int:
        """Windows of this stream in an epoch of a reader."""
        return len(range(self.stream, len(self.readers[reader]), self.streams))

    def _read(self, number: int, position_P: np.ndarray) -> list[np.ndarray]:
        epoch_P, index_P = np.divmod(position_P, self.per_epoch(number))
        reader = self.readers[number]
        return reader.read(epoch_P * len(reader) + index_P * self.streams + self.stream)


class SplitBlocks(grain.IterDataset):
    """Blocks -> their windows, without the empty ones."""

    def __iter__(self) -> grain.DatasetIterator:
        return _Windows(self._parent.__iter__())


class _Windows(grain.DatasetIterator):
    """Its position is the parent's before the block that it is in, and a place in that block."""

    def __init__(self, parent: grain.DatasetIterator):
        super().__init__(parent)
        self._before, self._taken = parent.get_state(), 0
        self._rest: Iterator[np.ndarray] = iter(())

    def __next__(self) -> dict[str, np.ndarray]:
        while (event := next(self._rest, None)) is None:
            self._before, self._taken = self._parent.get_state(), 0
            self._rest = _split(next(self._parent))
        self._taken += 1
        return {"event": event}

    def get_state(self) -> dict[str, Any]:
        return {"before": self._before, "taken": self._taken}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._parent.set_state(state["before"])
        self._before, self._taken, self._rest = state["before"], 0, iter(())
        for _ in range(state["taken"]):
            next(self)


def _split(block: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    ends = np.cumsum(block["length"])
    return (block["event"][end - n : end] for end, n in zip(ends, block["length"], strict=True) if n)
