"""Native libraries report a full disk in words of their own; here they become the `OSError` that Python raises."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def native_disk_errors() -> Iterator[None]:
    """Re-raises an error of Polars or ArrayRecord that speaks of a full disk as an `OSError` of that number."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        for number in _FULL:
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number)) from error
        raise
