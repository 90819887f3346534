"""Paths as users give them: of this machine, or URLs of a bucket, of which `Path` would make `gs:/`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hisam_jax.errors import UserError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_COLLAPSED = re.compile(r"(gs|gcs|s3|s3a):/+")
_HERE = ("file", "local")


def scheme_of(path: str | os.PathLike) -> str | None:
    """`gs` of `gs://bucket/folder`; None of a path of this machine.

    Raises:
        UserError: a URL that has been through pathlib.
    """
    text = os.fspath(path)
    if found := _URL.match(text):
        return found[1].lower()
    if found := _COLLAPSED.match(text):
        raise UserError(
            "a URL that has lost a slash", path=text, expected=f"{found[1]}://...", hint="pathlib does that: give text"
        )
    return None


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path is another machine's."""
    return scheme_of(path) not in (None, *_HERE)


def path_here(path: str | os.PathLike) -> Path:
    """The path of this machine that is meant by a plain path or by `file://`."""
    text = os.fspath(path)
    return Path(text.split("://", 1)[1]) if scheme_of(text) in _HERE else Path(text)


def output_path(path: str | os.PathLike, field: str | None = None) -> Path:
    """`path`, where something is to be written.

    Raises:
        UserError: it is a URL: outputs are renamed into their place, which no bucket can do.
    """
    if is_url(path):
        raise UserError(
            f"{os.fspath(path)} is a URL, which is read but not written",
            field=field,
            expected="a local folder, or a bucket mounted as one (gcsfuse, mountpoint-s3)",
            hint="write to a local folder and copy it to the bucket",
        )
    return path_here(path)


def as_given(path: str | os.PathLike) -> str:
    """What finds `path` again from another working directory: a URL as it is, else the absolute path."""
    return os.fspath(path) if is_url(path) else os.fspath(path_here(path).absolute())


def cache_directory() -> Path:
    """`$HISAM_CACHE`, or `~/.cache/hisam_jax`."""
    return output_path(os.environ.get("HISAM_CACHE") or Path.home() / ".cache" / "hisam_jax", "HISAM_CACHE")
