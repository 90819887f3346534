"""A user's cached anchors: every layer's keys and values, exactly those of the full pass, small enough to keep."""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from hisam_jax.models.blocks import Cache

MAGIC = b"HSMS\x01"
Form = Literal["float32", "bfloat16", "int8"]


class BrokenState(ValueError):
    """Bytes that are no state, or another release's; the state is to be made again from the user's events."""


@dataclasses.dataclass(frozen=True)
class UserState:
    """What a model remembers of a history; grows by one item at a time.

    Attributes:
        k, v: float32 or bfloat16 `[layers, kept positions, kv_heads, width]`: anchors of the latest items, oldest
            first; every token of theirs in the flat model.
        read: float32 `[D]`, the last item's read-out state; zeros before the first.
        items: how many items the user has had, forgotten ones counted.
        kept: of how many `k` and `v` hold something.
    """

    k: np.ndarray
    v: np.ndarray
    read: np.ndarray
    items: int
    kept: int

    def appended(self, k: np.ndarray, v: np.ndarray, read: np.ndarray, window: int) -> UserState:
        """With one more item, `[layers, its positions, kv_heads, width]`; no more than the latest `window` are kept."""
        kept, tokens = min(self.kept + 1, window), k.shape[1]
        first = max(self.k.shape[1] + tokens - kept * tokens, 0)
        whole = (np.concatenate(pair, axis=1)[:, first:] for pair in ((self.k, k), (self.v, v)))
        return UserState(*whole, read, self.items + 1, kept)

    @property
    def bytes(self) -> int:
        """Of keys and values."""
        return self.k.nbytes + self.v.nbytes

    def packed(self, release: str, form: Form = "bfloat16") -> bytes:
        """A checksummed string of bytes; `int8` has a scale for every layer, position and head [ours].

        Args:
            release: what the state belongs to; nothing else may read it.
            form: of keys and values; the read-out state stays float32.
        """
        head = {"release": release, "form": form, "shape": self.k.shape, "items": self.items, "kept": self.kept}
        head |= {"width": len(self.read)}
        parts = [part for x in (self.k, self.v) for part in _encoded(x, form)] + [self.read.astype(np.float32)]
        text = json.dumps(head).encode()
        body = struct.pack("<I", len(text)) + text + b"".join(part.tobytes() for part in parts)
        return MAGIC + struct.pack("<I", zlib.crc32(body)) + body

    @classmethod
    def unpacked(cls, data: bytes, release: str) -> UserState:
        """What `packed` wrote.

        Raises:
            BrokenState: torn, altered, or of another release.
        """
        start = len(MAGIC) + 4
        if data[: len(MAGIC)] != MAGIC or len(data) < start + 4:
            raise BrokenState("not a user state")
        if zlib.crc32(data[start:]) != struct.unpack("<I", data[len(MAGIC) : start])[0]:
            raise BrokenState("a user state that was altered or cut short")
        length = struct.unpack("<I", data[start : start + 4])[0]
        head = json.loads(data[start + 4 : start + 4 + length])
        if head["release"] != release:
            raise BrokenState(f"a user state of release {head['release']!r}, not of {release!r}")
        rest = memoryview(data)[start + 4 + length :]
        shape = tuple(head["shape"])
        k, rest = _decoded(rest, shape, head["form"])
        v, rest = _decoded(rest, shape, head["form"])
        return cls(k, v, np.frombuffer(rest, np.float32).copy(), head["items"], head["kept"])


def _encoded(x: np.ndarray, form: Form) -> list[np.ndarray]:
    if form != "int8":
        return [x.astype(np.dtype(getattr(ml_dtypes, form, form)))]
    scale = np.abs(x.astype(np.float32)).max(-1, keepdims=True) / 127
    return [scale, np.rint(x / np.maximum(scale, 1e-30)).astype(np.int8)]


def _decoded(data: memoryview, shape: tuple[int, ...], form: Form) -> tuple[np.ndarray, memoryview]:
    size = int(np.prod(shape))
    if form != "int8":
        dtype = np.dtype(getattr(ml_dtypes, form, form))
        return np.frombuffer(data, dtype, size).reshape(shape).copy(), data[size * dtype.itemsize :]
    scales = (*shape[:-1], 1)
    count = int(np.prod(scales))
    scale = np.frombuffer(data, np.float32, count).reshape(scales)
    values = np.frombuffer(data[4 * count :], np.int8, size).reshape(shape)
    return values * scale, data[4 * count + size :]


def stacked(
    states: Sequence[UserState], rows: int, capacity: int, tokens: int, dtype: np.dtype | None = None
) -> tuple[Cache, np.ndarray, np.ndarray]:
    """`(cache, items [rows], read [rows, D])` of users of unequal length; rows past theirs are empty.

    Args:
        states: at least one.
        rows: B.
        capacity: items that fit, at least the most that a state keeps.
        tokens: positions of an item.
        dtype: of keys and values; None: the first state's.
    """
    first = states[0]
    layers, _, heads, width = first.k.shape
    shape = (layers, rows, capacity * tokens, heads, width)
    k, v = (np.zeros(shape, dtype or first.k.dtype) for _ in range(2))
    index_BM = np.full((rows, capacity * tokens), -1, np.int32)
    items_B, read_BD = np.zeros(rows, np.int32), np.zeros((rows, len(first.read)), np.float32)
    for row, state in enumerate(states):
        used = state.kept * tokens
        k[:, row, :used], v[:, row, :used] = state.k, state.v
        index_BM[row, :used] = np.repeat(np.arange(state.items - state.kept, state.items), tokens)
        items_B[row], read_BD[row] = state.items, state.read
    return Cache(jnp.asarray(k), jnp.asarray(v), jnp.asarray(index_BM)), items_B, read_BD
