"""Named TPU slices and GPU boxes as devices to compile for, on a machine that has neither."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies

from hisam_jax.chips import CHIPS, Chip
from hisam_jax.errors import UserError

BOX, BETWEEN_BOXES = 8, 50e9  # GPUs that NVLink joins; bytes a second of a GPU's own 400 Gbit/s adapter beyond them

_H100 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
        name: as given, such as `v5e:16x16` or `h100:8`.
        chip: peak figures of one device.
        devices: what a mesh is made of.
        platform: `tpu` or `gpu`.
    """

    name: str
    chip: Chip
    devices: tuple[Any, ...]
    platform: str

    @property
    def link(self) -> float:
        """Bytes a second a device sends where the slowest link on the way counts."""
        across = self.platform == "gpu" and len(self.devices) > BOX
        return BETWEEN_BOXES if across else self.chip.link


def target(name: str) -> Target:
    """The devices that `name` stands for: `v5e:16x16`, `v5p:4x4x4`, `h100:8`, `h100:64`.

    Raises:
        UserError: an unknown kind or shape; libtpu or the CUDA plugin is not installed.
    """
    kind, shape = _parsed(name)
    platform = "gpu" if kind.startswith("h") else "tpu"
    devices = (_gpus if platform == "gpu" else _tpus)(name, shape)
    return Target(name, CHIPS[kind], tuple(devices), platform)


def chips_of(name: str) -> tuple[Chip, int]:
    """The chip of a target and how many of it there are; asks no compiler whether such a slice exists.

    Raises:
        UserError: an unknown kind or shape.
    """
    kind, shape = _parsed(name)
    return CHIPS[kind], math.prod(map(int, shape.split("x")))


def _parsed(name: str) -> tuple[str, str]:
    kind, _, shape = name.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+)*", shape):
        known = " or ".join(f"{each}:{'8' if each.startswith('h') else '4x4x4' if each in ('v4', 'v5p') else '16x16'}"
                            for each in CHIPS)  # fmt: skip
        raise UserError(f"value {name!r}", field="--topology", expected=known)
    sizes = [int(size) for size in shape.split("x")]
    if not all(sizes):
        raise UserError(f"value {name!r}", field="--topology", expected="at least one device along every axis")
    if kind.startswith("h") and (len(sizes) > 1 or (sizes[0] > BOX and sizes[0] % BOX)):
        expected = f"a number of GPUs, past {BOX} a multiple of it"
        raise UserError(f"value {name!r}", field="--topology", expected=expected)
    return kind, shape


def _tpus(name: str, shape: str) -> list[Any]:
    with _described(name, "libtpu as jax pins it: pip install 'jax[tpu]'"):
        single = math.prod(map(int, shape.split("x"))) == 1
        host = {"chips_per_host_bounds": (1, 1, 1)} if single else {}  # else a host has 4, which one chip does not fill
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **host).devices


def _gpus(name: str, shape: str) -> list[Any]:
    boxes, each = max(1, int(shape) // BOX), min(int(shape), BOX)
    layout = f"1x{boxes}x{each}"
    with _described(name, "the CUDA plugin at jax's version: pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt"):
        return topologies.get_topology_desc(
            platform="cuda", topology_name=layout, topology=layout, target_config=_H100
        ).devices


@contextlib.contextmanager
def _described(name: str, needs: str) -> Iterator[None]:
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    for variable, value in quiet.items():
        os.environ.setdefault(variable, value)
    try:
        with _silent():
            yield
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"{name!r} cannot be described ({type(error).__name__}: {reason})",
            field="--topology",
            expected="a slice or box that exists",
            hint=f"needs {needs}; jax here is {jax.__version__}",
        ) from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps off the screen what libtpu, written in C++, has to say of a machine that is no TPU worker."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
