"""Progress on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
LOG_SECONDS = 10.0  # between two lines where stderr is not a terminal


def progress(
    iterable: Iterable[T], total: int | None = None, description: str = "", unit: str = "it", leave: bool = True
) -> Iterator[T]:
    """The same items, with their pace shown on stderr; `total` is taken from `len` where it is not given."""
    if total is None:
        total = len(iterable) if isinstance(iterable, Sized) else None
    with progress_bar(total, description, unit, leave) as bar:
        for value in iterable:
            yield value
            bar.update()


def progress_bar(total: int | None, description: str = "", unit: str = "it", leave: bool = True) -> tqdm:
    """A bar to move by hand with `.update(n)` and `.set_postfix(loss=...)`; close it, or use it in a `with`."""
    if sys.stderr.isatty():
        return tqdm(
            total=total, desc=description, unit=unit, leave=leave, unit_scale=True, dynamic_ncols=True, file=sys.stderr
        )
    return _LogLines(
        total=total, desc=description, unit=unit, unit_scale=True, file=_NoLines(), mininterval=LOG_SECONDS
    )


class _NoLines:
    """Where tqdm writes while `_LogLines` prints whole lines instead of redrawing one."""

    def write(self, text: str) -> None: ...

    def flush(self) -> None: ...


class _LogLines(tqdm):
    """tqdm's clock and arithmetic, printed as whole lines: every `LOG_SECONDS`, and at the end."""

    monitor_interval = 0  # its watcher thread would redraw between our lines
    _printed_n, _printed_at = 0, None

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        now = time.monotonic()
        if self._printed_at is None:
            self._printed_at = now
        elif now - self._printed_at >= LOG_SECONDS:
            self._print(now)
        return True

    def close(self) -> None:
        if not self.disable and self.n != self._printed_n:
            self._print(time.monotonic())
        super().close()

    def _print(self, now: float) -> None:
        self._printed_n, self._printed_at = self.n, now
        print(str(self), file=sys.stderr, flush=True)
