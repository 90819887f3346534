"""Prepared dataset -> packed training batches, through Grain: read, cut into windows, pack, look codes up, batch."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import grain
import numpy as np
from absl import flags

from hisam_jax.config import check_least
from hisam_jax.data import records
from hisam_jax.errors import UserError

if TYPE_CHECKING:
    from hisam_jax.data.dataset import Dataset

PACKING_BINS = 64  # open rows of the first-fit packer: more leave less padding and mix more of two epochs
EVENT = np.dtype(  # one record an event: the packer's cost goes by the feature, and this way there is one
    [("item", "i4"), ("action", "i4"), *((name, "f4") for name in ("positive", "gap", "rank_weight", "next_weight"))]
)
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """Shape and order of training batches.

    Attributes:
        items_per_row: N, events in a packed row.
        rows: B, rows in a batch, over all processes.
        streams: parts of the data that are read apart, each giving `rows / streams` rows of every batch. Processes
            divide streams between them, so that a batch is the same whatever their number; part of a checkpoint's
            identity.
        window: the longest run of one user's events that a model sees at once, at most `items_per_row`.
        seed: of the shuffle and of the window offsets.
        workers: reading processes; 0 reads in a thread of this one. Part of a checkpoint's identity.
        epochs: passes over the data, None for no end.
    """

    items_per_row: int = 300
    rows: int = 16
    streams: int = 1
    window: int = 300
    seed: int = 0
    workers: int = 0
    epochs: int | None = None

    def __post_init__(self) -> None:
        check_least(self, "data", items_per_row=2, rows=1, streams=1, window=2, workers=0, seed=0)
        if self.epochs is not None and self.epochs < 1:
            raise UserError(f"value {self.epochs}", field="data.epochs", expected="1 or more, or None")
        if self.rows % self.streams:
            raise UserError(
                f"value {self.streams}", field="data.streams", expected=f"a divisor of data.rows, {self.rows}"
            )
        if self.window > self.items_per_row:
            raise UserError(
                f"value {self.window}", field="data.window", expected=f"at most items_per_row, {self.items_per_row}"
            )


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """An iterable of batches whose iterator `get_state` and `set_state` save and restore exactly.

    A batch has the rows of this process's streams: int32 item, segment (0 = padding), action `[B, N]`, codes
    `[B, N, L]`, and float32 positive, gap, rank_weight, next_weight `[B, N]`. Close the iterator when done with it.
    """

    parts: Mapping[int, grain.IterDataset]
    config: PipelineConfig
    steps_per_epoch: int  # an estimate: packing decides

    def __iter__(self) -> BatchIterator:
        return BatchIterator({stream: iter(part) for stream, part in self.parts.items()})

    def identity(self) -> dict[str, Any]:
        """What a saved position depends on: restored under another one, it would go on with the wrong data."""
        return dataclasses.asdict(self.config)


class BatchIterator:
    """Batches of several streams side by side, in the streams' order; ends with the first stream that ends."""

    def __init__(self, parts: Mapping[int, grain.DatasetIterator]):
        self.parts = dict(sorted(parts.items()))

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Batch:
        batches = [next(part) for part in self.parts.values()]
        if len(batches) == 1:
            return batches[0]
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    def get_state(self) -> dict[str, Any]:
        """Each stream's position by its number, as JSON."""
        return {str(stream): part.get_state() for stream, part in self.parts.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Moves every stream of this iterator to its position in `state`, which may hold others' too.

        Raises:
            KeyError: a stream that `state` does not know.
        """
        for stream, part in self.parts.items():
            part.set_state(state[str(stream)])

    def close(self) -> None:
        """Stops all readers."""
        for part in self.parts.values():
            part.close()


def make_pipeline(
    dataset: Dataset, codes_IL: np.ndarray, config: PipelineConfig, *, streams: Iterable[int] | None = None
) -> Pipeline:
    """Batches of every TRAIN event, each exactly once an epoch, in windows shuffled over all users.

    Args:
        dataset: the prepared dataset; its records and each user's `train_events` are read.
        codes_IL: int32 semantic codes of every item.
        config: shapes, seed, workers, epochs.
        streams: those that this process reads; None: all.

    Raises:
        UserError: nothing to train on.
    """
    train_events_U = dataset.users["train_events"].to_numpy()
    index = WindowIndex.of(train_events_U, config.window)
    if len(index) < config.streams:
        raise UserError(
            f"{int(train_events_U.sum())} training events in {len(index)} windows",
            path=dataset.path,
            expected=f"at least one window for each of {config.streams} streams",
        )
    if config.workers and not flags.FLAGS.is_parsed():  # outside absl.app, where Grain's own flags would raise
        flags.FLAGS.mark_as_parsed()
    source = grain.MapDataset.source(index).shuffle(seed=config.seed)
    read = ReadWindow(grain.sources.ArrayRecordDataSource(dataset.record_paths), config.window, config.seed, len(index))
    windows = source.map_with_index(read)
    parts = {
        stream: _batches(windows[stream :: config.streams], codes_IL, config)
        for stream in (range(config.streams) if streams is None else streams)
    }
    steps = math.ceil(1.05 * train_events_U.sum() / (config.rows * config.items_per_row))  # 5 % padding
    return Pipeline(parts, config, steps)


def _batches(windows: grain.MapDataset, codes_IL: np.ndarray, config: PipelineConfig) -> grain.IterDataset:
    """One stream's rows of every batch."""
    rows = config.rows // config.streams
    # a future for each short record costs more than reading it: one thread, at the end, overlaps it all with the step
    stream = windows.repeat(config.epochs).to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    if config.workers:
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.workers))
    packed = grain.experimental.FirstFitPackIterDataset(
        stream,
        length_struct={"event": config.items_per_row},
        num_packing_bins=max(PACKING_BINS, rows),
        seed=config.seed,
    )
    batches = packed.batch(rows, batch_fn=functools.partial(stack_rows, codes_IL=codes_IL, rows=rows))
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2)


