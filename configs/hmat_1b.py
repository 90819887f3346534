r"""HMAT of 1 B parameters, tables not counted.

Paper: Hi-SAM (arXiv 2602.11799). Hardware: see `targets`; what a step takes there:
hisam compile --config configs/hmat_1b.py --topology v5e:16x16
Command, for v5p:4x4x4: hisam train --dataset DATASET --ids IDS --config configs/hmat_1b.py --workdir RUN \
    --config.mesh.data=1 --config.mesh.fsdp=64
`targets` is what `hisam compile` reads; training takes its mesh from the command, which is all data without one.
"""

import ml_collections

from hisam_jax.scaling.configs import scaling_config


def get_config() -> ml_collections.ConfigDict:
    """20 blocks of width 2048, state split over all devices."""
    targets = {
        "v5e:16x16": {"mesh": {"data": 1, "fsdp": 256}},
        "v5p:4x4x4": {"mesh": {"data": 1, "fsdp": 64}},
        "h100:8": {"mesh": {"data": 1, "fsdp": 8}, "training": {"accumulate": 8}},
        "h100:64": {"mesh": {"data": 8, "fsdp": 8}},
    }
    return scaling_config(width=2048, layers=20, heads=16, mlp=5504, learning_rate=4e-4, targets=targets)
