"""One user's whole sequence as bytes: what an ArrayRecord holds."""

from __future__ import annotations

import dataclasses
import struct

import numpy as np

TRAIN, VALIDATION, TEST = 0, 1, 2
HISTORY = 3  # context only: never a training target, never scored
SPLIT_NAMES = ("train", "validation", "test", "history")
FIELDS = {  # widest first, so that every column of a record is aligned
    "timestamp": np.dtype("<i8"),
    "item": np.dtype("<i4"),
    "rating": np.dtype("<f4"),
    "positive": np.dtype("u1"),
    "split": np.dtype("u1"),
}
_HEADER = struct.Struct("<4sIII")  # magic, user, events, zero (keeps the int64 column at a multiple of 8)
NOT_A_RECORD = "not a sequence record"
_MAGIC = b"HSQ1"
_EVENT_BYTES = sum(dtype.itemsize for dtype in FIELDS.values())


@dataclasses.dataclass(frozen=True)
class UserSequence:
    """A user's events, oldest first.

    Attributes:
        user: user index.
        item: int32 [n], item indices.
        timestamp: int64 [n], seconds since 1970, 0 where the source has none.
        rating: float32 [n], NaN where the source has none.
        positive: uint8 [n], 1 where the user liked the item.
        split: uint8 [n], TRAIN, VALIDATION, TEST or HISTORY.
    """

    user: int
    item: np.ndarray
    timestamp: np.ndarray
    rating: np.ndarray
    positive: np.ndarray
    split: np.ndarray

    def __len__(self) -> int:
        return len(self.item)


def encode(sequence: UserSequence) -> bytes:
    """A record: a 16-byte header, then the columns one after the other, little-endian."""
    parts = [_HEADER.pack(_MAGIC, sequence.user, len(sequence.item), 0)]
    parts += [np.asarray(getattr(sequence, name), dtype).tobytes() for name, dtype in FIELDS.items()]
    return b"".join(parts)


def decode(record: bytes) -> UserSequence:
    """The sequence in a record, as read-only views of its bytes.

    Raises:
        ValueError: not a record of this format, or one cut short.
    """
    whole = len(record) >= _HEADER.size
    magic, user, events, _ = _HEADER.unpack_from(record) if whole else (b"", 0, 0, 0)
    if magic != _MAGIC or len(record) != _HEADER.size + events * _EVENT_BYTES:
        raise ValueError(f"{NOT_A_RECORD}: {len(record)} bytes that begin with {record[:4]!r}")
    columns, offset = {}, _HEADER.size
    for name, dtype in FIELDS.items():
        columns[name] = np.frombuffer(record, dtype, events, offset)
        offset += events * dtype.itemsize
    return UserSequence(user=user, **columns)
