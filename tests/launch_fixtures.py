"""A program of several processes for the tests of joining and launching, and how to run it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import os, signal, sys, time
from hisam_jax import distributed
from hisam_jax.errors import UserError

processes = distributed.initialize(guarded=True)
import jax
import numpy as np

devices = jax.device_count()
mesh = jax.make_mesh((devices,), ("x",))
ones = jax.make_array_from_callback(
    (devices,), jax.sharding.NamedSharding(mesh, jax.P("x")), lambda index: np.ones(1, np.float32)
)
total = jax.jit(lambda x: x.sum())
print(f"{processes}: {float(total(ones)):g} of {jax.local_device_count()} here", flush=True)

def agree():
    first = processes.index == 0
    print("agreed:", distributed.agree(False), distributed.agree(first), distributed.agree(not first), flush=True)

def alone():
    if processes.index == 0:
        try:
            distributed.barrier("lonely", 0.5)
        except UserError as error:
            print("barrier:", error, flush=True)
    distributed.barrier("both", 60)

def reduce():
    while True:
        float(total(ones))

def sleep():
    time.sleep(300)

def refuse():
    if processes.index == 1:
        sys.exit(distributed.leave(2))
    reduce()

def fault():
    if processes.index == 1:
        raise KeyError("ours")
    reduce()

for word in sys.argv[1:]:
    globals()[word]()
"""


def write_program(folder: Path) -> Path:
    path = folder / "several.py"
    path.write_text(PROGRAM)
    return path


def environment(**variables: object) -> dict[str, str]:
    """The tests' environment with the package of this checkout, without anybody's launcher or level of logging."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HISAM_", "TF_CPP_"))}
    return kept | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | {name: str(v) for name, v in variables.items()}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def start(program: Path, indices: list[int], count: int, *words: str, **variables: object) -> list[subprocess.Popen]:
    """Starts the processes `indices` of `count` by hand."""
    variables |= {"HISAM_COORDINATOR": f"127.0.0.1:{free_port()}", "HISAM_PROCESSES": count}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen(
            [sys.executable, str(program), *words], env=environment(**variables, HISAM_PROCESS_ID=index), **pipes
        )
        for index in indices
    ]
