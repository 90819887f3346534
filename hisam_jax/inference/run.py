"""A trained run, loaded: what evaluate, recommend and later the service stand on."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from hisam_jax.errors import UserError
from hisam_jax.evaluation.baselines import popularity
from hisam_jax.evaluation.targets import Events, load_events
from hisam_jax.inference.histories import SHORTEST
from hisam_jax.inference.plain_scorer import PlainScorer
from hisam_jax.inference.scorer import Scorer
from hisam_jax.inference.scoring import HistoryReader
from hisam_jax.inference.transitions import Blended, Transitions
from hisam_jax.models.hmat import HMAT
from hisam_jax.models.registry import HEADS
from hisam_jax.remote import local
from hisam_jax.training.assembly import Assembly, assemble
from hisam_jax.training.checkpoints import load_params


def make_scorer(assembly: Assembly, params: Any, popularity_I: np.ndarray, shortest: int = SHORTEST) -> Scorer:
    """A scorer of these parameters over the assembly's catalogue; `shortest` as `Scorer` has it."""
    window, rows = assembly.configs.data.window, assembly.configs.evaluation.rows
    kind = Scorer if isinstance(assembly.model, HMAT) else PlainScorer
    return kind(assembly.model, params, assembly.catalog, assembly.trie, popularity_I, window, rows, shortest)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run's folder with everything that scoring needs; `workdir` is where it was loaded from, maybe a URL."""

    workdir: str | os.PathLike
    info: dict[str, Any]
    assembly: Assembly
    scorer: Scorer
    reader: HistoryReader
    events: Events

    @functools.cached_property
    def blended(self) -> Blended | None:
        """Retrieval beside item-to-item transitions where `evaluation.blend` asks for it; made when first read."""
        configs = self.assembly.configs
        if not configs.evaluation.blend or "retrieval" not in self.heads:
            return None
        transitions = Transitions.of(self.events, configs.data.validation_too)
        return Blended(self.scorer, transitions, configs.evaluation.blend)

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that were trained."""
        return tuple(name for name in HEADS if getattr(self.assembly.configs.model, name))

    def check_served(self) -> None:
        """Refuses a baseline, which only `evaluate` and `recommend` know.

        Raises:
            UserError: the run is no HMAT.
        """
        name = self.assembly.configs.architecture
        if name != "hmat":
            what = f"architecture {name!r} is a baseline, for `hisam evaluate` and `hisam recommend`"
            raise UserError(what, path=self.workdir, field="architecture", expected="'hmat'")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object of a run's folder.

    Raises:
        UserError: missing or not JSON.
    """
    if not path.is_file():
        raise UserError("no such file", path=path, expected=what, hint="train it with `hisam train`")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"not JSON ({error})", path=path, expected=what) from error


@functools.lru_cache(maxsize=1)
def _load(workdir: str | os.PathLike, folder: Path, _: int) -> Run:
    config = read_json(folder / "config.json", "the resolved config of a run")
    info = read_json(folder / "run.json", "the record of a run")
    assembly = assemble(info["dataset"], info["ids"], config)
    _check_identity(info["identity"], assembly, folder)
    params = load_params(folder, "best")
    events = load_events(assembly.dataset)
    reader = HistoryReader(assembly.dataset, assembly.configs.data.window)
    return Run(workdir, info, assembly, make_scorer(assembly, params, popularity(events)), reader, events)


def _check_identity(then: dict[str, Any], assembly: Assembly, workdir: Path) -> None:
    changed = assembly.differs_from(then)
    if changed:
        was, now = then.get(changed), assembly.identity().get(changed)
        raise UserError(
            f"the run was trained with another {changed}: {was!r}, now {now!r}",
            path=workdir / "run.json",
            expected="the dataset, IDs and config that the run was trained with",
        )


def load_run(workdir: str | os.PathLike, again: bool = False) -> Run:
    """Loads a run's best checkpoint with its dataset and IDs, each from a folder or URL; the last one loaded is kept.

    `again` reads it from its files even so.

    Raises:
        UserError: no run there, or its dataset or IDs are gone, torn or of another catalogue.
    """
    folder = local(workdir, "workdir", without=("tensorboard", "profile"))
    record = folder / "run.json"
    if again:
        _load.cache_clear()
    return _load(workdir, folder, record.stat().st_mtime_ns if record.is_file() else 0)
