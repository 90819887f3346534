"""Raw logs and catalogues, one reader a source, all giving `RawData`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

from hisam_jax import plugins
from hisam_jax.data.readers.base import RawData
from hisam_jax.errors import UserError
from hisam_jax.remote import local

# source -> module:function, imported when used, or the function of a plugin
READERS: dict[str, str | Callable[..., RawData]] = {
    "movielens": "hisam_jax.data.readers.movielens:read",
    "sequences": "hisam_jax.data.readers.sequences:read",
    "recbole": "hisam_jax.data.readers.recbole:read",
    "table": "hisam_jax.data.readers.table:read",
    "amazon2014": "hisam_jax.data.readers.amazon:read_2014",
    "amazon2023": "hisam_jax.data.readers.amazon:read_2023",
    "shop": "hisam_jax.data.readers.shop:read",
}


def register_reader(source: str, function: Callable[..., RawData]) -> None:
    """Makes `function(raw, images=None, *, option=default) -> RawData` what reads `source`.

    Raises:
        UserError: another reader has the name.
    """
    plugins.claim(READERS, source, function, "source")


def read(source: str, raw: str | Path, images: str | Path | None = None, **options: object) -> RawData:
    """Reads `raw` as `source`; events stay lazy, unusable ones are there with their reason.

    Args:
        source: a key of `READERS`.
        raw: the folder of raw files, or its URL.
        images: a folder of pictures, or its URL; which names are looked for is the reader's.
        options: the reader's own, see `reader_options(source)`.

    Raises:
        UserError: an unknown source or option, or a file that cannot be used at all.
    """
    function = _reader(source)
    known = reader_options(source)
    for name in options:
        if known is not None and name not in known:
            expected = f"one of {', '.join(known)}" if known else f"no option with source {source}"
            raise UserError(f"unknown option '{name}'", field=name, expected=expected)
    pictures = None if images is None else local(images, "images")
    return function(local(raw, "raw"), pictures, **options)


def reader_options(source: str) -> dict[str, object] | None:
    """The options of a source and their defaults; None where the reader checks them itself."""
    parameters = inspect.signature(_reader(source)).parameters.values()
    if any(entry.kind is entry.VAR_KEYWORD for entry in parameters):
        return None
    return {entry.name: entry.default for entry in parameters if entry.kind is entry.KEYWORD_ONLY}


def _reader(source: str) -> Callable[..., RawData]:
    plugins.look_for(source, READERS)
    if source not in READERS:
        raise UserError(f"unknown source '{source}'", field="source", expected=f"one of {', '.join(READERS)}")
    found = READERS[source]
    if callable(found):
        return found
    module, name = found.split(":")
    return getattr(importlib.import_module(module), name)
