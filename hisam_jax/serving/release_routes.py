"""Routes about the service itself: releases, health, metrics, the page."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from hisam_jax.serving import schemas
from hisam_jax.serving.routing import PROBLEMS, In

PAGE, SCRIPT = (Path(__file__).with_name(name) for name in ("page.html", "page.js"))
router = APIRouter(responses=PROBLEMS)


@router.get("/releases")
async def releases(service: In) -> schemas.ReleasesOut:
    """What serves now, and what a rollback goes to."""
    now, before = service.serving(), service.before
    return schemas.ReleasesOut(now=now.release.about(), before=before and before.release.about())


@router.post("/releases")
async def change_release(body: schemas.ReleaseIn, service: In) -> schemas.ReleaseOut:
    """Loads another run and serves it once it is compiled, or goes back; the present one serves until then."""
    release = await (service.roll_back() if body.roll_back else service.load(body.workdir, body.expect))
    return schemas.ReleaseOut(**release.about())


@router.get("/health")
async def health(service: In) -> schemas.HealthOut:
    """Answers as long as the process lives."""
    there, now = await service.store_alive(), service.now
    status = "starting" if now is None else "ok" if there else "degraded"
    return schemas.HealthOut(status=status, store=there, release=now and now.release.id)


@router.get("/ready")
async def ready(service: In) -> schemas.HealthOut:
    """503 until everything is compiled."""
    service.serving()
    return await health(service)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: In) -> PlainTextResponse:
    """For Prometheus."""
    return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def page() -> HTMLResponse:
    """A page to try it."""
    return HTMLResponse(PAGE.read_text())


@router.get("/page.js", include_in_schema=False)
async def script() -> Response:
    """What the page does."""
    return Response(SCRIPT.read_text(), media_type="text/javascript")
