"""The device that a call is traced for."""

from __future__ import annotations

import jax


def default_device() -> jax.Device:
    """The device that JAX would place an array on: `jax.default_device` where it is set."""
    chosen = jax.config.jax_default_device
    return jax.devices(chosen)[0] if chosen is None or isinstance(chosen, str) else chosen


def device() -> tuple[str, str]:
    """(platform: `cpu`, `gpu` or `tpu`; device kind) of the mesh that is set, else of JAX's default device."""
    found = jax.sharding.get_abstract_mesh().abstract_device or default_device()
    return {"cuda": "gpu", "rocm": "gpu"}.get(found.platform, found.platform), found.device_kind


def compute_capability() -> float | None:
    """Of the GPU that `device` speaks of; None where it is not at hand, then a compile is for one elsewhere."""
    here = default_device()
    if here.platform not in ("gpu", "cuda", "rocm") or device()[1] != here.device_kind:
        return None
    try:
        return float(here.compute_capability)
    except ValueError:  # ROCm says gfx942
        return 0.0
