"""`hisam serve`: a run's folder -> a service on a port, until it is stopped."""

from __future__ import annotations

import errno
import gc
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import uvicorn

from hisam_jax.errors import UserError
from hisam_jax.inference.run import load_run
from hisam_jax.paths import is_url
from hisam_jax.serving.app import create_app
from hisam_jax.serving.limits import Limits
from hisam_jax.serving.release import Release, engine_config
from hisam_jax.serving.service import Service
from hisam_jax.serving.store import open_store

FILE, COMPILED = "service.sqlite", "compiled"
DRAIN = 10  # seconds that requests have to end when the service is stopped


def serve(
    workdir: str | os.PathLike,
    port: int,
    host: str = "127.0.0.1",
    store: str | None = None,
    token_file: str | os.PathLike | None = None,
    limits: Limits | None = None,
    rows: Sequence[int] = (1, 8, 32),
    compiled: str | os.PathLike | None = None,
) -> None:
    """Serves a run until SIGINT or SIGTERM.

    Args:
        workdir: a run that `train` left.
        port: 0 takes a free one; the address is printed on stderr.
        host: address to listen on.
        store: a path or a `redis://` URL; None: service.sqlite in `workdir`.
        token_file: holds the token that requests must bear.
        limits: of requests and memory.
        rows: padded sizes of batches.
        compiled: folder of compiled programs, which the next start and the next release take from there; None:
            compiled in `workdir`.

    Raises:
        UserError: no run there, a store that cannot be opened, a port that is taken.
    """
    limits, token = limits or Limits(), _token(token_file)
    if store is None and is_url(workdir):
        raise UserError("none given", field="store", expected="a path, as the run lies at a URL")
    first = [load_run(workdir)]  # says what is wrong with it, or with the shapes, before anything is opened
    engine_config(first[0], limits, rows)

    def load(path: str | os.PathLike) -> Release:
        run = first.pop() if first else load_run(path, again=True)
        return Release(run, limits, engine_config(run, limits, rows))

    listening = _listen(host, port)
    _keep_programs(compiled or (None if is_url(workdir) else Path(workdir) / COMPILED))
    service = Service(load, workdir, open_store(store or str(Path(workdir) / FILE)), limits)
    print(f"hisam: http://{host}:{listening.getsockname()[1]}", file=sys.stderr, flush=True)
    config = uvicorn.Config(
        create_app(service, token), log_level="warning", access_log=False, timeout_graceful_shutdown=DRAIN
    )
    server = uvicorn.Server(config)
    service.prepared_one = _settle
    service.given_up = lambda: setattr(server, "should_exit", True)
    server.run(sockets=[listening])
    if service.now is None and service.failure is not None:
        raise service.failure


def _settle() -> None:
    """Takes all that is there out of the rounds of the garbage collector, each of which would stop every request."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _keep_programs(folder: str | os.PathLike | None) -> None:
    if folder is None:
        return
    jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # before its address is told: who comes while the application is built waits in line
    except OSError as error:
        listening.close()
        taken = error.errno == errno.EADDRINUSE
        raise UserError(
            f"{host}:{port}: {error.strerror or error}", field="port" if taken else "host, port",
            expected="an address and a port that are free here",
        ) from error  # fmt: skip
    return listening


def _token(file: str | os.PathLike | None) -> str | None:
    if file is None:
        return None
    try:
        token = Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"unreadable ({error})", path=file, field="token-file") from error
    if not token or not token.isascii() or not token.isprintable():
        raise UserError("no token", path=file, field="token-file", expected="one line of printable ASCII")
    return token
