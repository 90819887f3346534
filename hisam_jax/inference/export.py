"""`hisam export`: a run as StableHLO for CPUs, GPUs and TPUs at once, with its items, IDs and a loader of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from hisam_jax.errors import UserError
from hisam_jax.files import atomic_directory, sha256_file, sha256_of
from hisam_jax.inference import loader, steps
from hisam_jax.inference.run import Run, load_run
from hisam_jax.models.blocks import Cache
from hisam_jax.models.catalog import Catalog
from hisam_jax.models.hmat import HMAT
from hisam_jax.paths import output_path
from hisam_jax.tokenizer.trie import Trie

PLATFORMS = ("cpu", "cuda", "tpu")
TRIE = ("codes", "starts", "reach")
SHARING = 4  # of the items that share an ID, how many are returned
Function = Callable[..., Any]


def export(workdir: str | os.PathLike, out: str | os.PathLike, k: int = 100, beams: int = 50) -> dict[str, Any]:
    """Writes the release and returns its manifest.

    Args:
        workdir: a trained run; its best checkpoint is exported.
        out: a folder; whole or absent.
        k: recommendations of a user, at most.
        beams: of the generation.

    Raises:
        UserError: no run, or `out` cannot be written.
    """
    for field, value in (("k", k), ("beams", beams)):
        if value < 1:
            raise UserError(f"value {value}", field=field, expected="1 or more")
    out = output_path(out, "out")
    run = load_run(workdir)
    run.check_served()
    model, arrays = _servable(run)
    functions = _functions(model, run.assembly.trie, min(k, run.scorer.catalog.items), beams)
    with atomic_directory(out, holds="manifest.json") as folder:
        for name, (function, arguments) in functions.items():
            (folder / f"{name}.stablehlo").write_bytes(_exported(function, arrays, arguments(run.scorer.window)))
        dtypes = _write_arrays(folder / "arrays.npz", arrays)
        items = run.assembly.dataset.items["item_id"].to_list()
        (folder / "items.json").write_text(json.dumps(items, ensure_ascii=False) + "\n")
        shutil.copyfile(loader.__file__, folder / "load.py")
        files = {file.name: sha256_file(file) for file in sorted(folder.iterdir())}
        manifest = {
            "release": sha256_of(json.dumps([files, run.assembly.identity()], sort_keys=True))[:16],
            "items": len(items),
            "window": run.scorer.window,
            "ways": [name for name in ("retrieval", "generation") if name in functions],
            "functions": sorted(functions),
            "platforms": list(PLATFORMS),
            "identity": run.assembly.identity(),
            "jax": jax.__version__,
            "dtypes": dtypes,
            "files": files,
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _servable(run: Run) -> tuple[HMAT, dict[str, Any]]:
    """The model with attention that every platform has, and all that its functions read."""
    config = dataclasses.replace(run.assembly.configs.model, remat="none")
    config = dataclasses.replace(config, attention="xla" if config.anchors else config.attention)
    catalog, trie = run.scorer.catalog, run.scorer.trie
    levels = [(part, level, x) for part in TRIE for level, x in enumerate(getattr(trie, part))]
    arrays = {
        "params": run.scorer.params,
        "catalog": {name: getattr(catalog, name) for name in ("codes_IL", "features", "trained_I", "frequency_I")},
        "popularity": run.scorer.popularity_I,
        "trie": {"item_order": trie.item_order} | {f"{part}_{level}": x for part, level, x in levels},
    }
    if config.retrieval:
        arrays["vectors"] = run.scorer.item_vectors
    return run.assembly.model.clone(config=config), jax.tree.map(np.asarray, arrays)


def _functions(model: HMAT, like: Trie, k: int, beams: int) -> dict[str, tuple[Function, Callable[[int], tuple]]]:
    """Name -> the function of `(arrays, ...)`, and shapes of its other arguments for a window."""
    c = model.config
    tokens = 1 if c.anchors else model.slots

    def batch(window: int, rows: str = "b") -> dict[str, Any]:
        shape = jax_export.symbolic_shape(f"{rows}, {window}")
        made = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in ("item", "action", "segment")}
        return made | {"gap": jax.ShapeDtypeStruct(shape, jnp.float32)}

    def state(window: int, items: int = 0, width: str = "") -> tuple:
        scope = jax_export.SymbolicScope()
        rows = jax_export.symbolic_shape("b", scope=scope)
        kept = (c.layers, *rows, window * tokens, c.kv_heads, c.head_width)
        shapes = {
            "k": jax.ShapeDtypeStruct(kept, c.compute_dtype),
            "v": jax.ShapeDtypeStruct(kept, c.compute_dtype),
            "index": jax.ShapeDtypeStruct((*rows, window * tokens), jnp.int32),
            "read": jax.ShapeDtypeStruct((*rows, c.width), jnp.float32),
            "items": jax.ShapeDtypeStruct(rows, jnp.int32),
        }
        if width:
            candidates = jax_export.symbolic_shape(width, scope=scope)
            return shapes, jax.ShapeDtypeStruct((*rows, *candidates), jnp.int32)
        return shapes, jax.ShapeDtypeStruct((*rows, items), jnp.bool_)

    def read(arrays, batch):
        batch = {**batch, "codes": arrays["catalog"]["codes_IL"][batch["item"]]}
        read_BD, cache = steps.read_histories(model, arrays["params"], Catalog(**arrays["catalog"]), batch)
        items_B = (batch["segment"] > 0).sum(1, dtype=jnp.int32)
        return {"k": cache.k, "v": cache.v, "index": cache.index_BM, "read": read_BD, "items": items_B}

    def retrieval(arrays, state, allowed_BI):
        read_BD, items_B, popularity_I = state["read"], state["items"], arrays["popularity"]
        return steps.retrieve(
            model, arrays["params"], arrays["vectors"], popularity_I, read_BD, items_B, allowed_BI, k=k
        )

    def generation(arrays, state, allowed_BI):
        return steps.generate_items(
            model, arrays["params"], _trie(arrays["trie"], like), arrays["popularity"], _cache(state), state["read"],
            state["items"], allowed_BI, beams=beams, k=k, sharing=SHARING,
        )  # fmt: skip

    def rank(arrays, state, item_BC):
        gap_B = jnp.zeros_like(state["items"], jnp.float32)
        return steps.click_logits(
            model, arrays["params"], Catalog(**arrays["catalog"]), _cache(state), state["items"], item_BC, gap_B
        )

    found: dict[str, tuple[Function, Callable[[int], tuple]]] = {"read": (read, lambda window: (batch(window),))}
    if c.retrieval:
        found["retrieval"] = retrieval, lambda window: state(window, len(like.item_order))
    if c.generation:
        found["generation"] = generation, lambda window: state(window, len(like.item_order))
    if c.ranking:
        found["rank"] = rank, lambda window: state(window, width="c")
    return found


def _cache(state: Mapping[str, jax.Array]) -> Cache:
    return Cache(state["k"], state["v"], state["index"])


def _trie(arrays: Mapping[str, jax.Array], like: Trie) -> Trie:
    levels = range(len(like.sizes))
    parts = {part: tuple(arrays[f"{part}_{level}"] for level in levels) for part in TRIE}
    return like.replace(item_order=arrays["item_order"], **parts)


def _exported(function: Function, arrays: Any, arguments: tuple) -> bytes:
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
    return bytes(jax_export.export(jax.jit(function), platforms=PLATFORMS)(shapes, *arguments).serialize())


def _write_arrays(file: Path, arrays: Any) -> dict[str, str]:
    """An npz of slash-separated names; the dtypes of those that numpy cannot name."""
    flat, dtypes = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        name = "/".join(str(key.key) for key in path)
        if leaf.dtype == jnp.bfloat16:
            leaf, dtypes[name] = leaf.view(np.uint16), "bfloat16"
        flat[name] = leaf
    np.savez(file, **flat)
    return dtypes
