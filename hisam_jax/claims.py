"""Work that many processes share: whoever locks a file does what it stands for, and a killed one's lock is free."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def claim(path: Path, wait: bool = False) -> Iterator[int | None]:
    """The descriptor of a locked file, None where another process holds it.

    A child that is given the descriptor (`pass_fds`) holds the lock too: it lasts until both have ended, whatever ends
    them. On a network file system its locks must work (NFS 4 and Lustre with `flock` do).

    Args:
        path: of the lock's own file, made where it is missing.
        wait: for the other to end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
            return
        yield file.fileno()
