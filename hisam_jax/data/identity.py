"""Orders and digests of ids that depend on the seed and the id alone: not on file order, library or machine."""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl


def digests(ids: pl.Series, seed: int, role: str) -> np.ndarray:
    """uint64 [n]: a keyed hash of each id; `role` keeps users and items of the same name apart."""
    key = hashlib.blake2b(f"{role}:{seed}".encode(), digest_size=32).digest()
    blake = hashlib.blake2b
    return np.frombuffer(b"".join(blake(text.encode(), digest_size=8, key=key).digest() for text in ids), "<u8")


def shuffled(ids: pl.Series, seed: int, role: str) -> pl.Series:
    """The ids in a seeded order without meaning: no popularity, no alphabet, no order of appearance."""
    ids = ids.sort()
    return ids.gather(np.argsort(digests(ids, seed, role), kind="stable"))


def mix(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """uint64: one well-mixed hash of two (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        x = left * np.uint64(0x9E3779B97F4A7C15) + right
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
