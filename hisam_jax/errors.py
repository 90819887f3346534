"""The exceptions that the command line turns into one line and an exit code: 2, the user can mend it; 75, try again."""

from __future__ import annotations

import os
import signal
import sys


class UserError(Exception):
    """What is wrong, where (file, line, field), what was expected and what to do.

    Args:
        problem: what was found, with the offending value.
        path: the file it was found in.
        line: 1-based line of that file.
        field: the column, flag or config field.
        expected: what would have been accepted.
        hint: what to do about it.
    """

    exit_code = 2

    def __init__(
        self,
        problem: str,
        *,
        path: str | os.PathLike | None = None,
        line: int | None = None,
        field: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ):
        self.problem, self.path, self.line = problem, path, line
        self.field, self.expected, self.hint = field, expected, hint
        super().__init__(self._message())

    def _message(self) -> str:
        where = "" if self.path is None else f"{os.fspath(self.path)}"
        where += "" if self.line is None else f":{self.line}"
        parts = [where] if where else []
        parts += [f"field '{self.field}'"] if self.field else []
        parts += [self.problem]
        text = ": ".join(parts)
        text += f"; expected {self.expected}" if self.expected else ""
        text += f" ({self.hint})" if self.hint else ""
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


class PeerLost(UserError):
    """One of several processes has ended or cannot be reached: this one cannot go on; all of them started again can.

    Args:
        who: this process.
        what: what it noticed.
    """

    exit_code = 75  # EX_TEMPFAIL, which the launchers start again

    def __init__(self, who: str, what: str):
        super().__init__(
            f"{who} lost another: {what}",
            hint="that one's output says why; started again, training goes on from its last checkpoint",
        )


class ReaderLost(UserError):
    """A process that reads data was killed, as the system does when memory runs out; the run, started again, goes on.

    Args:
        number: of the signal.
    """

    exit_code = 75

    def __init__(self, number: int):
        known = {each.value: each.name for each in signal.Signals}
        super().__init__(
            f"a reading process was killed by {known.get(number, f'signal {number}')}",
            field="data.workers",
            hint="where memory ran out, lower data.workers; started again, training goes on from its last checkpoint",
        )


def tell(error: UserError | str) -> None:
    """Says on stderr what ends us, in one write: what other threads print cannot come between the line and its end."""
    sys.stderr.write(f"hisam: error: {error}\n")
