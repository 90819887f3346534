"""Tables that the command line and the service's routes make of themselves."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from fastapi.routing import APIRoute

from hisam_jax.cli import build_parser
from hisam_jax.cli.serving import LIMITS
from hisam_jax.serving import explain_routes, item_routes, release_routes, routes


def verbs() -> dict[str, argparse.ArgumentParser]:
    """The parser of every verb."""
    return build_parser()._subparsers._group_actions[0].choices


def flags() -> str:
    """The help of every verb, as the command prints it."""
    return "\n\n".join(
        f"## hisam {name}\n\n```text\n{parser.format_help().strip()}\n```" for name, parser in verbs().items()
    )


def endpoints() -> str:
    """Method, path and the first sentence of every route, with the schemas of request and answer."""
    rows = ["| request | body | answer | what it does |", "|---|---|---|---|"]
    return "\n".join(rows + [_row(route) for route in api_routes()])


def api_routes() -> Iterator[APIRoute]:
    """The service's routes but the page's own."""
    for part in (routes, item_routes, explain_routes, release_routes):
        yield from (route for route in part.router.routes if route.include_in_schema)


def limits() -> str:
    """Flags of `hisam serve` that bound something, with their defaults."""
    actions = verbs()["serve"]._option_string_actions
    rows = [f"| `{flag}` | {actions[flag].default:,} | {actions[flag].help} |" for flag in LIMITS]
    rows.append(f"| `--deadline` | {actions['--deadline'].default} | seconds {actions['--deadline'].help} |")
    return "\n".join(["| flag | default | what it bounds |", "|---|---|---|", *rows])


def _row(route: APIRoute) -> str:
    about = " ".join((route.description or "").split()).replace("|", r"\|")
    body = _named(route.body_field and route.body_field.field_info.annotation)
    return f"| `{' '.join(sorted(route.methods))} {route.path}` | {body} | {_named(route.response_model)} | {about} |"


def _named(kind: object) -> str:
    name, module = getattr(kind, "__name__", ""), getattr(kind, "__module__", "")
    return f"[`{name}`][{module}.{name}]" if module.startswith("hisam_jax.") else ""
