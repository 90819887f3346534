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
from hisam_jax.tokenizer.base import Progress

COLLAPSED = 1e-4  # spread that is a point, on the unit scale of latents
SHRUNK = 0.01  # or this share of the greatest that it was
DRAWN = 0.2  # of the spread or the commitment that was: latents have drawn together
NOTHING = 1e-8  # reconstruction error of features that are all 0 once standardised
NOT_FALLING = 0.99  # of the first reconstruction error
TOLD_NATS = 0.3  # information between codes that a bound must not miss
STEEP = 100.0  # norm of gradients that no step of a sound run has
HEAVY = 1e-3  # learning rate times weight decay that halves weights within 700 steps
FAST = 0.02  # learning rate that these networks cannot take
SWAMPS = 10  # times another weighted loss
SAME_FEATURES = "likely cause: the features of all items are the same"
CROWDED = 4  # training items for each code, below which codes cannot all be learnt


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
        self._config, self._items, self._settings, self._report = config, items, settings, report
        self._rows = 0
        self._first: dict[str, float] = {}
        self._greatest: dict[str, float] = {}
        self._last: dict[str, float] = {}
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
        self._rows += 1
        for name, value in numbers.items():
            self._first.setdefault(name, value)
            self._greatest[name] = max(value, self._greatest.get(name, value))
        self._last = numbers
        self._judge_features(done, numbers)
        self._judge_spread(done, numbers)
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
            raise UserError(str(error), expected="finite numbers", hint=self._why_not_finite()) from error

    def not_finite(self, step: int, names: Sequence[str]) -> None:
        """Metrics that are not finite; what training cannot come back from."""
        found = f"{', '.join(names[:3])} not finite"
        self._raise(Alarm("not_finite", names[0], step, None, found, "finite numbers", self._why_not_finite()))

    def check_levels(self, levels: Sequence[Mapping[str, Any]]) -> None:
        """Judges the finished codes by the rows of `diagnostics.level_use`.

        Raises:
            UserError: the first alarm, if `strict`.
        """
        for row in levels:
            self._judge_level(0, row["name"], row["utilisation"], row["perplexity"], row["size"], row["items"], {})

    def _judge_features(self, step: int, row: Mapping[str, float]) -> None:
        if "loss" in row and self._rows == 1 and row.get("reconstruction", 1.0) < NOTHING:
            found = "nothing to rebuild, the error was 0 from the first step on"
            self._raise(Alarm("features", "reconstruction", step, 0.0, found, "features that differ", SAME_FEATURES))

    def _judge_spread(self, step: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            kind, _, group = name.partition("/")
            if kind != "spread" or any(alarm.kind == "features" for alarm in self.raised):
                continue
            top = self._greatest[name]
            if value < COLLAPSED or value < SHRUNK * top:
                found = f"latents are a point (spread {value:.2g}, once {top:.2g})"
                expected = f"at least {max(COLLAPSED, SHRUNK * top):.2g}"
                self._raise(Alarm("spread", group, step, value, found, expected, self._why(group)))

    def _judge_use(self, step: int, row: Mapping[str, float]) -> None:
        for name, share in row.items():
            kind, _, level = name.partition("/")
            if kind == "used":
                size = self._greatest.get(f"perplexity/{level}", 0.0)
                self._judge_level(step, level, share, row.get(f"perplexity/{level}", size), size, self._items, row)

    def _judge_level(
        self,
        step: int,
        level: str,
        share: float,
        perplexity: float,
        size: float,
        items: int,
        row: Mapping[str, float],
    ) -> None:
        """`size` codes; while training it is known as the greatest perplexity, as counts begin equal."""
        cause = self._why_unused(level, size, items, row)
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
        if self._rows < 3 or "loss" not in row or "reconstruction" not in row:
            return
        value, first = row["reconstruction"], self._first["reconstruction"]
        limit = NOT_FALLING * min(first, 1.0)
        if value >= limit and first > NOTHING:
            found, expected = f"error {value:.3f}, {first:.3f} at first", f"below {limit:.3f}"
            cause = self._why_not_rebuilt(row)
            self._raise(Alarm("reconstruction", "reconstruction", step, value, found, expected, cause))

    def _judge_information(self, step: int, row: Mapping[str, float]) -> None:
        """A bound from above that lies below an independent estimate of less: vCLUB's q has gone stale."""
        if self._settings.get("mi_weight") == 0:
            return
        for name, told in row.items():
            kind, _, pair = name.partition("/")
            if kind != "mi_codes":
                continue
            a, b = (code.partition("/")[0] for code in pair.split("|"))
            bound = row.get(f"mi/{a}|{b}")
            if bound is not None and told > TOLD_NATS and bound < told / 3:
                steps, rate = self._settings.get("mi_steps"), self._settings.get("mi_learning_rate")
                cause = f"likely cause: vCLUB's q is stale; raise mi_steps ({steps}) or mi_learning_rate ({rate})"
                found = f"bound of {bound:.2f} nats where codes alone share {told:.2f}"
                self._raise(Alarm("bound", f"mi/{a}|{b}", step, bound, found, f"at least {told:.2f} nats", cause))

    def _points(self, row: Mapping[str, float]) -> list[str]:
        """Groups whose latents are a point."""
        spreads = {name: value for name, value in row.items() if name.startswith("spread/")}
        limit = {name: max(COLLAPSED, SHRUNK * self._greatest.get(name, 0.0)) for name in spreads}
        return [name.removeprefix("spread/") for name, value in spreads.items() if value < limit[name]]

    def _fallen(self, name: str, share: float) -> bool:
        """Whether a metric is below a share of the greatest that it was."""
        return name in self._last and self._last[name] < share * self._greatest[name]

    def _why_not_finite(self) -> str:
        rate, norm = self._settings.get("learning_rate"), self._greatest.get("gradient_norm", 0.0)
        if norm > STEEP:
            return f"likely cause: gradients had grown to {norm:.3g}; lower learning_rate ({rate})"
        return f"likely cause: learning_rate ({rate}) too high, or outliers in the features"

    def _why(self, group: str) -> str:
        """Why the latents of a group are all the same."""
        begun = {name.partition("/")[2]: v for name, v in self._first.items() if name.startswith("spread/")}
        if max(begun.values(), default=1.0) < COLLAPSED:
            return SAME_FEATURES
        if begun.get(group, 1.0) < COLLAPSED:
            return f"likely cause: the features that {group} stands for are the same in all items"
        if steep := self._why_steep():
            return steep
        weights = {name: self._settings.get(f"{name}_weight") for name in ("commitment", "alignment", "reconstruction")}
        pulls = {name: weight * self._first.get(name, 0.0) for name, weight in weights.items() if weight}
        rebuild = pulls.pop("reconstruction", 0.0)
        swamps = max(pulls, key=pulls.get, default="commitment")
        how = "swamps" if pulls.get(swamps, 0.0) > SWAMPS * rebuild else "is too much for"
        rival = f"reconstruction_weight ({weights['reconstruction']})"
        return f"likely cause: {swamps}_weight ({weights[swamps]}) {how} {rival}"

    def _why_steep(self) -> str | None:
        """What of the optimiser's settings no network can take, if anything."""
        rate, decay = self._settings.get("learning_rate"), self._settings.get("weight_decay")
        norm = self._greatest.get("gradient_norm", 0.0)
        if norm > STEEP or (rate is not None and rate > FAST):
            return f"likely cause: learning_rate ({rate}) too high, with gradients of up to {norm:.3g}"
        if rate is not None and decay is not None and rate * decay > HEAVY:
            return f"likely cause: weight_decay ({decay}) takes the weights to 0 at a learning_rate of {rate}"
        return None

    def _why_not_rebuilt(self, row: Mapping[str, float]) -> str:
        weight, rate = (self._settings.get(name) for name in ("reconstruction_weight", "learning_rate"))
        if weight == 0:
            return "likely cause: reconstruction_weight is 0"
        if points := self._points(row):
            return self._why(points[0])
        tuning = f"likely cause: reconstruction_weight ({weight}) too low or learning_rate ({rate}) unfit"
        return self._why_steep() or tuning

    def _why_unused(self, level: str, size: float, items: int, row: Mapping[str, float]) -> str:
        """Why codes of a level go unused."""
        if points := self._points(row):
            return self._why(points[0])
        if known := [alarm for alarm in self.raised if alarm.kind in ("features", "spread")]:
            return known[-1].cause
        group = level.partition("/")[0]
        if any(self._fallen(name, DRAWN) for name in (f"spread/{group}", "commitment")):
            return self._why(group)
        if items < CROWDED * size:
            return f"likely cause: too few items, {items} for {size:.0f} codes; make the level smaller"
        if self._settings.get("dead_threshold") == 0:
            return "likely cause: unused codes are not re-seeded (dead_threshold is 0)"
        if self._settings.get("codebooks") == "gradient":
            return "likely cause: codes learnt by gradient lag behind; codebooks = 'ema' follows them"
        return "likely cause: many items alike in this level; a smaller level tells them apart as well"

    def _raise(self, alarm: Alarm) -> None:
        if any((one.kind, one.subject) == (alarm.kind, alarm.subject) for one in self.raised):
            return
        self.raised.append(alarm)
        self._report(alarm)
        if self._config.strict:
            raise alarm.error()
