"""The notebooks in `colab`: how one is run, what its variables and pictures are, what a kept one must be like.

`python tests/notebook_fixtures.py NAME` runs `colab/NAME.ipynb` in a temporary folder and keeps its outputs in that
file; the tests refuse a file whose code has changed since.

A number in bold in a text (`**0.31**`, `**12 %**`) is a claim: a cell below it, before the next text, must print it.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
COLAB = ROOT / "colab"
LIMIT = 540  # seconds that a notebook may take in the tests, less than what they take for a hang
MOST_BYTES = 500_000
# Settings that make the tests compile fast and draw nothing, and where libtpu says it lies once a test has loaded it;
# a notebook runs as it would for its reader.
_OURS = (
    "MPLBACKEND", "XLA_FLAGS", "PJRT_NPROC", "JAX_CPU_ENABLE_ASYNC_DISPATCH", "HISAM_SOURCE", "HISAM_DATA",
    "TPU_LIBRARY_PATH",
)  # fmt: skip

# The second cell of every notebook.
INSTALL = """\
# Installs hisam_jax where it is missing: from the checkout that holds this notebook, else from SOURCE.
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

# SOURCE: a folder, or git+https://... of a clone of hisam_jax
SOURCE = ""  # @param {type:"string"}

found = {name: importlib.util.find_spec(name) for name in ("hisam_jax", "flax", "polars")}
if any(spec is None or spec.origin is None for spec in found.values()):  # a folder of that name is no package
    folders = [Path.cwd(), *Path.cwd().parents, *Path.cwd().glob("*/")]
    checkouts = [str(folder) for folder in folders if (folder / "hisam_jax" / "__init__.py").is_file()]
    source = SOURCE or os.environ.get("HISAM_SOURCE") or next(iter(checkouts), "")
    if not source:
        raise SystemExit(
            "hisam_jax is not installed and this notebook does not lie in a checkout of it. Set SOURCE above (or the "
            "environment variable HISAM_SOURCE) to a folder that holds a clone, or to git+https://... of one."
        )
    pip = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", source], capture_output=True, text=True)
    if pip.returncode:
        raise SystemExit(f"{source} could not be installed: {pip.stderr.strip()}")
    importlib.invalidate_caches()
    sys.modules.pop("hisam_jax", None)
    loaded = {name: sys.modules[name].__version__ for name in ("jax", "numpy") if name in sys.modules}
    if any(importlib.metadata.version(name) != version for name, version in loaded.items()):
        raise SystemExit("Installed. Restart the runtime, then run the notebook from its first cell.")

import jax

import hisam_jax as hisam


def remedy() -> str:
    \"""What makes JAX see the accelerator here; drivers are those of docs.nvidia.com/deploy/cuda-compatibility.\"""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = int(subprocess.check_output(ask, text=True, stderr=subprocess.DEVNULL).split(".")[0])
    except (OSError, subprocess.CalledProcessError, ValueError):  # no such program, or no driver that it reaches
        driver = 0
    why = f"NVIDIA's driver is {driver}; CUDA 13 needs 580 or newer, CUDA 12 needs 525. " if driver else ""
    if 0 < driver < 525:
        return f"{why}Install a newer driver."
    extra = "cuda13" if driver >= 580 else "cuda12" if driver or Path("/dev/nvidia0").exists() else "tpu"
    return f"{why}pip install -U 'jax[{extra}]=={jax.__version__}', then restart the runtime."


try:
    devices = jax.devices()
except RuntimeError as error:  # such as a libtpu that is too old for the JAX that was installed
    raise SystemExit(f"JAX does not start: {error}\\n{remedy()}") from None
print(f"hisam_jax {hisam.__version__}, jax {jax.__version__}, devices: {devices}")
here = [path for path in ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0") if Path(path).exists()]
if here and jax.default_backend() == "cpu":
    print(f"JAX uses the CPU, though {here[0]} is here. {remedy()}")\
"""


@dataclasses.dataclass(frozen=True)
class Executed:
    """A notebook after its last cell, and what was asked of its kernel."""

    notebook: nbformat.NotebookNode
    values: dict[str, Any]

    def cell(self, part: str) -> nbformat.NotebookNode:
        """The one code cell whose source holds `part`."""
        found = [cell for cell in code_cells(self.notebook) if part in cell.source]
        assert len(found) == 1, f"{len(found)} cells hold {part!r}"
        return found[0]


def load(name: str) -> nbformat.NotebookNode:
    """`colab/NAME.ipynb`, in the newest form."""
    return nbformat.read(COLAB / f"{name}.ipynb", as_version=4)


def execute(
    notebook: nbformat.NotebookNode,
    folder: Path,
    read: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    limit: int = LIMIT,
) -> Executed:
    """Runs every cell in `folder`, with this checkout importable.

    Args:
        notebook: left as it is.
        folder: the kernel's working directory.
        read: name -> Python expression, evaluated by the kernel after the last cell; the values come back as JSON has
            them.
        environment: what is set for the kernel besides.
        limit: seconds that all cells together may take.

    Raises:
        CellExecutionError: a cell that raised, with its traceback.
        TimeoutError: past the limit.
    """
    notebook = nbformat.from_dict(json.loads(json.dumps(notebook)))
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    pairs = ", ".join(f"{name!r}: {expression}" for name, expression in (read or {}).items())
    asked = nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({{{pairs}}}, default=lambda x: x.tolist()))")
    notebook.cells.append(asked)
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": folder}})
    asyncio.run(asyncio.wait_for(client.async_execute(env=_environment(folder, environment)), limit))
    answer = notebook.cells.pop()
    return Executed(notebook, json.loads(output_text(answer)))


