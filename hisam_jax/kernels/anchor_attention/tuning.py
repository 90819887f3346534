"""Tile sizes that were tuned for a device kind, kept as a small JSON file each; heuristics where there are none.

`python -m hisam_jax.kernels.anchor_attention.autotune` writes them. They lie in `$HISAM_TILES`, else in
`~/.cache/hisam_jax/tiles`, as `DEVICE_KIND.json`: a mapping of `key_of` to the fields of `Tiles`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from pathlib import Path

from hisam_jax.errors import UserError
from hisam_jax.files import atomic_write
from hisam_jax.kernels.anchor_attention.core import Implementation, Inputs
from hisam_jax.kernels.anchor_attention.tiles import Sizes, Tiles


def tiles_for(implementation: Implementation, x: Inputs, kind: str) -> Tiles:
    """Tuned ones for these sizes on a kind of device, else the implementation's heuristics.

    Raises:
        UserError: a file of tuned tiles that cannot be read.
    """
    sizes = Sizes.of(x.q_BNTHD, x.anchor_k_BMGD)
    return tuned(file_of(kind)).get(key_of(implementation.name, sizes)) or implementation.tiles(sizes)


def key_of(name: str, sizes: Sizes) -> str:
    """What tiles are looked up by: batch and rule do not count, items and anchors by the next power of two."""
    items, anchors = (1 << max(n - 1, 0).bit_length() for n in (sizes.items, sizes.anchors))
    shape = f"tokens={sizes.tokens} group={sizes.heads // sizes.kv_heads} width={sizes.width} bytes={sizes.bytes}"
    return f"{name} items={items} anchors={anchors} {shape}"


def file_of(kind: str) -> Path:
    """Where tiles of a device kind are kept."""
    folder = os.environ.get("HISAM_TILES") or Path.home() / ".cache" / "hisam_jax" / "tiles"
    return Path(folder) / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', kind)}.json"


def tuned(file: Path) -> dict[str, Tiles]:
    """Key -> tiles, empty where there is no such file; read again when it changes.

    Raises:
        UserError: not a file that `save` wrote.
    """
    try:
        changed = file.stat().st_mtime_ns
    except OSError:
        return {}
    return _read(file, changed)


@functools.lru_cache(maxsize=8)
def _read(file: Path, changed: int) -> dict[str, Tiles]:
    try:
        return {key: Tiles(**fields) for key, fields in json.loads(file.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError, UserError) as error:
        raise UserError(
            f"not tuned tiles: {error}", path=file, expected="what autotune writes", hint="remove it, or tune again"
        ) from error


def save(file: Path, key: str, tiles: Tiles) -> None:
    """Adds one entry, or takes the place of the one that is there.

    Raises:
        UserError: as `tuned`.
    """
    known = {name: dataclasses.asdict(kept) for name, kept in tuned(file).items()} | {key: dataclasses.asdict(tiles)}
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, json.dumps(dict(sorted(known.items())), indent=1) + "\n")
