"""What every test stands on: the CPU unless another platform is asked for, repeatable properties, real data if any."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Before any import of jax or matplotlib.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Compiling is most of the suite's time: programs need not be fast ones here. Without its fusion emitters XLA compiles
# in less than half the time; jaxlib 0.12 has no such flag and ends the process at it.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + " --xla_cpu_use_fusion_emitters=false" * importlib.metadata.version("jaxlib").startswith("0.10."),
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Interpreted kernels run programs within callbacks of programs: with few threads, or with the outer program in the
# background, they wait for each other for ever.
os.environ.setdefault("PJRT_NPROC", str(max(16, os.cpu_count() or 1)))
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false")

import hypothesis
import pytest

# Wall-clock deadlines and random examples would make a slow or unlucky machine fail; `search` is for hunting by hand.
hypothesis.settings.register_profile("default", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of public data sets: `$HISAM_DATA`, else `shared/data` beside the checkout; skips if absent."""
    root = Path(os.environ.get("HISAM_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not root.is_dir():
        pytest.skip("no public data sets: set HISAM_DATA to their folder")
    return root


@pytest.fixture(autouse=True, scope="module")
def _programs_of_one_file() -> Iterator[None]:
    """Lets go of compiled programs with each file: one process that keeps the suite's has no memory maps left."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


LONGEST = (
    "test_end_to_end",
    "test_compilation",
    "test_training_processes",
    "test_sharding",
    "test_runs",
    "test_remote",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest come first, so that no worker is left alone with one at the end."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
