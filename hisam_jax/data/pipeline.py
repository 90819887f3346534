"""Prepared dataset -> packed training batches, through Grain: read, cut into windows, pack, look codes up, batch."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import grain
import numpy as np
from absl import flags

from hisam_jax.config import check_least
from hisam_jax.data import records
from hisam_jax.data.blocks import BLOCK, ReadBlock, Reader, SplitBlocks
from hisam_jax.data.endless import NO_END, EndlessShop
from hisam_jax.data.mixture import Share
from hisam_jax.data.windows import EVENT, WindowIndex, WindowReader
from hisam_jax.errors import ReaderLost, UserError

if TYPE_CHECKING:
    from hisam_jax.data.dataset import Dataset

KILLED = re.compile(r"Worker process was terminated unexpectedly with exit code -(\d+)")  # what Grain says of it
PACKING_BINS = 64  # open rows of the first-fit packer: more leave less padding and mix more of two epochs
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
        validation_too: train on validation events as well, once a recipe has been chosen by them: nothing can be
            monitored then, and tables hold such rows apart. Public code of HSTU (arXiv 2402.17152) trains so.
        endless: train on users that the embedded shop goes on generating, each seen once, in place of the dataset's
            own; it must be a shop's, and is evaluated on as ever.
    """

    items_per_row: int = 300
    rows: int = 16
    streams: int = 1
    window: int = 300
    seed: int = 0
    workers: int = 0
    epochs: int | None = None
    validation_too: bool = False
    endless: bool = False

    def __post_init__(self) -> None:
        check_least(self, "data", items_per_row=2, rows=1, streams=1, window=2, workers=0, seed=0)
        if self.epochs is not None and self.epochs < 1:
            raise UserError(f"value {self.epochs}", field="data.epochs", expected="1 or more, or None")
        if self.endless and self.epochs is not None:
            raise UserError(f"value {self.epochs}", field="data.epochs", expected="None with data.endless")
        if self.endless and self.validation_too:
            raise UserError("True", field="data.validation_too", expected="False with data.endless")
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
    mixture: tuple[Mapping[str, Any], ...] = ()

    def __iter__(self) -> BatchIterator:
        return BatchIterator({stream: iter(part) for stream, part in self.parts.items()})

    def identity(self) -> dict[str, Any]:
        """What a saved position depends on: restored under another one, it would go on with the wrong data."""
        return {**dataclasses.asdict(self.config), **({"mixture": list(self.mixture)} if self.mixture else {})}


class BatchIterator:
    """Batches of several streams side by side, in the streams' order; ends with the first stream that ends."""

    def __init__(self, parts: Mapping[int, grain.DatasetIterator]):
        self.parts = dict(sorted(parts.items()))

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Batch:
        batches = [_next(part) for part in self.parts.values()]
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


def _next(part: grain.DatasetIterator) -> Batch:
    try:
        return next(part)
    except RuntimeError as error:
        if not (killed := KILLED.search(str(error))):
            raise
        raise ReaderLost(int(killed[1])) from error


def make_pipeline(
    dataset: Dataset,
    codes_IL: np.ndarray,
    config: PipelineConfig,
    *,
    streams: Iterable[int] | None = None,
    mixture: Sequence[Share] = (),
) -> Pipeline:
    """Batches of every TRAIN event, each exactly once an epoch, in windows shuffled over all users.

    Args:
        dataset: the prepared dataset; its records and each user's `train_events` are read.
        codes_IL: int32 semantic codes of every item.
        config: shapes, seed, workers, epochs.
        streams: those that this process reads; None: all.
        mixture: other datasets to draw windows from, without end; epochs are those of `dataset`.

    Raises:
        UserError: nothing to train on.
    """
    if config.workers and not flags.FLAGS.is_parsed():  # outside absl.app, where Grain's own flags would raise
        flags.FLAGS.mark_as_parsed()
    workers = max(1, config.workers)
    own = EndlessShop(dataset, config.window, config.seed, config.streams, workers) if config.endless else None
    readers = [own or _windows(dataset, config)]
    readers += [_windows(share.dataset, config, share.item_of_I) for share in mixture]
    weights = [1.0, *(share.weight for share in mixture)]
    parts = {
        stream: _batches(readers, stream, weights, codes_IL, config)
        for stream in (range(config.streams) if streams is None else streams)
    }
    return Pipeline(parts, config, tuple(share.identity() for share in mixture))


def _windows(dataset: Dataset, config: PipelineConfig, item_of_I: np.ndarray | None = None) -> WindowReader:
    """What reads a dataset's windows, shuffled."""
    too = config.validation_too and item_of_I is None
    train_events_U = dataset.train_events(too)
    index = WindowIndex.of(train_events_U, config.window)
    if len(index) < config.streams:
        raise UserError(
            f"{int(train_events_U.sum())} training events in {len(index)} windows",
            path=dataset.path,
            expected=f"at least one window for each of {config.streams} streams",
        )
    source = grain.sources.ArrayRecordDataSource(dataset.record_paths)
    last = records.VALIDATION if too else records.TRAIN
    return WindowReader(source, index, config.window, config.seed, item_of_I, dataset.path, last)


def _batches(
    readers: Sequence[Reader], stream: int, weights: Sequence[float], codes_IL: np.ndarray, config: PipelineConfig
) -> grain.IterDataset:
    """One stream's rows of every batch."""
    blocks = _blocks(ReadBlock(readers, stream, config.streams), weights, config.epochs)
    # a future for each block costs more than reading it: one thread, at the end, overlaps it all with the step
    windows = blocks.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    if config.workers:
        windows = windows.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.workers))
    return pack(SplitBlocks(windows), codes_IL, config)


def _blocks(read: ReadBlock, weights: Sequence[float], epochs: int | None) -> grain.MapDataset:
    """A stream's blocks, `weights[k]` windows of the k-th reader for each one of the first.

    They are cut before workers share them out, so that the number of workers changes no batch.
    """
    end = NO_END if epochs is None else epochs * read.per_epoch(0)
    if len(read.readers) == 1:
        return grain.MapDataset.range(-(-end // BLOCK)).map(dataclasses.replace(read, end=end))
    ends = [end, *(NO_END for _ in read.readers[1:])]
    orders = [grain.MapDataset.range(end).map(functools.partial(_of, number)) for number, end in enumerate(ends)]
    return grain.MapDataset.mix(orders, weights).batch(BLOCK, batch_fn=list).map(read)


def _of(reader: int, position: int) -> tuple[int, int]:
    return reader, position


def pack(windows: grain.IterDataset, codes_IL: np.ndarray, config: PipelineConfig) -> grain.IterDataset:
    """Windows packed into a stream's rows of every batch, a few ahead of the reader."""
    rows = config.rows // config.streams
    packed = grain.experimental.FirstFitPackIterDataset(
        windows,
        length_struct={"event": config.items_per_row},
        num_packing_bins=max(PACKING_BINS, rows),
        seed=config.seed,
    )
    batches = packed.batch(rows, batch_fn=functools.partial(stack_rows, codes_IL=codes_IL, rows=rows))
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2)


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
