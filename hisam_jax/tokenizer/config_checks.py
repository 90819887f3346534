"""Checks that the tokenizers' configs have in common, beside those of `hisam_jax.config`. All raise `UserError`."""

from __future__ import annotations

import math
from typing import Any

from hisam_jax.errors import UserError


def check_sizes(record: Any, section: str, *names: str, empty: bool = False) -> None:
    """Refuses fields that are no tuples of whole numbers from 1 on, or have none unless `empty`."""
    for name in names:
        refuse_no_sizes(getattr(record, name), f"{section}.{name}", empty=empty)


def refuse_no_sizes(sizes: Any, field: str, *, empty: bool = False) -> None:
    """Refuses one value, known to the user as `field`; see `check_sizes`."""
    whole = isinstance(sizes, tuple) and all(type(size) is int and size >= 1 for size in sizes)
    if not whole or not (sizes or empty):
        least = "" if empty else ", at least one"
        raise UserError(f"value {sizes!r}", field=field, expected=f"a tuple of whole numbers from 1 on{least}")


def check_positive(record: Any, section: str, *names: str) -> None:
    """Refuses fields that are not above 0, or infinite."""
    for name in names:
        if not 0 < getattr(record, name) < math.inf:
            raise UserError(f"value {getattr(record, name)}", field=f"{section}.{name}", expected="more than 0")
