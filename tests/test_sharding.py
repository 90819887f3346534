"""Placement on a mesh: what fits where, and that a mesh changes where a step runs and not what it computes."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental import topologies

from hisam_jax.errors import UserError
from hisam_jax.sharding import AXES, SPECS, MeshConfig, across_slices, fit, make_mesh, names, padded_rows, shard
from tests.device_fixtures import run_on_devices

SINGLE = ("data=2", "fsdp=2", "tensor=2", "context=2")
MIXED = ("data=2,fsdp=2,tensor=2", "fsdp=2,tensor=2,context=2", "data=2,context=4")  # every pair of axes is in one
MESHES = (*SINGLE, *MIXED)
TOLERANCE = 2e-5  # of a loss near 12, in float32: sums over devices add in another order


@pytest.fixture(scope="module")
def trained() -> dict:
    return run_on_devices("mesh_fixtures.py", "20", "", *MESHES, timeout=500)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_twenty_steps_on_a_mesh_lose_what_they_lose_on_one_device(trained, mesh):
    alone = np.array(trained["losses"][""])
    assert alone[-1] < alone[0] - 1  # it learns, so that a wrong gradient would show
    np.testing.assert_allclose(trained["losses"][mesh], alone, rtol=TOLERANCE)


@pytest.mark.slow
def test_parts_of_a_batch_sum_to_the_whole(trained):
    np.testing.assert_allclose(trained["whole"], trained["in parts"], rtol=TOLERANCE)


@pytest.mark.slow
def test_state_is_split_from_the_start_and_stays_so(trained):
    assert trained["split"]["params/blocks/attention/q/w"] == ["None", "fsdp", "tensor", "None"]
    assert trained["split"]["params/item_encoder/item_id/table"] == ["('fsdp', 'tensor')", "None"]
    assert trained["moments placed as parameters"]


@pytest.mark.slow
def test_only_anchors_cross_devices_that_split_the_items(trained):
    """No gather of the step over `context` is as large as all tokens' keys."""
    assert 0 < trained["gathered"]["largest"] < trained["gathered"]["keys"]


@pytest.mark.slow
def test_dst_on_a_mesh_loses_what_it_loses_on_one_device(trained):
    np.testing.assert_allclose(trained["dst"]["split"], trained["dst"]["alone"], rtol=1e-3)


@pytest.mark.slow
def test_a_sampled_softmax_ranks_as_the_full_one(trained):
    """With as many candidates as give every item many times over, its gradient points where the full one's does."""
    assert trained["sampled"]["cosine"] > 0.95


@given(size=st.integers(1, 64), devices=st.lists(st.sampled_from([1, 2, 3, 4]), min_size=4, max_size=4))
def test_what_fits_always_divides(size, devices):
    mesh = jax.sharding.AbstractMesh(tuple(devices), AXES)
    spec = fit(jax.P(("data", "fsdp"), "context"), (size, 7), mesh)
    for entry, length in zip(spec, (size, 7), strict=True):
        assert length % int(np.prod([mesh.shape[name] for name in names(entry)] or [1])) == 0


@given(st.integers(1, 10**7))
def test_large_tables_divide_over_every_sensible_mesh(rows):
    padded = padded_rows(rows)
    assert 0 <= padded - rows < 256 and (rows < 4096 or padded % 256 == 0)


def test_more_entries_than_dimensions_are_a_mistake():
    with pytest.raises(ValueError, match="2 entries, the array 1"):
        fit(SPECS.batch, (4,), jax.sharding.AbstractMesh((1, 1, 1, 1), AXES))


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of a slice without a shape, so that a slice's come in their order."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def test_only_data_crosses_slices():
    chips = [Chip(number, number % 2) for number in range(16)]
    found = across_slices((4, 2, 2, 1), chips)
    assert found.shape == (4, 2, 2, 1) and set(found.flat) == set(chips)
    assert [{chip.slice_index for chip in copy.flat} for copy in found] == [{0}, {0}, {1}, {1}]


def test_copies_that_would_cross_slices_are_refused():
    with pytest.raises(UserError, match="'mesh.data': 1 copies over 2 slices; expected a multiple of 2"):
        across_slices((1, 4, 1, 1), [Chip(number, number // 2) for number in range(4)])


def test_real_slices_make_a_mesh(monkeypatch):
    pytest.importorskip("libtpu")
    for variable in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(variable, "1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4", num_slices=2).devices
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2), devices)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 4, "tensor": 2, "context": 1} and mesh.explicit_axes == AXES
    assert [{device.slice_index for device in copy.flat} for copy in mesh.devices] == [{0}, {0}, {1}, {1}]


def test_without_a_mesh_nothing_is_placed():
    x = np.ones((2, 3))
    assert shard(x, SPECS.batch) is x


@pytest.mark.parametrize(
    ("config", "devices", "match"),
    [
        (MeshConfig(fsdp=3), 8, "product divides 8"),
        (MeshConfig(data=2, tensor=2), 8, "product is 8"),
        (MeshConfig(data=4, tensor=4), 8, "data=4, fsdp=1, tensor=4, context=1 over 8 devices"),
    ],
)
def test_axes_that_do_not_multiply_to_the_devices_are_refused(config, devices, match):
    with pytest.raises(UserError, match=match):
        config.sizes(devices)


def test_what_is_left_goes_to_data():
    assert MeshConfig(tensor=2, context=2).sizes(8) == (2, 1, 2, 2)
