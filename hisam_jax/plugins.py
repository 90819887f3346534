"""Modules of others that register readers, encoders and tokenizers under names of their own.

They are those that `$HISAM_PLUGINS` names, joined by commas, and the entry points of installed packages in the group
`hisam_jax.plugins`. A registry imports them when it is asked for a name that it does not know.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
from collections.abc import Container
from typing import Any

from hisam_jax.errors import UserError

VARIABLE, GROUP = "HISAM_PLUGINS", "hisam_jax.plugins"


def look_for(name: str, registry: Container[str]) -> None:
    """Imports the plugins, once in a process, where `registry` lacks `name`.

    Raises:
        UserError: a module that `$HISAM_PLUGINS` names, or one that it imports, is not there.
    """
    if name not in registry:
        _load(os.environ.get(VARIABLE, ""))


def claim(registry: dict[str, Any], name: str, value: Any, field: str) -> None:
    """Puts `value` into `registry` under a name that nobody has yet; the same value again is no mistake.

    Raises:
        UserError: another has the name, or it holds what parts a name from its argument.
    """
    if registry.get(name, value) != value:
        raise UserError(f"{name!r} is taken", field=field, expected=f"a name beside {', '.join(registry)}")
    if not name or set(name) & set(":,/ "):
        raise UserError(f"{name!r}", field=field, expected="a name without ':', ',', '/' and spaces")
    registry[name] = value


@functools.cache
def _load(named: str) -> None:
    for module in filter(None, (part.strip() for part in named.split(","))):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UserError(
                f"no module {error.name!r}", field=f"${VARIABLE}", expected="modules that Python finds",
                hint="add their folder to PYTHONPATH",
            ) from error  # fmt: skip
    for point in importlib.metadata.entry_points(group=GROUP):
        point.load()
