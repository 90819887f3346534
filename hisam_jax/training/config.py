"""How a run trains: what a config file's `training` section holds."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from hisam_jax.config import check_least
from hisam_jax.errors import UserError
from hisam_jax.training.optimizer import OptimizerConfig

# Between a run and its continuation, perhaps on other devices: they decide nothing about a step but its rounding and,
# for parts of a batch, its dropout.
_MAY_CHANGE = ("max_minutes", "keep", "accumulate", "profile")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How long, how fast, and what is kept.

    Attributes:
        steps: updates at most; the learning rate's schedule spans them.
        seed: of the parameters and of each step's randomness.
        optimizer: see `OptimizerConfig`.
        log_every: steps to a line of `metrics.jsonl`, which holds means since the line before.
        save_every: steps to a checkpoint.
        evaluate_every: steps to an evaluation; 0 evaluates at the end only.
        keep: checkpoints kept, besides the best.
        max_minutes: of wall clock over all restarts, None for no limit. Reaching it depends on the machine.
        monitor: name of the evaluators' metric that decides the best checkpoint, None for none.
        mode: whether more or less of it is better.
        patience: evaluations without a better value before training stops; 0 never stops it.
        accumulate: parts of a batch that the devices take one after the other; divides the rows of each of them.
        profile: first and last step to trace into `workdir/profile`, for TensorBoard or Perfetto; empty for none.
    """

    steps: int = 1000
    seed: int = 0
    optimizer: OptimizerConfig = OptimizerConfig()
    log_every: int = 20
    save_every: int = 200
    evaluate_every: int = 0
    keep: int = 2
    max_minutes: float | None = None
    monitor: str | None = None
    mode: Literal["max", "min"] = "max"
    patience: int = 0
    accumulate: int = 1
    profile: tuple = ()

    def __post_init__(self) -> None:
        check_least(self, "training", steps=1, seed=0, log_every=1, save_every=1, evaluate_every=0, keep=1, patience=0)
        check_least(self, "training", accumulate=1)
        if self.profile and not (len(self.profile) == 2 and 0 <= self.profile[0] <= self.profile[1]):
            raise UserError(f"value {self.profile}", field="training.profile", expected="two steps, the first no later")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise UserError(f"value {self.max_minutes}", field="training.max_minutes", expected="more than 0, or None")

    def fixed(self) -> dict[str, Any]:
        """The fields that a run and its continuation must share."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _MAY_CHANGE}
