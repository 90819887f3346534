"""The TFDS builder gives the very sequences of the dataset, without TensorFlow."""

from __future__ import annotations

import sys

import numpy as np
from fixtures import tiny_dataset

from hisam_jax.data.builders import HisamDataset
from hisam_jax.data.records import FIELDS


def test_examples_are_the_sequences(tmp_path):
    dataset = tiny_dataset(tmp_path / "d", users=9)
    builder = HisamDataset(dataset, data_dir=tmp_path / "tfds")
    builder.download_and_prepare()
    source = builder.as_data_source("users")
    assert len(source) == 9 and "tensorflow" not in sys.modules
    examples = {int(example["user"]): example for example in source}
    for sequence in dataset.sequences():
        example = examples[sequence.user]
        assert example["user_id"] in (f"u{sequence.user}", f"u{sequence.user}".encode())
        for name, dtype in FIELDS.items():
            column = np.asarray(example[name])
            assert column.dtype == dtype
            np.testing.assert_array_equal(column, getattr(sequence, name))


def test_other_content_is_another_build(tmp_path):
    folders = [tiny_dataset(tmp_path / str(seed), users=4, seed=seed) for seed in (0, 1)]
    paths = {str(HisamDataset(folder.path, data_dir=tmp_path / "tfds").data_path) for folder in folders}
    assert len(paths) == 2
