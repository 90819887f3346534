"""What binds the parts of a release: their checksums, and checks that they are of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from hisam_jax.errors import UserError
from hisam_jax.files import sha256_file, sha256_of
from hisam_jax.inference.run import Run
from hisam_jax.remote import local
from hisam_jax.tokenizer.extension import check_tokenizer
from hisam_jax.training.checkpoints import Saved, describe, differences, saved_steps

BOUND = ("model", "split_checksum", "items_checksum", "ids_checksum")


def checksums(run: Run, ids: Path) -> dict[str, str]:
    """Part -> SHA-256: parameters, tokenizer, table of IDs, items, trie."""
    leaves = sorted(jax.tree_util.tree_leaves_with_path(run.scorer.params), key=lambda leaf: str(leaf[0]))
    parts = [part for path, leaf in leaves for part in (str(path), np.asarray(leaf))]
    trie = run.assembly.trie
    found = {
        "parameters": sha256_of(*parts),
        "ids": run.assembly.table.checksum,
        "items": run.info["identity"]["items_checksum"],
        "trie": sha256_of(*(np.asarray(leaf) for leaf in jax.tree.leaves(trie))),
    }
    files = [ids / name for name in ("tokenizer.json", "tokenizer.npz") if (ids / name).is_file()]
    return found | {f"tokenizer{file.suffix}": sha256_file(file) for file in files}


def check_bound(run: Run, tokenizer: Any) -> None:
    """Refuses a mixed release.

    Raises:
        UserError: checkpoints of another run in its folder, or a tokenizer that did not make the table.
    """
    folder = local(run.workdir, "workdir", without=("tensorboard", "profile"))
    if tokenizer is not None:
        check_tokenizer(run.assembly.table, tokenizer)
    for step in saved_steps(folder / "checkpoints"):
        saved = _described(folder / "checkpoints", step)
        then, now = ({name: part.get(name) for name in BOUND} for part in (saved.identity, run.info["identity"]))
        if differing := differences(then, now):
            raise UserError(
                f"a checkpoint of another run: {differing[0]}", path=saved.path, expected="the run's own checkpoints"
            )


def _described(folder: Path, step: int) -> Saved:
    try:
        return describe(folder, step)
    except Exception as error:
        raise UserError(f"unreadable checkpoint ({type(error).__name__}: {error})", path=folder / str(step)) from error
