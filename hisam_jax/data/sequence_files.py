"""Writes user sequences as ArrayRecord files, one record a user, in the order of the user index."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordWriter

from hisam_jax.data.records import UserSequence, encode

USERS_PER_FILE = 65_536
_OPTIONS = "group_size:1,max_parallelism:1"  # one user per chunk: random access; bytes do not depend on threads


def write_sequences(
    folder: str | Path, sequences: Iterable[UserSequence], num_users: int, users_per_file: int = USERS_PER_FILE
) -> list[Path]:
    """Files `sequences-00000-of-00002.array_record` ...; file order then record order is user order.

    Raises:
        ValueError: the sequences are not those of users 0, 1, ... `num_users` - 1, in this order.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    count = num_files(num_users, users_per_file)
    files = [Path(folder) / file_name(index, count) for index in range(count)]
    stream, expected = iter(sequences), 0
    for file in files:
        expected = write_file(file, islice(stream, users_per_file), expected)
    if expected != num_users or next(stream, None) is not None:
        raise ValueError(f"{expected} sequences or more for {num_users} users")
    return files


def write_file(file: str | Path, sequences: Iterable[UserSequence], first_user: int) -> int:
    """One file of users `first_user`, `first_user` + 1, ...; returns the user that is due next."""
    expected = first_user
    writer = ArrayRecordWriter(str(file), _OPTIONS)
    try:
        for sequence in sequences:
            if sequence.user != expected:
                raise ValueError(f"user {sequence.user} where user {expected} was due")
            writer.write(encode(sequence))
            expected += 1
    finally:
        writer.close()
    return expected


def num_files(num_users: int, users_per_file: int = USERS_PER_FILE) -> int:
    return max(1, -(-num_users // users_per_file))


def file_name(index: int, count: int) -> str:
    return f"sequences-{index:05d}-of-{count:05d}.array_record"
