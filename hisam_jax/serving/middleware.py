"""What every request passes: the token, the bounds of its body and of how many there are at once, the clock."""

from __future__ import annotations

import hmac
import json
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from hisam_jax.serving.errors import Refusal, busy
from hisam_jax.serving.limits import Limits
from hisam_jax.serving.metrics import Metrics

ASKS = ("/recommend", "/rank", "/explain")  # what the model answers
OPEN = ("/", "/page.js", "/health", "/ready")  # without a token: nothing in them is anybody's
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Gate:
    """An ASGI middleware.

    Args:
        app: what is behind it.
        limits: bounds.
        metrics: counts requests by route.
        token: that requests must bear; None: none is asked for.
        expect: `(requests ahead, deadline)`; refuses one that would wait for the model past its deadline.
    """

    def __init__(
        self, app: Any, limits: Limits, metrics: Metrics, token: str | None, expect: Callable[[int, float], None]
    ):  # fmt: skip
        self._app, self._limits, self._metrics, self._expect = app, limits, metrics, expect
        self._inside = self._asking = 0
        self._bearer = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        self._inside += 1
        try:
            await self._admit(scope, receive, noting)
        finally:
            self._inside -= 1
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, scope["method"], status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - start)
            if status == 503:
                self._metrics.refused.inc()

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            headers = dict(scope["headers"])
            self._check(scope["path"], headers)
            asks = scope["path"] in ASKS
            if asks:  # before anything is read or parsed: a refusal must cost next to nothing
                self._expect(self._asking, min(_deadline(headers), self._limits.deadline))
            body = await self._body(headers, receive)
        except Refusal as refusal:
            await refuse(send, refusal)
            return
        self._asking += asks
        try:
            await self._app(scope, _replaying(body, receive), send)
        finally:
            self._asking -= asks

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self._bearer and path not in OPEN:
            if not hmac.compare_digest(headers.get(b"authorization", b""), self._bearer):
                raise Refusal(401, "no token, or another one; expected the header Authorization: Bearer TOKEN")
        if self._inside > self._limits.concurrent and path not in OPEN:
            raise busy(f"{self._limits.concurrent} requests are being answered already")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        most = self._limits.body
        said = headers.get(b"content-length", b"0")
        if said.isdigit() and int(said) > most:
            raise Refusal(413, f"a body of {int(said)} bytes; expected at most {most}")
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > most:
                raise Refusal(413, f"a body of more than {most} bytes")
        return b"".join(parts)


def _replaying(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _deadline(headers: dict[bytes, bytes]) -> float:
    """What a request says; nonsense is for its route to refuse."""
    try:
        said = float(headers.get(b"x-deadline", b"inf"))
    except ValueError:
        return math.inf
    return said if said > 0 else math.inf


async def refuse(send: Send, refusal: Refusal) -> None:
    """Sends a refusal as JSON."""
    body = json.dumps({"error": refusal.problem}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"retry-after", str(refusal.retry).encode())] if refusal.retry is not None else []
    headers += [(b"www-authenticate", b"Bearer")] if refusal.status == 401 else []
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
