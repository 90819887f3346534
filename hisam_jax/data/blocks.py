"""Windows read and sent between processes many at a time: a window is short, and each message costs as much as it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import grain
import numpy as np

BLOCK = 64  # windows
Place = tuple[int, int, int]  # which reader, the place in its order, the row there


class Reader(Protocol):
    """Windows of one source."""

    def read(self, places: Sequence[int], rows: Sequence[int]) -> list[np.ndarray]:
        """EVENT records of each place's window; an empty one is left out of training."""


@dataclasses.dataclass(frozen=True)
class Located(grain.transforms.MapWithIndex):
    """A row of a source's shuffled order -> its `Place`."""

    reader: int

    def map_with_index(self, index: int, element: int) -> Place:
        return self.reader, index, element


@dataclasses.dataclass(frozen=True)
class ReadBlock(grain.transforms.Map):
    """Places -> `event`, the windows' EVENT records one behind the other, and `length`, int32 of each window."""

    readers: Sequence[Reader]

    def map(self, element: Sequence[Place]) -> dict[str, np.ndarray]:
        events: list[np.ndarray] = [np.empty(0)] * len(element)
        for number, reader in enumerate(self.readers):
            mine = [place for place, (of, _, _) in enumerate(element) if of == number]
            if mine:
                found = reader.read([element[i][1] for i in mine], [element[i][2] for i in mine])
                for place, event in zip(mine, found, strict=True):
                    events[place] = event
        return {"event": np.concatenate(events), "length": np.array([len(event) for event in events], np.int32)}


class SplitBlock(grain.experimental.FlatMapTransform):
    """A block -> its windows, without the empty ones."""

    max_fan_out = BLOCK

    def flat_map(self, element: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        ends = np.cumsum(element["length"])
        windows = (element["event"][end - n : end] for end, n in zip(ends, element["length"], strict=True) if n)
        return [{"event": window} for window in windows]
