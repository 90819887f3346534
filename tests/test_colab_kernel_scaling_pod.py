"""Notebooks on anchor attention, scaling laws and compiling for a pod: run as a reader would, and what they claim."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from notebook_fixtures import claims, execute, is_blank, load, output_text, pictures

from hisam_jax.chips import CHIPS

NAMES = ("anchor_attention", "scaling_laws", "tpu_pod_from_a_laptop")
# Makes a Python that finds no compiler for other devices.
BARE = """
import importlib.machinery

find = importlib.machinery.PathFinder.find_spec
ABSENT = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_plugins")


def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in ABSENT else find(name, path, target)


importlib.machinery.PathFinder.find_spec = classmethod(find_spec)
"""


@pytest.mark.parametrize("name", NAMES)
def test_texts_make_claims_that_their_cells_print(name):
    assert len(list(claims(load(name)))) >= 3


def brute_pairs(items: int, tokens: int, strict: bool) -> int:
    """Allowed pairs, one by one."""
    places = list(itertools.product(range(items), range(tokens)))
    return sum(
        (n == m and t <= s) or (m < n and t == tokens - 1 and not (strict and s == tokens - 1))
        for n, s in places
        for m, t in places
    )


def drawn(executed, part: str, count: int = 1) -> list[np.ndarray]:
    """The pictures of the cell that holds `part`, of which there are so many, none blank."""
    found = pictures(executed.cell(part))
    assert len(found) == count and not any(is_blank(picture) for picture in found)
    return found


def share_of(picture: np.ndarray, colour: tuple[int, int, int]) -> float:
    """The share of a picture's pixels that are of this colour, to what smoothing does to it."""
    return float((np.abs(picture.astype(int) - colour).max(-1) < 12).mean())


@pytest.mark.slow
def test_anchor_attention(tmp_path):
    read = {
        "allowed": "allowed",
        "strict": "anchor_mask(jnp.ones((1, ITEMS), jnp.int32), TOKENS, strict=True).sum()",
        "table": "table", "gaps": "gaps", "kept": "kept",
        "reach": "{name: (size > 0).tolist() for name, size in reach.items()}",
        "future": "max(float(size[future].max()) for size in reach.values())",
        "lengths": "lengths", "fewer": "fewer_N", "faster": "faster_N", "smaller": "smaller_N",
    }  # fmt: skip
    found = execute(load("anchor_attention"), tmp_path, read)
    values = found.values
    assert np.sum(values["allowed"]) == brute_pairs(6, 5, False) and values["strict"] == brute_pairs(6, 5, True)
    assert [row[2:5] for row in values["table"]][0] == [180_300, 37_450, 32_500]
    assert all(row[3] == brute_pairs(row[0], row[1] + 1, False) for row in values["table"][:1])
    assert [round(100 * row[5]) for row in values["table"]] == [18, 25, 17]
    assert set(values["gaps"]) >= {"xla", "dense"} and max(max(gap) for gap in values["gaps"].values()) < 1e-4
    assert values["future"] == 0.0
    assert values["reach"]["one layer"] == values["allowed"]
    assert np.array_equal(values["reach"]["two layers"], np.tri(30, dtype=bool))
    assert np.sum(values["reach"]["two layers, strict"]) == 465 - 15 * 4
    assert np.all(np.diff(values["fewer"]) > 0) and values["fewer"][-1] < 36 / 7 < 1.05 * values["fewer"][-1]
    assert values["faster"][-1] > 1.5 and values["smaller"][-1] > 3
    assert [flat / ours for flat, ours in zip(values["kept"]["flat"], values["kept"]["anchors"], strict=True)] == [
        6
    ] * 3
    (mask,) = drawn(found, "What a token may read")
    assert (
        share_of(mask, (0, 114, 178)) > 0.03 < share_of(mask, (150, 150, 150)) and share_of(mask, (213, 94, 0)) > 0.01
    )
    for part in ("Which input reaches", "temporaries of the program", "Keys and values kept"):
        drawn(found, part)


