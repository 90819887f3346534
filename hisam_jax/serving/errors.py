"""Refusals that are answers: a status, one line, and for a service that is busy when to come back."""

from __future__ import annotations


class Refusal(Exception):
    """An HTTP answer other than 2xx.

    Args:
        status: of HTTP.
        problem: one line.
        retry: seconds after which to try again; None: not worth it.
    """

    def __init__(self, status: int, problem: str, retry: int | None = None):
        super().__init__(problem)
        self.status, self.problem, self.retry = status, problem, retry


def busy(problem: str, retry: int = 1) -> Refusal:
    """503 with Retry-After."""
    return Refusal(503, problem, retry)


def unknown_item(name: str) -> Refusal:
    """404 of an item that the release does not have."""
    return Refusal(404, f"no item {name!r} in this release")
