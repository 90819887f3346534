"""Scripts of this folder in a process of its own, with several host devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run_on_devices(
    script: str, *arguments: str, devices: int = 8, flags: str = "", timeout: float | None = None
) -> dict:
    """The JSON that `tests/SCRIPT` prints last; `flags` are XLA's, besides the environment's."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flags} --xla_force_host_platform_device_count={devices}"
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": paths}
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