def _environment(folder: Path, more: Mapping[str, str] | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _OURS}
    paths = os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH", "")) if path)
    own = {"PYTHONPATH": paths, "IPYTHONDIR": str(folder / ".ipython"), "HISAM_CACHE": str(folder / ".cache")}
    return kept | own | dict(more or {})


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Its cells of code, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def output_text(cell: nbformat.NotebookNode) -> str:
    """What a cell printed or showed as text or HTML."""
    parts = []
    for output in cell.outputs:
        data = output.get("data", {})
        parts.append(output.get("text", "") or data.get("text/html", "") or data.get("text/plain", ""))
    return "\n".join(parts)


def pictures(cell: nbformat.NotebookNode) -> list[np.ndarray]:
    """The PNGs that a cell showed, each as uint8 `[rows, columns, 3]`."""
    found = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")) for png in found]


def is_blank(picture_YXC: np.ndarray) -> bool:
    """Whether a picture shows next to nothing: hardly a pixel in a hundred is of another colour than the most usual."""
    colours_P = picture_YXC.reshape(-1, 3).astype(np.int64) @ (65536, 256, 1)
    return bool(np.unique(colours_P, return_counts=True)[1].max() > 0.99 * len(colours_P))


def digest(notebook: nbformat.NotebookNode) -> str:
    """SHA-256 of all code behind the install cell: what the outputs of a notebook were made by."""
    return hashlib.sha256("\0".join(cell.source for cell in code_cells(notebook)[1:]).encode()).hexdigest()


def claims(notebook: nbformat.NotebookNode) -> Iterator[tuple[str, str]]:
    """Each number in bold of a text, with what the cells below it, up to the next text, print."""
    for place, cell in enumerate(notebook.cells):
        numbers = (
            re.findall(r"\*\*([−-]?(?:\d[\d,.]*\d|\d)\s*%?)\*\*", cell.source) if cell.cell_type == "markdown" else []
        )
        below = []
        for later in notebook.cells[place + 1 :]:
            if later.cell_type == "markdown":
                break
            below.append(output_text(later))
        yield from ((re.sub(r"\s", "", number), "\n".join(below)) for number in numbers)


def printed(number: str, shown: str) -> bool:
    """Whether a text shows this very number: not as a part of a longer one, and with its % where it has one."""
    return re.search(rf"(?<![\d.,]){re.escape(number)}(?!\d|[.,]\d)", shown) is not None


def noise(notebook: nbformat.NotebookNode) -> list[str]:
    """Lines on stderr that are no progress of a verb: warnings and the like."""
    texts = [o.text for cell in code_cells(notebook) for o in cell.outputs if o.get("name") == "stderr"]
    return [line for text in texts for line in text.splitlines() if line.strip() and not re.search(r"\d+%\|", line)]


def keep(name: str) -> None:
    """Runs a notebook and keeps what it showed in its file, without progress, times or anything of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(load(name), Path(folder)).notebook
    write(name, notebook)


def write(name: str, notebook: nbformat.NotebookNode) -> None:
    """Writes a notebook that was run, less progress and times, with the digest of what its outputs were made by."""
    for cell in code_cells(notebook):
        cell.metadata.pop("execution", None)
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "hisam": {"outputs_of": digest(notebook)},
    }
    nbformat.validate(notebook)
    shown = "\n".join(output_text(cell) for cell in code_cells(notebook))
    assert not re.search(rf"\b{re.escape(os.uname().nodename)}\b", shown), f"{name}: the name of this machine"
    nbformat.write(notebook, COLAB / f"{name}.ipynb")


def check_kept(name: str) -> None:
    """Asserts what every notebook must be: valid, installed alike, run from top to bottom, fit for the web."""
    path = COLAB / f"{name}.ipynb"
    notebook = load(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5) and notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert "minute" in notebook.cells[0].source, f"{name}: its first cell says how long it takes"
    assert notebook.cells[1].source == INSTALL, f"{name}: its second cell is not the install cell"
    assert path.stat().st_size < MOST_BYTES, f"{name}: {path.stat().st_size} bytes"
    _check_outputs(name, notebook)
    text = "\n".join([cell.source for cell in notebook.cells] + [output_text(cell) for cell in code_cells(notebook)])
    assert not re.search(r"(?<![\w.~:/<])/(home|work|tmp|root|Users|content|usr|opt|var)/", text), f"{name}: a path"
    for number, shown in claims(notebook):
        assert printed(number, shown), f"{name}: the text says {number}, which no cell below it prints"


def _check_outputs(name: str, notebook: nbformat.NotebookNode) -> None:
    cells = code_cells(notebook)
    assert notebook.metadata.hisam.outputs_of == digest(notebook), (
        f"{name}: its code is newer than its outputs; run `python tests/notebook_fixtures.py {name}`"
    )
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), f"{name}: not run in order"
    kinds = {(output.output_type, output.get("name")) for cell in cells for output in cell.outputs}
    assert not kinds & {("error", None), ("stream", "stderr")}, f"{name}: errors or noise among its outputs"
    shown = [picture for cell in cells for picture in pictures(cell)]
    assert len(shown) >= 2 and not any(is_blank(picture) for picture in shown), f"{name}: pictures"


if __name__ == "__main__":
    for given in sys.argv[1:]:
        keep(given)
