"""Per-target ranks and logits of a comparison's rows: what runs and baselines leave, read into one form."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hisam_jax.data.dataset import Dataset
from hisam_jax.errors import UserError
from hisam_jax.evaluation.baselines import BASELINES, score_baselines
from hisam_jax.evaluation.cold_start import GROUPS, groups
from hisam_jax.evaluation.oracle import ORACLE, oracle_scores
from hisam_jax.evaluation.retrieval import Ranks
from hisam_jax.evaluation.targets import load_events, ranking_targets, retrieval_targets
from hisam_jax.files import npz_bytes
from hisam_jax.inference import scoring
from hisam_jax.remote import write_results

TARGETS = "targets.npz"
PREDICTIONS = "predictions.npz"
OWN_ROWS = (*BASELINES, ORACLE)  # of every table that has what they need
LISTS = ("blend", "hybrid", *scoring.LISTS)
LOGITS = ("ranking", "request")  # of rated events: after all before each, or as candidates of one request a user


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """What is scored on a dataset, the same for every row; itself alone is equal to it, see `same`.

    Attributes:
        user_T, item_T: the retrieval targets.
        rated_E, label_E: users and labels of the rated events.
        of_T, of_E: group -> mask, those of `GROUPS`.
    """

    user_T: np.ndarray
    item_T: np.ndarray
    rated_E: np.ndarray
    label_E: np.ndarray
    of_T: Mapping[str, np.ndarray]
    of_E: Mapping[str, np.ndarray]

    def same(self, other: Frame) -> bool:
        """Whether both hold out the same events."""
        names = ("user_T", "item_T", "rated_E", "label_E")
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)

    def check(self, arrays: Mapping[str, np.ndarray], path: Path) -> None:
        """Refuses predictions for other targets.

        Raises:
            UserError: these are not this frame's.
        """
        for name, mine in (("user", self.user_T), ("item", self.item_T), ("label", self.label_E)):
            if not np.array_equal(arrays[name], mine):
                raise UserError("scores of other targets", path=path, field=name, hint="remove the cell's folder")


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What one run gave: list -> ranks of the targets; each of `LOGITS` that it has -> those of the rated events.

    Told apart by identity, which is what resamples of a run are kept by.
    """

    ranks: Mapping[str, Ranks]
    logits: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def is_frame(file: Path) -> bool:
    """Whether `targets.npz` is there, and was written with the baselines, and the oracle, that there are today."""
    if not file.is_file():
        return False
    with np.load(file) as held:
        return "baselines" in held and held["baselines"].tolist() == list(OWN_ROWS)


def save_frame(dataset: str | os.PathLike, out: str | os.PathLike, seed: int = 0) -> None:
    """Writes `targets.npz` and `baselines.npz` of a dataset: what is scored, the simple scores, a shop's oracle."""
    held = Dataset.load(dataset)
    events = load_events(held)
    targets, rated = retrieval_targets(events, "test"), ranking_targets(events, "test")
    frame = {
        "baselines": np.array(OWN_ROWS),
        "user": targets.user_T,
        "item": targets.item_T,
        "rated": rated.user_E,
        "label": rated.label_E,
    }
    frame |= {f"T/{name}": mask for name, mask in groups(targets.cold).items()}
    frame |= {f"E/{name}": mask for name, mask in groups(rated.cold).items()}
    found = score_baselines(events, rated, targets, seed)
    simple = {f"{name}/masked": ranks.masked_T for name, ranks in found.ranks.items()}
    simple |= {f"{name}/unmasked": ranks.unmasked_T for name, ranks in found.ranks.items()}
    simple |= {f"{name}/ranking": values for name, values in found.scores.items()}
    simple |= {f"{name}/request": values for name, values in found.requests.items()}
    if (stars_E := oracle_scores(held, rated)) is not None:
        simple |= {f"{ORACLE}/{kind}": stars_E for kind in (LOGITS if rated.several else LOGITS[:1])}
    write_results(out, {"baselines.npz": npz_bytes(simple), TARGETS: npz_bytes(frame)})


def load_frame(folder: Path) -> tuple[Frame, dict[str, Scores]]:
    """`(frame, baseline -> scores)` of the folder that `save_frame` wrote."""
    with np.load(folder / TARGETS) as file:
        of = [{name: file[f"{kind}/{name}"] for name in GROUPS} for kind in "TE"]
        frame = Frame(file["user"], file["item"], file["rated"], file["label"], *of)
    with np.load(folder / "baselines.npz") as file:
        names = dict.fromkeys(name.split("/")[0] for name in file.files)
        return frame, {name: _baseline(file, name) for name in names}


def _baseline(file: Mapping[str, np.ndarray], name: str) -> Scores:
    ranks = {}
    if f"{name}/masked" in file:
        ranks["retrieval"] = Ranks(file[f"{name}/masked"], file[f"{name}/unmasked"])
    logits = {kind: file[f"{name}/{kind}"] for kind in LOGITS if f"{name}/{kind}" in file}
    if f"{name}/logits" in file:  # of a comparison from before requests
        logits["ranking"] = file[f"{name}/logits"]
    return Scores(ranks, logits)


def load_scores(folder: Path, frame: Frame) -> Scores:
    """What `hisam evaluate` left in a run's folder.

    Raises:
        UserError: of other targets than the frame's.
    """
    with np.load(folder / PREDICTIONS) as file:
        frame.check(file, folder / PREDICTIONS)
        lists = [name for name in LISTS if f"{name}_masked" in file]
        ranks = {name: Ranks(file[f"{name}_masked"], file[f"{name}_unmasked"]) for name in lists}
        return Scores(ranks, {kind: file[f"{kind}_logits"] for kind in LOGITS if f"{kind}_logits" in file})
