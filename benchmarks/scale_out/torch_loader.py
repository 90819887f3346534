"""PyTorch's DataLoader in the place of Grain's reader: the same windows, functions and packer."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from hisam_jax.data.blocks import BLOCK, ReadBlock, SplitBlocks
from hisam_jax.data.dataset import Dataset
from hisam_jax.data.pipeline import BatchIterator, PipelineConfig, pack
from hisam_jax.data.windows import WindowIndex, WindowReader

INSTALLED = importlib.util.find_spec("torch") is not None


class Windows:
    """Random access to the windows of an epoch, many at once, as DataLoader wants it."""

    def __init__(self, dataset: Dataset, config: PipelineConfig):
        self.index = WindowIndex.of(dataset.users["train_events"].to_numpy(), config.window)
        source = grain.sources.ArrayRecordDataSource(dataset.record_paths)
        self.read = ReadBlock([WindowReader(source, self.index, config.window, config.seed)])

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, places: list[int]) -> dict[str, np.ndarray]:
        return self.read.map([(0, place) for place in places])


def _as_it_is(block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return block


class _Stream(grain.IterDataset):
    """DataLoader's blocks as Grain's packer takes them."""

    def __init__(self, loader: Any):
        super().__init__()
        self.loader = loader

    def __iter__(self) -> grain.DatasetIterator:
        return _Blocks(self.loader)


class _Blocks(grain.DatasetIterator):
    def __init__(self, loader: Any):
        super().__init__()
        self.rest: Iterator[Any] = (block for _ in itertools.count() for block in loader)

    def __next__(self) -> Any:
        return next(self.rest)

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        raise NotImplementedError("a DataLoader has no position")


def batches(dataset: Dataset, codes_IL: np.ndarray, config: PipelineConfig, workers: int) -> BatchIterator:
    """Packed batches without end, shuffled, as many windows to a message of a worker as Grain's readers send."""
    import torch

    options = {"multiprocessing_context": "forkserver", "prefetch_factor": 4} if workers else {}
    loader = torch.utils.data.DataLoader(
        Windows(dataset, config), batch_size=BLOCK, shuffle=True, num_workers=workers, collate_fn=_as_it_is, **options
    )
    return BatchIterator({0: iter(pack(SplitBlocks(_Stream(loader)), codes_IL, config))})
