"""The one exception for what the user can mend; the command line turns it into one line and exit code 2."""

from __future__ import annotations

import os


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
