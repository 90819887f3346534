"""A worker's `UserError` on its way to the driver: of what a worker raises, runners hand back the text alone."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Iterator

from hisam_jax.errors import UserError

_FIELDS = ("problem", "path", "line", "field", "expected", "hint")
_MARK = re.compile(r"hisam-mistake:([A-Za-z0-9+/=]+):")


@contextlib.contextmanager
def sent_to_driver() -> Iterator[None]:
    """Around a worker's code: what a `UserError` says survives the way."""
    try:
        yield
    except UserError as error:
        fields = {name: getattr(error, name) for name in _FIELDS}
        text = json.dumps(fields, default=str)
        raise RuntimeError(f"{error} hisam-mistake:{base64.b64encode(text.encode()).decode()}:") from error


@contextlib.contextmanager
def received_from_workers() -> Iterator[None]:
    """Around a pipeline's run: a worker's `UserError` is one again."""
    try:
        yield
    except Exception as error:
        found = _MARK.search(str(error))
        if not found:
            raise
        fields = json.loads(base64.b64decode(found[1]))
        raise UserError(fields.pop("problem"), **fields) from error
