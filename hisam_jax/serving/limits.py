"""What a service allows itself and its callers."""

from __future__ import annotations

import dataclasses

from hisam_jax.config import check_least
from hisam_jax.errors import UserError

_COUNTS = ("body", "history", "k", "candidates", "ranked", "concurrent", "queue", "users", "room", "explained")


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of one service; whatever goes past them is refused, so that nothing grows without end.

    Attributes:
        body: bytes of a request.
        history: events of a request, given as its history or sent in.
        k: recommendations of a request.
        candidates: items to rank in a request.
        ranked: of a release with a ranking head alone: the most popular items, which it ranks for a list.
        concurrent: requests in the service at once.
        queue: requests that wait for the model.
        deadline: seconds of a request; one that would wait longer for the model, by how fast those ahead of it go, is
            answered 503 at once, and one that still waits then is too.
        wait: seconds that a request waits for others when the model is idle.
        users: states in memory.
        room: new items that fit without compiling anew.
        explained: explanations at once; each costs as many scores as the user has past items.
    """

    body: int = 1 << 20
    history: int = 1000
    k: int = 100
    candidates: int = 1000
    ranked: int = 2000
    concurrent: int = 512
    queue: int = 256
    deadline: float = 0.25
    wait: float = 0.001
    users: int = 10_000
    room: int = 1000
    explained: int = 8

    def __post_init__(self):
        check_least(self, "serve", **dict.fromkeys(_COUNTS, 1), wait=0)
        if self.deadline <= 0:
            raise UserError(f"value {self.deadline}", field="serve.deadline", expected="seconds, more than 0")
