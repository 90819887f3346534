"""What all routes share: the service behind them, and the refusals that the description tells of."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request

from hisam_jax.serving import schemas
from hisam_jax.serving.service import Service

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Problem, "description": text}
    for status, text in {
        401: "No token, or another one",
        404: "Not there",
        409: "Not possible now",
        413: "A body past its limit",
        422: "Not understood, or past a limit",
        503: "Busy or not ready; Retry-After says for how long",
    }.items()
}


def _service(request: Request) -> Service:
    return request.app.state.service


In = Annotated[Service, Depends(_service)]
