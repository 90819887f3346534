"""Checksums of a committed checkpoint's files: what has changed since is damage."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from hisam_jax.errors import UserError
from hisam_jax.files import atomic_write, sha256_file

_log = logging.getLogger(__name__)
_CHECKSUMS = "checksums.json"
_HASHING = 4  # files read at a time


def write_checksums(path: Path) -> None:
    """Records every file of a committed checkpoint; one whose process is killed before stays without, unchecked."""
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    sums = json.dumps(_sums(path, [name for name in names if name != _CHECKSUMS]), indent=1)
    try:
        atomic_write(path / _CHECKSUMS, sums)
    except UserError as error:
        _log.warning("checkpoint %s stays without checksums: %s", path, error)


def check_files(path: Path, parts: Sequence[str]) -> None:
    """Compares this process's share of the files; every file is read by one of the processes.

    Raises:
        ValueError: a file that has changed.
    """
    if not (path / _CHECKSUMS).exists():
        return
    recorded = json.loads((path / _CHECKSUMS).read_text())
    names = sorted(name for name in recorded if "/" not in name or name.split("/")[0] in parts)
    for name, found in _sums(path, names[jax.process_index() :: jax.process_count()]).items():
        if found != recorded[name]:
            raise ValueError(f"{name} has changed since it was saved")


def _sums(path: Path, names: Sequence[str]) -> dict[str, str]:
    with ThreadPoolExecutor(_HASHING) as pool:
        return dict(zip(names, pool.map(sha256_file, [path / name for name in names]), strict=True))
