"""Training alarms: a tokenizer that goes wrong says so at once, with the likely cause.

`Watch` looks at each row of metrics as it comes, and in the end at the codes that items were given. It only judges
numbers. A cause is named from what the rows and the settings show, not guessed from the symptom. All thresholds are
ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from hisam_jax.errors import UserError
from hisam_jax.tokenizer.alarm_causes import SAME_FEATURES, Evidence
from hisam_jax.tokenizer.base import Progress

NOT_FALLING = 0.99  # of the first reconstruction error, and of the mean item's, which is 1
TOLD_NATS = 0.3  # information between codes that a bound must not miss
MISSED = 3  # times that the bound may lie below it, as it is taken with dropout


@dataclasses.dataclass(frozen=True)
class AlarmConfig:
    """When the training of a tokenizer is reported as going wrong.

    Attributes:
        min_utilisation: share of a level's codes that must be in use.
        min_perplexity: exp of the entropy of a level's codes, as a share of its codes.
        after: share of training before which only what cannot mend itself counts: not finite, fallen to a point.
        strict: whether an alarm ends the run.
    """

    min_utilisation: float = 0.5
    min_perplexity: float = 0.1
    after: float = 0.2
    strict: bool = False

    def __post_init__(self):
        for name in ("min_utilisation", "min_perplexity", "after"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"value {getattr(self, name)}", field=f"alarms.{name}", expected="a share, 0 to 1")


@dataclasses.dataclass(frozen=True)
class Alarm:
    """One thing that went wrong: `kind`, the level, group or metric it is about, when (0: in the end), and why."""

    kind: str
    subject: str
    step: int
    value: float | None  # None where it is not finite
    found: str
    expected: str
    cause: str

    def line(self) -> str:
        """The alarm as one line."""
        when = f"step {self.step}" if self.step else "finished codes"
        return f"hisam: alarm: {when}: {self.subject}: {self.found}; expected {self.expected} ({self.cause})"

    def error(self) -> UserError:
        """The alarm as what ends a strict run."""
        when = f"at step {self.step}" if self.step else "of the finished codes"
        return UserError(f"{self.found} {when}", field=self.subject, expected=self.expected, hint=self.cause)


def say(alarm: Alarm) -> None:
    """Prints an alarm on stderr, above a bar where there is one."""
    tqdm.write(alarm.line(), file=sys.stderr)


class Watch:
    """Raises each alarm once. `raised` lists them; `report` is called with each as it comes.

    Args:
        config: thresholds.
        items: items that the tokenizer is fitted on.
        settings: the tokenizer's own settings, as evidence for causes.
        report: what to do with an alarm; with `strict` its error is raised after that.
    """

    def __init__(
        self,
        config: AlarmConfig,
        items: int,
        settings: Mapping[str, Any],
        report: Callable[[Alarm], None] = say,
    ):
        self._config, self._items, self._report = config, items, report
        self._evidence = Evidence(settings)
        self.raised: list[Alarm] = []

    def __call__(self, done: int, total: int, row: Mapping[str, float]) -> None:
        """Judges one row of metrics, `done` of `total` steps into training.

        Raises:
            UserError: the first alarm, if `strict`.
        """
        numbers = {name: float(value) for name, value in row.items() if isinstance(value, (int, float))}
        bad = [name for name, value in numbers.items() if not math.isfinite(value)]
        if bad:
            self.not_finite(done, bad)
            return
        self._evidence.add(numbers)
        if self._evidence.same_features():
            found = "nothing to rebuild, the error was 0 from the first step on"
            self._raise(Alarm("features", "reconstruction", done, 0.0, found, "features that differ", SAME_FEATURES))
            return  # all else follows from it
        self._judge_spread(done)
        if done >= self._config.after * total and done > 1:
            self._judge_use(done, numbers)
            self._judge_reconstruction(done, numbers)
            self._judge_information(done, numbers)

    def beside(self, progress: Progress) -> Progress:
        """A callback for `fit` that shows progress, then judges."""

        def both(done: int, total: int, row: Mapping[str, float]) -> None:
            progress(done, total, row)
            self(done, total, row)

        return both

    @contextlib.contextmanager
    def last_words(self) -> Iterator[None]:
        """Turns the `FloatingPointError` of a `fit` that broke off into a `UserError` with the likely cause."""
        try:
            yield
        except FloatingPointError as error:
            raise UserError(str(error), expected="finite numbers", hint=self._evidence.why_not_finite()) from error

    def not_finite(self, step: int, names: Sequence[str]) -> None:
        """Metrics that are not finite; what training cannot come back from."""
        found = f"{', '.join(names[:3])} not finite"
        self._raise(Alarm("not_finite", names[0], step, None, found, "finite numbers", self._evidence.why_not_finite()))

    def check_levels(self, levels: Sequence[Mapping[str, Any]]) -> None:
        """Judges the finished codes by the rows of `diagnostics.level_use`.

        Raises:
            UserError: the first alarm, if `strict`.
        """
        for row in levels:
            self._judge_level(0, row["name"], row["utilisation"], row["perplexity"], row["size"], row["items"])

    def _judge_spread(self, step: int) -> None:
        for group, least in self._evidence.points().items():
            value, top = (part[f"spread/{group}"] for part in (self._evidence.last, self._evidence.greatest))
            found = f"latents are a point (spread {value:.2g}, once {top:.2g})"
            cause = self._evidence.why_a_point(group)
            self._raise(Alarm("spread", group, step, value, found, f"at least {least:.2g}", cause))

    def _judge_use(self, step: int, row: Mapping[str, float]) -> None:
        for name, share in row.items():
            kind, _, level = name.partition("/")
            if kind == "used":
                size = self._evidence.greatest.get(f"perplexity/{level}", 0.0)
                self._judge_level(step, level, share, row.get(f"perplexity/{level}", size), size, self._items)

    def _judge_level(
        self,
        step: int,
        level: str,
        share: float,
        perplexity: float,
        size: float,
        items: int,
    ) -> None:
        """`size` codes; while training it is known as the greatest perplexity, as counts begin equal."""
        cause = self._evidence.why_unused(level, size, items)
        least = self._config.min_utilisation
        if share < least:
            found = f"{share:.0%} of its codes in use"
            self._raise(Alarm("utilisation", level, step, share, found, f"at least {least:.0%}", cause))
        least = self._config.min_perplexity * size
        if perplexity < least:
            found = f"perplexity {perplexity:.3g} of {size:.0f} codes"
            self._raise(Alarm("perplexity", level, step, perplexity, found, f"at least {least:.3g}", cause))

    def _judge_reconstruction(self, step: int, row: Mapping[str, float]) -> None:
        """An error that has not fallen, or not below the mean item's, which is 1."""
        if self._evidence.rows < 3 or "loss" not in row or "reconstruction" not in row:
            return
        value, first = row["reconstruction"], self._evidence.first["reconstruction"]
        limit = NOT_FALLING * min(first, 1.0)
        if value >= limit:
            found, expected = f"error {value:.3f}, {first:.3f} at first", f"below {limit:.3f}"
            cause = self._evidence.why_not_rebuilt()
            self._raise(Alarm("reconstruction", "reconstruction", step, value, found, expected, cause))

    def _judge_information(self, step: int, row: Mapping[str, float]) -> None:
        """A bound from above that lies below an independent estimate of less: vCLUB's q has gone stale."""
        if self._evidence.settings.get("mi_weight") == 0:
            return
        for name, told in row.items():
            kind, _, pair = name.partition("/")
            if kind != "mi_codes":
                continue
            a, b = (code.partition("/")[0] for code in pair.split("|"))
            bound = row.get(f"mi/{a}|{b}")
            if bound is not None and told > TOLD_NATS and MISSED * bound < told:
                cause = self._evidence.why_stale()
                found = f"bound of {bound:.2f} nats where codes alone share {told:.2f}"
                self._raise(Alarm("bound", f"mi/{a}|{b}", step, bound, found, f"at least {told:.2f} nats", cause))

    def _raise(self, alarm: Alarm) -> None:
        if any((one.kind, one.subject) == (alarm.kind, alarm.subject) for one in self.raised):
            return
        self.raised.append(alarm)
        self._report(alarm)
        if self._config.strict:
            raise alarm.error()
