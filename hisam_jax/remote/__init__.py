"""Wherever a path is read it may be a URL, `gs://...` or `s3://...`: mirrored into the cache, read from there."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from hisam_jax.errors import UserError
from hisam_jax.files import atomic_write, sha256_of
from hisam_jax.paths import cache_directory, is_url, path_here


def local(
    path: str | os.PathLike,
    field: str | None = None,
    *,
    beside: Collection[str] = (),
    without: Collection[str] = (),
) -> Path:
    """`path` on this machine: itself, or the whole of what lies at a URL as it is now, copied into the cache.

    What the cache has already is not fetched again. The copy is for reading; it stays as it is until the process ends,
    whatever happens to the bucket.

    Args:
        path: a file or a folder.
        field: the flag or argument that it was given by, for messages.
        beside: names of files to be had from a remote file's folder too, where they are there.
        without: names in a remote folder that are left out.

    Raises:
        UserError: a URL that names nothing, cannot be read or changes meanwhile; no room for it.
    """
    if not is_url(path):
        return path_here(path)
    from hisam_jax.remote.mirror import mirror
    from hisam_jax.remote.stores import Entry, open_store

    store = open_store(os.fspath(path), field)

    def listing() -> dict[str, Entry]:
        found = {name: entry for name, entry in store.entries().items() if name.split("/")[1:2] not in left_out}
        more = {name: store.beside(name) for name in beside}
        return found | {name: entry for name, entry in more.items() if entry is not None}

    left_out = [[name] for name in without]
    return mirror(store, listing, _place("remote", store.url, *sorted(without))) / store.name


def write_results(folder: str | os.PathLike, contents: Mapping[str, str | bytes]) -> dict[str, Path | str]:
    """Writes small files into a folder or below a URL, each whole or absent; returns where each is, by name.

    Raises:
        UserError: one cannot be written; of a URL all of them are then kept in the cache.
    """
    if not is_url(folder):
        for name, content in contents.items():
            atomic_write(path_here(folder) / name, content)
        return {name: path_here(folder) / name for name in contents}
    from hisam_jax.remote.stores import open_store

    try:
        store = open_store(os.fspath(folder))
        parts = {name: part.encode() if isinstance(part, str) else part for name, part in contents.items()}
        return {name: store.put(name, part) for name, part in parts.items()}
    except UserError as error:
        kept = _place("unsent", os.fspath(folder))
        for name, content in contents.items():
            atomic_write(kept / name, content)
        raise UserError(
            error.problem, path=error.path, expected=error.expected, hint=f"{', '.join(contents)} kept in {kept}"
        ) from error


def _place(kind: str, url: str, *more: str) -> Path:
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", url)[-60:].strip("_")
    return cache_directory() / kind / f"{readable}-{sha256_of(url.rstrip('/'), *more)[:12]}"
