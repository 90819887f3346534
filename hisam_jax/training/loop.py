"""The loop: evaluate -> save -> next batch -> step -> log, in the one order that makes a restart exact."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from hisam_jax.data.pipeline import BatchIterator
from hisam_jax.distributed import agree, is_main
from hisam_jax.errors import UserError
from hisam_jax.progress import progress_bar
from hisam_jax.training import checkpoints
from hisam_jax.training.config import TrainingConfig
from hisam_jax.training.leaving import Leaving
from hisam_jax.training.metrics import Averages, MetricsLog, MetricsReader
from hisam_jax.training.optimizer import make_optimizer, make_schedule
from hisam_jax.training.placement import Placement
from hisam_jax.training.profile import Profile
from hisam_jax.training.state import Batch, InitFn, LossFn, Params, TrainState, init_state, make_train_step
from hisam_jax.training.watching import Clock, Cost, Watch

Evaluator = Callable[[Params], Mapping[str, float]]
SIGTERM_EXIT = 128 + signal.SIGTERM
_HEALTH = ("loss", "grad_norm", "update_norm")


def train(
    loss_fn: LossFn,
    init_fn: InitFn,
    make_pipeline: Callable[[], Iterable[Mapping[str, np.ndarray]]],
    config: TrainingConfig,
    workdir: str | os.PathLike,
    *,
    evaluators: Sequence[Evaluator] = (),
    on_step: Callable[[int, Mapping[str, float]], None] | None = None,
    on_begin: Callable[[], None] | None = None,
    identity: Mapping[str, Any] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    frozen: Sequence[Any] = (),
    totals: Callable[[Batch], Batch] = dict,
    cost: Cost | None = None,
) -> TrainState:
    """Trains into `workdir` from its newest checkpoint, or from the start; the same arguments give the same result.

    Args:
        loss_fn: `(params, batch, key, *frozen) -> (loss, metrics)`, pure.
        init_fn: `(key, batch, *frozen) -> params`.
        make_pipeline: an iterable of this process's rows of batches; its iterator has `get_state` and `set_state`, and
            its `identity()`, where it has one, is recorded.
        config: see `TrainingConfig`.
        workdir: gets `checkpoints/`, `metrics.jsonl` and `tensorboard/`.
        evaluators: `params -> metrics`, called by every process with parameters on its default device; they may not
            keep them, as the next step takes their memory.
        on_step: called with each step and its metrics, one step late.
        on_begin: called once before the first step, when the checkpoints in `workdir` are known to be this run's.
        identity: JSON that a checkpoint must share to be continued: model config, data and ID checksums.
        mesh: devices of all processes, None for the default one.
        frozen: trees of host arrays that every step reads, split by rows over the mesh.
        totals: see `make_train_step`.
        cost: what a batch costs, for tokens a second and model FLOP utilisation.

    Raises:
        UserError: a checkpoint of another configuration, a loss or gradient that is not finite, a full disk, an
            unknown `monitor`.
        SystemExit: 143 after SIGTERM, with everything saved.
    """
    if config.monitor is not None and not evaluators:
        raise UserError(f"value {config.monitor!r}, but nothing is evaluated", field="training.monitor")
    pipeline = make_pipeline()
    whole_identity = {"training": config.fixed(), **dict(identity or {})}
    if hasattr(pipeline, "identity"):
        whole_identity["data"] = pipeline.identity()
    tx = make_optimizer(config.optimizer, config.steps)
    train_step = jax.jit(make_train_step(loss_fn, tx, config.accumulate, totals), donate_argnums=0)
    placement = Placement(mesh, frozen)
    with _closing(pipeline) as examples:
        batch = next(examples)
    with _sigterm() as terminated, _closing(pipeline) as iterator:
        run = _Run(
            config=config,
            workdir=Path(workdir),
            train_step=train_step,
            evaluators=evaluators,
            on_step=on_step,
            identity=whole_identity,
            iterator=iterator,
            terminated=terminated,
            placement=placement,
            watch=Watch(cost, placement.share),
            profile=Profile(config.profile, Path(workdir) / "profile"),
        )
        run.begin(partial(init_state, init_fn, tx, config.seed), batch)
        if on_begin:
            on_begin()
        with contextlib.closing(run.log), contextlib.closing(run.bar), contextlib.ExitStack() as at_exit:
            at_exit.callback(run.profile.end)
            at_exit.callback(run.settle)  # whatever ends the run, the checkpoint under way is finished first
            return run.loop()


@dataclasses.dataclass
class _Memory:
    """What a checkpoint keeps of the loop beside the state, as JSON."""

    seconds: float = 0.0
    averages: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    logged_step: int = 0
    evaluated_step: int = 0
    best_step: int | None = None
    best_value: float | None = None  # its sign turned where less is better
    stale: int = 0  # evaluations since the best
    stopped: str | None = None  # why training ended for good before its last step


@dataclasses.dataclass
class _Run:
    """The mutable middle of `train`."""

    config: TrainingConfig
    workdir: Path
    train_step: Callable[..., Any]
    evaluators: Sequence[Evaluator]
    on_step: Callable[[int, Mapping[str, float]], None] | None
    identity: Mapping[str, Any]
    iterator: BatchIterator
    terminated: threading.Event
    placement: Placement
    watch: Watch
    profile: Profile

    def __post_init__(self) -> None:
        self.folder = self.workdir / "checkpoints"
        self.saving: checkpoints.Saving | None = None
        self.schedule = make_schedule(self.config.optimizer, self.config.steps)
        self.pending: tuple[Mapping[str, jax.Array], int] | None = None  # metrics still on the device, and items

    def begin(self, init: Callable[[Mapping[str, np.ndarray]], TrainState], batch: Mapping[str, np.ndarray]) -> None:
        """Restores or initialises the state and opens the log behind its step."""
        batch = self.placement.batch(batch)
        restored = checkpoints.restore(self.folder, self.identity, self.placement.shapes(init, batch))
        if restored:
            self.iterator.set_state(restored[1].positions)
        self.state = restored[0] if restored else self.placement.call(jax.jit(init), batch)
        self.memory = _Memory(**restored[1].memory) if restored else _Memory()
        self.step = int(self.state.step)
        self.saved_step = self.step if restored else -1
        self.workdir.mkdir(parents=True, exist_ok=True)
        self.log = MetricsLog(self.workdir, self.step) if is_main() else MetricsReader(self.workdir, self.step)
        if self.log.last_step > self.memory.logged_step:  # the last line of a run that ended on a saved step
            self.memory.logged_step, self.memory.averages = self.log.last_step, {}
        self.averages, self.clock = Averages(self.memory.averages), Clock(self.memory.seconds)
        self.compiled, self.items = False, 0
        self.leaving = Leaving(self.terminated, self.step)
        self.bar = progress_bar(self.config.steps, "training", unit="step")
        self.bar.initial = self.bar.n = self.step

    def loop(self) -> TrainState:
        """Steps until there is a reason to stop; ends evaluated and saved."""
        while not self._at_the_end():
            self._evaluate_and_save()
            if self.memory.stopped is not None or self.leaving.behind(self.step):
                break
            before = time.monotonic()
            batch = next(self.iterator, None)
            self.watch.waited(time.monotonic() - before)
            if self._ended(batch is None):
                self.memory.stopped = "end of data"
            else:
                self._step(batch)
        if self.leaving.behind(self.step):
            self._leave()
        self._evaluate_and_save(final=True)
        self.settle()
        return self.state

    def _ended(self, here: bool) -> bool:
        finite = jax.process_count() > 1 and self.identity.get("data", {}).get("epochs") is not None
        return agree(here) if finite else here

    def _at_the_end(self) -> bool:
        limit = self.config.max_minutes
        out_of_time = limit is not None and self.clock.seconds() >= 60 * limit
        if limit is not None and jax.process_count() > 1:
            out_of_time = agree(out_of_time)
        return self.step >= self.config.steps or out_of_time or self.memory.stopped is not None

    def _step(self, batch: Mapping[str, np.ndarray]) -> None:
        """Dispatches a step, then reads the metrics of the one before, so that the device never waits for us."""
        self.profile.before(self.step)
        with contextlib.nullcontext() if self.compiled else self.pause():  # compiling is no training pace
            self.state, metrics = self.placement.call(self.train_step, self.state, self.placement.batch(batch))
        self.compiled = True
        self._fetch()
        if self.step % self.config.log_every == 0:
            self._write_line(self.step)
        self.step += 1
        held = self.watch.dispatched(batch)
        metrics = {**metrics, "padding": 1 - held / np.size(batch["segment"])}
        metrics |= {"flops": self.watch.step_flops} if self.watch.step_flops else {}
        self.pending = metrics, self.placement.share * held

    def _fetch(self) -> None:
        """Brings the pending metrics home and stops on what is not finite."""
        if self.pending is None:
            return
        (metrics, items), self.pending = self.pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in _HEALTH:
            if not math.isfinite(values[name]):
                raise self._diverged(name, values[name])
        self.watch.finished()
        self.averages.add(values)
        self.items += items
        self.bar.update()
        if self.on_step:
            self.on_step(self.step, values)

    def _diverged(self, name: str, value: float) -> UserError:
        self.settle()
        steps = checkpoints.saved_steps(self.folder)
        return UserError(
            f"{name} became {value} at step {self.step}",
            path=self.workdir,
            field="training.optimizer.learning_rate",
            expected="a finite loss",
            hint=f"last good checkpoint: {f'step {steps[-1]}' if steps else 'none'}; lower the learning rate, now "
            f"{self.config.optimizer.learning_rate}, or optimizer.clip_norm, and train into a new workdir",
        )

    def _evaluate_and_save(self, final: bool = False) -> None:
        every, step = self.config.evaluate_every, self.step
        evaluate = self.evaluators and step > self.memory.evaluated_step and (final or (every and step % every == 0))
        save = step != self.saved_step and (final or (step > 0 and step % self.config.save_every == 0))
        if not (evaluate or save or final):
            return
        self._fetch()
        results = self._evaluate() if evaluate else {}
        if results or final or step % self.config.log_every == 0:
            self._write_line(step, results)
        if evaluate and final:
            self.saved_step, save = -1, True  # a checkpoint made here before the evaluation does not know of it
        if save or self.memory.best_step == step != self.saved_step or self.memory.stopped:
            self._save()

    def _evaluate(self) -> dict[str, float]:
        results: dict[str, float] = {}
        with self.pause():
            params = self.placement.local(self.state.params)
            for evaluator in self.evaluators:
                results |= {name: float(value) for name, value in evaluator(params).items()}
        self.memory.evaluated_step = self.step
        if self.config.monitor is not None:
            self._judge(results)
        return results

    def _judge(self, results: Mapping[str, float]) -> None:
        """Remembers the best step so far, and the reason to stop once patience is at its end."""
        monitor, memory = self.config.monitor, self.memory
        if monitor not in results:
            raise UserError(f"value {monitor!r}", field="training.monitor", expected=f"one of {', '.join(results)}")
        value = results[monitor] if self.config.mode == "max" else -results[monitor]
        if math.isfinite(value) and (memory.best_value is None or value > memory.best_value):
            memory.best_value, memory.best_step, memory.stale = value, self.step, 0
            return
        memory.stale += 1
        if 0 < self.config.patience <= memory.stale:
            memory.stopped = f"no better {monitor} in {memory.stale} evaluations"

    def _write_line(self, step: int, evaluation: Mapping[str, float] | None = None) -> None:
        means = self.averages.take()
        if step <= self.memory.logged_step or not means:
            return
        self.memory.logged_step = step
        pace = self.items / max(self.clock.lap(), 1e-9)
        self.items = 0
        line = {"loss": means.pop("loss"), "items_per_second": pace, "seconds": self.clock.seconds()}
        line |= {"learning_rate": float(self.schedule(step - 1)), **self.watch.take()}
        self.log.write(step, {**line, **means, **(evaluation or {})})
        self.bar.set_postfix({"loss": f"{line['loss']:.4g}", "items/s": f"{pace:,.0f}"}, refresh=False)

    def _save(self) -> None:
        if self.step == self.saved_step:
            return
        self.settle()
        self.memory.seconds, self.memory.averages = self.clock.seconds(), self.averages.state()
        with self.pause():
            self.saving = checkpoints.save(
                self.folder,
                self.state,
                self.placement.gather(self.iterator.get_state()),
                self.identity,
                dataclasses.asdict(self.memory),
                keep=self.config.keep,
                best_step=self.memory.best_step,
            )
        self.saved_step = self.step

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time that is not of a step."""
        with self.clock.pause():
            yield
        self.watch.paused()

    def settle(self) -> None:
        """Waits for the checkpoint under way."""
        if self.saving is not None:
            saving, self.saving = self.saving, None
            with self.pause():
                saving.finish()

    def _leave(self) -> NoReturn:
        """Saves where it stands and exits, as one asked to by SIGTERM."""
        self._fetch()
        every = self.config.evaluate_every
        evaluation_due = self.evaluators and every and self.step % every == 0
        if self.step % self.config.log_every == 0 and not evaluation_due:
            self._write_line(self.step)
        self._save()
        self.settle()
        raise SystemExit(SIGTERM_EXIT)


@contextlib.contextmanager
def _closing(pipeline: Iterable[Mapping[str, np.ndarray]]) -> Iterator[Iterator[Mapping[str, np.ndarray]]]:
    iterator = iter(pipeline)
    try:
        yield iterator
    finally:
        iterator.close()


@contextlib.contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, where this is the main thread; the old handler comes back."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    old = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, old)
