"""A TFDS builder over a prepared dataset, for those who already read their data with TFDS; no TensorFlow is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from hisam_jax.data.dataset import Dataset
from hisam_jax.files import sha256_of

SPLIT = "users"  # one example a user; which of the events are held out is in each example's `split`


class HisamDataset(tfds.core.GeneratorBasedBuilder):
    """User sequences as TFDS examples: `HisamDataset(dataset=..., data_dir=...)`, then `as_data_source('users')`.

    An example has `user_id`, `user` and, per event, oldest first, `item`, `timestamp`, `rating`, `positive`, `split`
    (see `records.UserSequence`). Two prepared folders of other content never share a built one.
    """

    VERSION: ClassVar[tfds.core.Version] = tfds.core.Version("1.0.0")
    pkg_dir_path = Path(__file__).parent  # TFDS would look for metadata of its own by module name,
    code_path = Path(__file__)  # and for the source by way of a package that it does not install

    def __init__(self, dataset: str | os.PathLike | Dataset, **options: Any):
        """Args: dataset: a prepared folder. options: those of a TFDS builder, such as `data_dir`."""
        self._dataset = dataset if isinstance(dataset, Dataset) else Dataset.load(dataset)
        manifest = self._dataset.manifest
        content = [sha for file, sha in manifest["files"].items() if file.startswith(("sequences/", "users"))]
        name = f"{manifest['split']['protocol']}-{sha256_of(*content)[:16]}"
        config = tfds.core.BuilderConfig(name=name, description=f"{manifest['source']}, {name}")
        super().__init__(config=config, file_format="array_record", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        columns = {
            "item": np.int32,
            "timestamp": np.int64,
            "rating": np.float32,
            "positive": np.uint8,
            "split": np.uint8,
        }
        events = {name: tfds.features.Tensor(shape=(None,), dtype=dtype) for name, dtype in columns.items()}
        return tfds.core.DatasetInfo(
            builder=self,
            description="User sequences of a dataset prepared by hisam_jax, oldest event first.",
            features=tfds.features.FeaturesDict(
                {"user_id": tfds.features.Text(), "user": tfds.features.Scalar(np.int32), **events}
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # everything is on disk already
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        ids = self._dataset.users["user_id"].to_list()
        for sequence in self._dataset.sequences():
            events = {name: getattr(sequence, name) for name in ("item", "timestamp", "rating", "positive", "split")}
            yield sequence.user, {"user_id": ids[sequence.user], "user": sequence.user, **events}