@pytest.mark.slow
def test_scaling_laws(tmp_path):
    read = {
        "inside": "[bool(x) for x in inside]", "doubts": "list(fit.doubts)", "true_p": "true_p", "found_p": "found_p",
        "cells": "result['cells']", "left": "result['left']", "oracle": "result['oracle']",
        "uniform": "result['uniform']", "law": "result['models']['hmat']['law']",
        "predictions": "result['models']['hmat']['predictions']",
    }  # fmt: skip
    found = execute(load("scaling_laws"), tmp_path, read)
    values = found.values
    assert all(values["inside"]) and not values["doubts"], "a planted law comes back"
    low, high = values["found_p"]["ci95"]
    assert low <= values["true_p"] <= high and high - low < 0.1
    cells = values["cells"]
    assert len(cells) == 9 and values["left"] == 0
    by_budget = {flops: [c for c in cells if c["flops"] == flops] for flops in sorted({c["flops"] for c in cells})}
    best = [min(cell["loss"]["value"] for cell in group) for group in by_budget.values()]
    assert len(by_budget) == 3 and best == sorted(best, reverse=True) and best[-1] < best[0] - 0.05
    for group in by_budget.values():
        assert len({cell["n"]["network"] for cell in group}) == 3
        order = sorted(group, key=lambda cell: cell["n"]["network"])
        assert [cell["d"] for cell in order] == sorted((cell["d"] for cell in group), reverse=True)
    for cell in cells:
        assert cell["spent"] == pytest.approx(cell["flops"], rel=0.05)
        assert values["oracle"] < cell["loss"]["value"] < 1.05 * values["uniform"]
    hours = [found for found in values["predictions"] if " hour" in found["said"]]
    assert [found["flops"] for found in hours] == [3600 * CHIPS[chip].flops * 0.3 for chip in ("v5e", "h100")]
    assert all("extrapolation" in found["warnings"][0] for found in hours)
    told = output_text(found.cell("doubt in law"))
    assert all(doubt in told for doubt in values["law"]["doubts"]) and ("no" in told) == (
        not values["law"]["identified"]
    )
    for part in ("width_ratios=(3, 2)", 'figures(result)["isoflop"]', 'figures(result)["frontier"]'):
        drawn(found, part)


POD = {
    "reports": "reports", "counted": "[held['total'] for held in counted]", "meshes": "meshes",
    "capacity": "counted[0]['capacity']",
}  # fmt: skip


def check_meshes(values: dict) -> None:
    """Whole copies of a billion parameters leave no room; splitting them over all chips leaves nearly all."""
    held = dict(zip(values["meshes"], values["counted"], strict=True))
    assert 0.8 * values["capacity"] < held["data=256"] < values["capacity"]
    assert held["fsdp=256"] < held["data=256"] / 100
    ordered = [held[mesh] for mesh in ("data=256", "data=64,fsdp=4", "data=16,fsdp=16", "fsdp=256")]
    assert ordered == sorted(ordered, reverse=True)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu: make compilers")
def test_pod(tmp_path):
    found = execute(load("tpu_pod_from_a_laptop"), tmp_path, POD)
    slice_, box = (found.values["reports"][target] for target in ("v5e:16x16", "h100:8"))
    here = shutil.which("ptxas") and importlib.util.find_spec("jax_cuda13_plugin")
    assert slice_["compiled"] and (box["compiled"] or not here)
    assert (slice_["devices"], box["devices"]) == (256, 8)
    for report in (slice_, box):
        held = report["bytes_per_device"]
        assert held["parameters"] == 4 * sum(report["parameters"].values())  # each device is a whole copy
        assert not report["compiled"] or (report["fits"] and held["temporaries"] > 0)
    gradients = 4 * slice_["parameters"]["network"]  # in bf16, sent and received
    assert slice_["collective_bytes_per_step"]["all-reduce"] > 0.9 * gradients
    assert slice_["flops_per_step"]["useful"] == box["flops_per_step"]["useful"]
    told = output_text(found.cell("on one device'"))
    assert "256 x TPU v5e" in told and f"{slice_['bytes_per_device']['total'] / 2**30:.2f} of 16" in told
    check_meshes(found.values)
    drawn(found, 'GiB on one device", yticks')
    drawn(found, "16 copies")


@pytest.mark.slow
def test_pod_without_a_compiler_says_so_and_counts(tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(BARE)
    environment = {"PIP_NO_INDEX": "1", "PYTHONPATH": f"{tmp_path / 'bare'}:{Path(__file__).parents[1]}"}
    found = execute(load("tpu_pod_from_a_laptop"), tmp_path, POD, environment)
    assert not any(report["compiled"] for report in found.values["reports"].values())
    told = output_text(found.cell("started ="))
    assert told.count("counted only") == told.count("cannot be described") == 2
    assert "not known without a compiler" in output_text(found.cell("on one device'"))
    check_meshes(found.values)
