"""What an encoder is: a frozen function from items to one feature vector each, with a mask for items that have none.

What it learned of its training items leaves it as `Fitted`, plain data that encodes other items the same way.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import polars as pl


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What an encoder learned, as plain data.

    Attributes:
        kind: the encoder's name, without the file or folder that it takes.
        options: values that JSON knows.
        arrays: name -> array of numbers.
    """

    kind: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Features:
    """One modality of a catalogue, row r belonging to row r of the items table.

    Attributes:
        values: float32 `[I, D]`, zero where absent, not standardised. `D = 0` where no item has the modality.
        present: bool `[I]`.
        rejected: reason -> number of items whose input was there and could not be used.
        fitted: encodes other items the same way; None where nothing can.
    """

    values: np.ndarray
    present: np.ndarray
    rejected: Mapping[str, int] = dataclasses.field(default_factory=dict)
    fitted: Fitted | None = None

    def __post_init__(self):
        if self.values.ndim != 2 or self.values.dtype != np.float32 or self.present.dtype != np.bool_:
            raise ValueError(f"values {self.values.dtype}{self.values.shape}, present {self.present.dtype}")
        if self.present.shape != self.values.shape[:1]:
            raise ValueError(f"values of {len(self.values)} items, present of {len(self.present)}")


class Encoder(Protocol):
    """Items -> features. `items` has the columns item_id, title, text, categories, image; `fit_rows` is bool `[I]`."""

    modality: str
    name: str

    def fingerprint(self) -> str:
        """Everything but the items that the result depends on: options, model weights, library versions."""

    def inputs(self, items: pl.DataFrame, fit_rows: np.ndarray) -> str:
        """A digest of what the encoder reads of the items; `fit_rows` counts only where something is fitted."""

    def encode(self, items: pl.DataFrame, fit_rows: np.ndarray) -> Features:
        """The features; whatever is fitted is fitted on `fit_rows` alone, and told as their `fitted`."""


class FittedEncoder(Protocol):
    """Items -> features by what was fitted before; `D` is always that of the features it was fitted with.

    An item's numbers do not depend on the items beside it: alone or in another catalogue it gets the same bits on the
    same machine, from a pretrained network the same numbers to rounding.
    """

    def inputs(self, items: pl.DataFrame) -> str:
        """A digest of what is read of the items."""

    def encode(self, items: pl.DataFrame) -> Features:
        """The features; nothing is fitted."""


def scatter(
    num_items: int,
    rows: np.ndarray,
    values_ND: np.ndarray,
    rejected: Mapping[str, int] | None = None,
    fitted: Fitted | None = None,
) -> Features:
    """Features of `num_items` items of which only `rows` (indices, or bool `[I]`) have a vector."""
    values = np.zeros((num_items, values_ND.shape[1]), np.float32)
    present = np.zeros(num_items, np.bool_)
    values[rows], present[rows] = values_ND, True
    return Features(values, present, {reason: count for reason, count in (rejected or {}).items() if count}, fitted)


def absent(num_items: int, rejected: Mapping[str, int] | None = None) -> Features:
    """Features of a modality that no item has: values `[I, 0]`, nothing present."""
    return scatter(num_items, np.zeros(num_items, np.bool_), np.zeros((0, 0), np.float32), rejected)


def describe(encoder: Any, version: int, libraries: Sequence[str], **extra: str) -> str:
    """A fingerprint: the encoder's name, options and own version, and the versions of the libraries it rests on."""
    return json.dumps(
        {
            "name": encoder.name,
            "version": version,
            "options": {key: str(value) for key, value in dataclasses.asdict(encoder).items()},
            "libraries": {name: importlib.metadata.version(name) for name in libraries},
            **extra,
        },
        sort_keys=True,
    )
