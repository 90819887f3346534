"""Run as a process with eight devices: rows and streams of two imaginary processes whose devices lie in turns."""

import json

import jax
import numpy as np

from hisam_jax.errors import UserError
from hisam_jax.sharding import MeshConfig, make_mesh
from hisam_jax.training.placement import Placement, rows_here, streams_here


def main() -> None:
    mesh = make_mesh(MeshConfig(fsdp=4))
    devices = mesh.devices.reshape(-1).tolist()
    halves = devices[0::2], devices[1::2]
    rows = np.arange(16 * 3, dtype=np.int32).reshape(16, 3)
    try:
        refused = str(streams_here(mesh, 16, 4, halves[0]))
    except UserError as error:
        refused = str(error)
    split = Placement(mesh)
    split._here = rows_here(mesh, 8, halves[1])  # as the second process would hold them
    split._place = {int(row): place for place, row in enumerate(split._here)}
    part = rows[rows_here(mesh, 16, halves[1])]
    print(json.dumps({
        "rows": [rows_here(mesh, 16, half).tolist() for half in halves],
        "streams": [streams_here(mesh, 16, 8, half) for half in halves],
        "finest": streams_here(mesh, 16, 16, halves[0]),
        "refused": refused,
        "whole": bool((np.asarray(Placement(mesh).batch({"x": rows})["x"]) == rows).all()),
        "own": [part[split.local_rows(16, start, start + 2)].tolist() for start in (2, 14)],
        "devices": jax.device_count(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
