"""The application: routes behind the gate, refusals as one line of JSON, a service that lives as long as it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import hisam_jax
from hisam_jax.errors import UserError
from hisam_jax.serving import explain_routes, item_routes, release_routes, routes
from hisam_jax.serving.description import described, methods_of
from hisam_jax.serving.errors import Refusal
from hisam_jax.serving.middleware import Gate
from hisam_jax.serving.service import Service

_log = logging.getLogger(__name__)


def create_app(service: Service, token: str | None = None) -> FastAPI:
    """An ASGI application that starts and stops the service."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(title="hisam", version=hisam_jax.__version__, lifespan=lifespan)
    app.state.service = service
    for part in (routes, item_routes, explain_routes, release_routes):
        app.include_router(part.router)
    app.openapi = described(app, service.limits)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_middleware(Gate, limits=service.limits, metrics=service.metrics, token=token, expect=service.expect)
    return app


async def _refused(request: Request, refusal: Refusal) -> JSONResponse:
    headers = {} if refusal.retry is None else {"retry-after": str(refusal.retry)}
    return JSONResponse({"error": refusal.problem}, refusal.status, headers)


async def _http(request: Request, error: HTTPException) -> JSONResponse:
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers = {"allow": ", ".join(sorted(methods_of(request.app, request.url.path)))}
    status = 422 if error.status_code == 400 else error.status_code  # a body that is no JSON
    return JSONResponse({"error": error.detail}, status, headers)


async def _user_error(request: Request, error: UserError) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 422)


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return JSONResponse({"error": f"{where}: {first['msg']}"}, 422)
