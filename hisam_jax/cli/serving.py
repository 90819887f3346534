"""`hisam serve`."""

from __future__ import annotations

import argparse
import dataclasses
import re

from hisam_jax.cli.common import Verb, count
from hisam_jax.errors import UserError

LIMITS = {  # flag -> field, metavar, what it says
    "--max-body": ("body", "BYTES", "the largest body of a request"),
    "--max-history": ("history", "N", "the most events of a request"),
    "--max-k": ("k", "N", "the most recommendations of a request"),
    "--max-candidates": ("candidates", "N", "the most candidates of a request to rank"),
    "--max-ranked": (
        "ranked",
        "N",
        "the most popular items that a run with no head but ranking ranks for a list",
    ),
    "--max-concurrent": ("concurrent", "N", "requests in the service at once; one more is answered 503"),
    "--max-waiting": ("queue", "N", "requests that wait for the model; one more is answered 503"),
    "--max-explained": ("explained", "N", "explanations at once; one more is answered 503"),
    "--users": ("users", "N", "user states in memory; the least recently used go first"),
    "--room": ("room", "N", "new items that there is room for"),
}
_DEFAULTS = {  # those of serving.limits.Limits, which is imported only when it serves
    "body": 1 << 20, "history": 1000, "k": 100, "candidates": 1000, "ranked": 2000, "concurrent": 512, "queue": 256,
    "users": 10_000, "room": 1000, "explained": 8,
}  # fmt: skip


def _serve_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workdir", metavar="DIR", required=True, help="a run that `hisam train` left")
    add("--port", metavar="N", type=_port, required=True, help="TCP port; 0 takes a free one, which stderr names")
    add("--host", metavar="ADDRESS", default="127.0.0.1", help="address to listen on; 0.0.0.0 is every one")
    add(
        "--store",
        metavar="URL",
        help="where events and user states are kept: the path of an SQLite file or redis://HOST:PORT/DB "
        "(default: service.sqlite in --workdir)",
    )
    add(
        "--compiled",
        metavar="DIR",
        help="where compiled programs are kept for the next start or release (default: compiled in --workdir)",
    )
    add("--token-file", metavar="FILE", help="holds a token; requests must bear it then")
    add(
        "--deadline",
        metavar="SECONDS",
        type=_seconds,
        default=0.25,
        help="of a request; one that would wait longer for the model is answered 503 at once",
    )
    add("--wait", metavar="SECONDS", type=_seconds, default=0.001, help="that a request waits for others to join it")
    add("--rows", metavar="N,...", type=_sizes, default="1,8,32", help="padded sizes of batches of requests")
    for flag, (field, metavar, text) in LIMITS.items():
        add(flag, dest=field, metavar=metavar, type=count, default=_DEFAULTS[field], help=text)


def _serve(arguments: argparse.Namespace) -> None:
    try:
        from hisam_jax.serving.run import serve
    except ModuleNotFoundError as error:
        raise UserError(f"the package {error.name} is not installed", hint="pip install 'hisam_jax[serve]'") from error
    from hisam_jax.serving.limits import Limits

    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Limits)}
    serve(
        arguments.workdir, arguments.port, arguments.host, arguments.store, arguments.token_file, Limits(**given),
        arguments.rows, arguments.compiled,
    )  # fmt: skip


def _port(text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}'; expected a port from 0 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d*\.?\d+", text):
        raise argparse.ArgumentTypeError(f"'{text}'; expected seconds, such as 0.5")
    return float(text)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(count(part) for part in text.split(","))


VERBS = {"serve": Verb("Serves a run over HTTP until it is stopped.", _serve_flags, _serve)}
