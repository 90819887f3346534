"""Which rows and streams a process reads, on meshes that follow a torus rather than the order of processes."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.device_fixtures import run_on_devices

WHOLE_SLICES = """
import collections, os
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
from hisam_jax.compilation import target
from hisam_jax.sharding import MeshConfig, make_mesh
from hisam_jax.training.placement import streams_here
for name, fsdp, tensor in (("v5e:16x16", 256, 1), ("v5e:16x16", 1, 1), ("v5p:4x4x4", 64, 1), ("v5p:4x4x4", 8, 4)):
    devices = target(name).devices
    mesh = make_mesh(MeshConfig(fsdp=fsdp, tensor=tensor), devices)
    of = collections.defaultdict(list)
    for device in devices:
        of[device.process_index].append(device)
    splits = len(devices) // tensor
    found = [streams_here(mesh, 2 * splits, splits, mine) for mine in of.values()]
    each = collections.Counter(stream for streams in found for stream in streams)
    assert len(of) > 1 and set(each) == set(range(splits)), name
"""


@pytest.fixture(scope="module")
def found() -> dict:
    return run_on_devices("placement_fixtures.py", timeout=200)


def test_rows_that_lie_in_turns_are_shared_out_whole(found):
    assert found["rows"][0] == [0, 1, 4, 5, 8, 9, 12, 13]
    assert sorted(sum(found["rows"], [])) == list(range(16))
    assert found["streams"] == [[0, 2, 4, 6], [1, 3, 5, 7]] and found["finest"] == found["rows"][0]


def test_streams_of_two_processes_are_refused_with_a_number_that_works(found):
    assert "data.streams" in found["refused"] and "a multiple of 8" in found["refused"]


def test_a_batch_is_put_where_its_rows_belong(found):
    assert found["whole"]
    assert found["own"] == [np.arange(6, 12).reshape(2, 3).tolist(), np.arange(42, 48).reshape(2, 3).tolist()]


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu: make compilers")
@pytest.mark.slow
def test_every_row_of_a_slice_of_many_hosts_is_read():
    done = subprocess.run([sys.executable, "-c", WHOLE_SLICES], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr[-2000:]
