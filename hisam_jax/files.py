"""Outputs that are whole or absent: written beside their place, flushed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from hisam_jax.errors import UserError
from hisam_jax.paths import output_path

_MANY = 256  # files beyond which the whole system is flushed instead of each


@contextlib.contextmanager
def full_disk_is_a_user_error(path: str | os.PathLike) -> Iterator[None]:
    """Turns 'no space left' and 'quota exceeded' into a `UserError` that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"the disk is full ({error.strerror})", path=path, hint="free space and run the same command again"
            ) from error
        raise


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike, holds: str | None = None) -> Iterator[Path]:
    """Yields a scratch directory that becomes `path` when the block ends well and vanishes when it does not.

    An existing `path` is replaced only at the end. What a killed run left behind is removed first.

    Args:
        path: the directory to be.
        holds: a file that every such output holds; a directory with content but without this file is somebody's own.

    Raises:
        UserError: `path` is a file, or not ours to replace by `holds`; the disk is full.
    """
    final = output_path(path).absolute()  # '.' has no name to derive the scratch directory's from
    scratch, retired = (final.parent / f".{final.name}.{kind}" for kind in ("partial", "retired"))
    with full_disk_is_a_user_error(final):
        _make_folder(final.parent)
        if retired.exists() and not final.exists():
            retired.rename(final)  # killed between the two renames below
        _check_replaceable(final, holds)
        for leftover in (scratch, retired):
            shutil.rmtree(leftover, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
            _flush_tree(scratch)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        if final.exists():
            final.rename(retired)
        scratch.rename(final)
        _flush(final.parent)
        shutil.rmtree(retired, ignore_errors=True)


def atomic_write(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a whole file or leaves what was there."""
    final = output_path(path)
    data = content.encode() if isinstance(content, str) else content
    scratch = final.parent / f".{final.name}.partial"
    with full_disk_is_a_user_error(final):
        _make_folder(final.parent)
        try:
            with open(scratch, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            scratch.replace(final)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


def sha256_file(path: str | os.PathLike) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of(*parts: str | bytes | np.ndarray) -> str:
    """Hex SHA-256 of strings, bytes and arrays (dtype and shape included), each part delimited by its length."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            head, data = f"{part.dtype.str}{part.shape}", np.ascontiguousarray(part).tobytes()
        else:
            head, data = type(part).__name__, part.encode() if isinstance(part, str) else part
        digest.update(f"{head}:{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as the content of a compressed .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def is_plain_name(name: str) -> bool:
    """Whether a name can be that of a file or folder anywhere: letters, digits, dots, dashes, underscores."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) is not None


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError("a file is in the way", path=path, expected="a folder") from error


def _check_replaceable(path: Path, holds: str | None) -> None:
    if path.exists() and not path.is_dir():
        raise UserError("a file is in the way", path=path, expected="a new folder")
    if holds and path.is_dir() and not (path / holds).exists() and any(path.iterdir()):
        raise UserError(
            f"holds something else and no {holds}",
            path=path,
            expected="a new or empty folder",
            hint="nothing was touched",
        )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_tree(root: Path) -> None:
    paths = [Path(folder) / name for folder, _, names in os.walk(root) for name in ("", *names)]
    if len(paths) > _MANY:
        os.sync()  # thousands of small pictures: one call is seconds faster than one a file
        return
    for path in paths:
        _flush(path)