@dataclasses.dataclass(frozen=True)
class WindowIndex:
    """Random access to (user, ordinal of the window within the user), users in order."""

    user_W: np.ndarray
    ordinal_W: np.ndarray

    @classmethod
    def of(cls, train_events_U: np.ndarray, window: int) -> WindowIndex:
        """`ceil(events / window)` windows for each user."""
        windows_U = -(-train_events_U.astype(np.int64) // window)
        user_W = np.repeat(np.arange(len(windows_U)), windows_U)
        first_U = np.cumsum(windows_U) - windows_U
        return cls(user_W, np.arange(len(user_W)) - first_U[user_W])

    def __len__(self) -> int:
        return len(self.user_W)

    def __getitem__(self, row: int) -> tuple[int, int]:
        return int(self.user_W[row]), int(self.ordinal_W[row])


@dataclasses.dataclass(frozen=True)
class ReadWindow(grain.transforms.MapWithIndex):
    """(user, ordinal) -> that window's features; the cuts depend on seed, epoch and user, so that windows tile."""

    records: Any
    window: int
    seed: int
    windows_per_epoch: int

    def map_with_index(self, index: int, element: tuple[int, int]) -> dict[str, np.ndarray]:
        user, ordinal = element
        epoch = index // self.windows_per_epoch
        sequence = records.decode(self.records[user])
        train = np.flatnonzero(sequence.split == records.TRAIN)
        cuts = window_cuts(len(train), self.window, (self.seed, epoch, user))
        return {"event": window_events(sequence, train[cuts[ordinal] : cuts[ordinal + 1]])}


def window_cuts(events: int, window: int, seed: tuple[int, ...]) -> np.ndarray:
    """Bounds `[0, ..., events]` of `ceil(events / window)` runs; the first one's length is drawn, inner ones are full.

    No draw needs more windows than the tightest tiling, so packing never pays for the randomness.
    """
    count = max(1, -(-events // window))
    if count == 1:
        return np.array([0, events])
    first = np.random.default_rng(seed).integers(events - (count - 1) * window, window + 1)
    return np.concatenate([[0], first + window * np.arange(count - 1), [events]])


def event_features(sequence: records.UserSequence) -> Batch:
    """item, action, positive and gap of every event of a user, as a model reads them in training and serving.

    action: 0 unknown, else twice the rating, within 1..10. gap: log1p of the hours since the user's previous event, 0
    for the first one and where either has no timestamp.
    """
    hours = np.diff(sequence.timestamp, prepend=sequence.timestamp[:1]) / 3600.0
    known = (sequence.timestamp > 0) & (np.concatenate([[0], sequence.timestamp[:-1]]) > 0)
    rated = np.isfinite(sequence.rating)
    action = np.clip(np.rint(2 * np.where(rated, sequence.rating, 0)), 1, 10)
    return {
        "item": sequence.item.astype(np.int32),
        "action": np.where(rated, action, 0).astype(np.int32),
        "positive": sequence.positive.astype(np.float32),
        "gap": np.where(known, np.log1p(np.maximum(hours, 0.0)), 0.0).astype(np.float32),
    }


def window_events(sequence: records.UserSequence, chosen: np.ndarray) -> np.ndarray:
    """EVENT records of the chosen places of a sequence; the first of a window is nobody's next item."""
    event = np.zeros(len(chosen), EVENT)
    for name, values in event_features(sequence).items():
        event[name] = values[chosen]
    event["rank_weight"] = np.isfinite(sequence.rating[chosen])
    event["next_weight"][1:] = event["positive"][1:]
    return event


def stack_rows(packed: Sequence[Mapping[str, np.ndarray]], codes_IL: np.ndarray, rows: int) -> Batch:
    """A batch of `rows` packed rows with the items' codes; empty rows fill up the last one of all."""
    event_BN = np.zeros((rows, len(packed[0]["event"])), EVENT)
    segment_BN = np.zeros(event_BN.shape, np.int32)
    for row, element in enumerate(packed):
        event_BN[row], segment_BN[row] = element["event"], element["event_segment_ids"]
    batch = {name: np.ascontiguousarray(event_BN[name]) for name in EVENT.names}
    codes_BNL = np.where(segment_BN[..., None] > 0, codes_IL[batch["item"]], 0).astype(np.int32)
    return {**batch, "segment": segment_BN, "codes": codes_BNL}


def fill(batch: Mapping[str, np.ndarray]) -> float:
    """The share of positions that hold an event: one less the padding share."""
    return float(np.mean(batch["segment"] > 0))
