"""Peak figures of accelerators, from the vendors: Cloud TPU's system architecture pages, NVIDIA's data sheets (dense).

What a device sends per second is one direction of every link that leaves it, summed: half of the bidirectional
bandwidth of a chip that Cloud TPU's pages give, whose torus has two links an axis.
"""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of one device.

    Attributes:
        name: of the device.
        kinds: how JAX's `device_kind` begins on it.
        flops: bfloat16 products and sums a second.
        memory: bytes of high-bandwidth memory.
        bandwidth: of that memory, bytes a second.
        link: bytes a second that the device sends to others.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    memory: int
    bandwidth: float
    link: float


CHIPS = {
    "v4": Chip("TPU v4", ("TPU v4",), 275e12, 32 * GIB, 1.2e12, 6 * 50e9),
    "v5e": Chip("TPU v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 0.819e12, 4 * 50e9),
    "v5p": Chip("TPU v5p", ("TPU v5p", "TPU v5"), 459e12, 95 * GIB, 2.765e12, 6 * 100e9),
    "v6e": Chip("TPU v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1.64e12, 4 * 100e9),
    "h100": Chip("NVIDIA H100", ("NVIDIA H100",), 989e12, 80 * GIB, 3.35e12, 450e9),
    "h200": Chip("NVIDIA H200", ("NVIDIA H200",), 989e12, 141 * GIB, 4.8e12, 450e9),
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls so; None for one whose peaks are not known here, such as a CPU."""
    return next((chip for chip in CHIPS.values() if device_kind.startswith(chip.kinds)), None)
