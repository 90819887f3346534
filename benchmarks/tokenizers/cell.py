"""One cell of `real`: a tokenizer fitted, one fixed HMAT trained on its codes, its test users scored.

    python -m benchmarks.tokenizers.cell FOLDER

A process of its own, so that two can run side by side on a core each; started again it goes on where it was killed.
FOLDER/spec.json says what to do; FOLDER/result.json and predictions.npz are what comes of it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from hisam_jax.config import load_config
from hisam_jax.data.pipeline import PipelineConfig, make_pipeline
from hisam_jax.evaluation.baselines import popularity
from hisam_jax.evaluation.targets import load_events, retrieval_targets, subset_of_users
from hisam_jax.files import atomic_write
from hisam_jax.inference import scoring
from hisam_jax.inference.run import make_scorer
from hisam_jax.inference.scoring import HistoryReader
from hisam_jax.models.config import HMATConfig
from hisam_jax.models.heads import make_objective
from hisam_jax.tokenizer.run import tokenize
from hisam_jax.training import loop
from hisam_jax.training.assembly import Assembly, EvaluationConfig, assemble, run_config
from hisam_jax.training.config import TrainingConfig
from hisam_jax.training.optimizer import OptimizerConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "tokenizer"
EVENTS_PER_STEP = 512
USERS_SEED = 0  # every cell scores the same users


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a cell is known by.

    Attributes:
        dataset: a prepared folder.
        tokenizer: resolved config, as JSON.
        steps, window: of the fixed model.
        users: test users that are scored, 0 for all.
        seed: of tokenizer and model.
    """

    dataset: str
    tokenizer: dict[str, Any]
    steps: int
    window: int
    users: int
    seed: int


def tokenizer_config(name: str, overrides: dict[str, str], seed: int) -> dict[str, Any]:
    """A config file with its overrides, as JSON-able values; collisions move to the next-nearest free code."""
    chosen = {"collisions": "next_nearest", "seed": str(seed)}
    return json.loads(load_config(CONFIGS / f"{name}.py", overrides | chosen).to_json())


def fixed_hmat(spec: Spec) -> ml_collections.ConfigDict:
    """The one model of all cells: an item is its codes and nothing else, no item-id and no features."""
    return run_config(
        seed=spec.seed,
        model=HMATConfig(width=64, layers=2, dropout=0.1, item_id=False, features=False),
        data=PipelineConfig(items_per_row=spec.window, rows=max(1, EVENTS_PER_STEP // spec.window), window=spec.window),
        training=TrainingConfig(
            steps=spec.steps,
            optimizer=OptimizerConfig(learning_rate=0.004, warmup_steps=spec.steps // 10),
            save_every=max(1, spec.steps // 4),
        ),
        evaluation=EvaluationConfig(),
    )


def run_cell(folder: Path) -> None:
    """Fits, trains, scores; what an earlier start finished is not done again."""
    spec = Spec(**json.loads((folder / "spec.json").read_text()))
    diagnosed = folder / "ids" / "diagnostics.json"
    if not diagnosed.is_file():
        tokenize(spec.dataset, _tuples(spec.tokenizer), folder / "ids")
    report, started = json.loads(diagnosed.read_text()), time.monotonic()
    assembly = assemble(spec.dataset, folder / "ids", fixed_hmat(spec))
    params = _train(assembly, folder / "run")
    trained = time.monotonic()
    atomic_write(folder / "predictions.npz", _scores(assembly, params, spec.users))
    kept = ("levels", "collision", "ami", "ami_joint", "ami_attributes", "probes", "cross_modal", "reconstruction")
    kept += ("seconds", "fit_seconds", "items", "train_items", "notes")
    result = {
        "diagnostics": {key: report[key] for key in kept if key in report},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "training_seconds": trained - started,
        "scoring_seconds": time.monotonic() - trained,
        "cpu_seconds": time.process_time(),
    }
    atomic_write(folder / "result.json", json.dumps(result, indent=1) + "\n")


def _train(assembly: Assembly, folder: Path) -> Any:
    """Parameters after the last step; nothing is judged on the way, which would be compiled for each tokenizer."""
    codes_IL = jnp.asarray(assembly.table.full_codes())
    loss_fn, init_fn = make_objective(assembly.model, assembly.catalog, codes_IL)
    state = loop.train(
        loss_fn,
        init_fn,
        lambda: make_pipeline(assembly.dataset, assembly.table.codes_IL, assembly.configs.data),
        assembly.configs.training,
        folder,
        identity=assembly.identity(),
    )
    return state.params


def _tuples(config: dict[str, Any]) -> ml_collections.ConfigDict:
    """JSON has no tuples, which is what sizes are."""

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: convert(part) for key, part in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return ml_collections.ConfigDict(convert(config))


def _scores(assembly: Assembly, params: Any, users: int) -> bytes:
    """Ranks of every target by both heads, as an .npz."""
    events, window = load_events(assembly.dataset), assembly.configs.data.window
    targets = subset_of_users(retrieval_targets(events, "test"), users, USERS_SEED)
    reader = HistoryReader(assembly.dataset, window)
    # Every history is padded to one length: the beam search is compiled once.
    scorer = make_scorer(assembly, params, popularity(events), shortest=window)
    arrays, beams = {"user": targets.user_T, "item": targets.item_T}, assembly.configs.evaluation.beams
    for head in scoring.LISTS:
        ranks = scoring.ranks_of(head, scorer, reader, targets, beams)
        arrays |= {f"{head}_masked": ranks.masked_T, f"{head}_unmasked": ranks.unmasked_T}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", str(Path(sys.argv[1]).absolute().parents[2] / "compiled"))
    run_cell(Path(sys.argv[1]))
