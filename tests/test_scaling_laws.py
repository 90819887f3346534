"""Laws are found where they were planted, and doubted where cells cannot tell; what is predicted follows from them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scaling_fixtures import BUDGETS, LAWS, cell, planted

from hisam_jax.chips import CHIPS
from hisam_jax.drawing import svg
from hisam_jax.errors import UserError
from hisam_jax.scaling import fits, frontier, page, plots
from hisam_jax.scaling.ceiling import ceiling_of
from hisam_jax.scaling.isoflop import OUTSIDE, fit_bowls
from hisam_jax.scaling.law import NAMES, Fit, Law, fit_law

LAW = LAWS["hmat"]


def columns(cells, model="hmat", history=64):
    """N, D and loss of a model's cells."""
    of = [c for c in cells if c["model"] == model and c["history"] == history]
    return np.array([(c["n"]["network"], c["d"], c["loss"]["value"]) for c in of]).T


def test_a_planted_law_is_found_exactly_without_noise():
    found = fit_law(*columns(planted(0.0)), resamples=10)
    assert [getattr(found.law, name) for name in NAMES] == pytest.approx(
        [getattr(LAW, name) for name in NAMES], rel=0.02
    )
    assert found.rms < 1e-4 and not found.doubts


def test_a_planted_law_lies_within_its_interval():
    """All five parameters, on average over sweeps of other noise: an interval of 95 % may miss now and then."""
    hits = []
    for seed in range(4):
        found = fit_law(*columns(planted(3e-3, seed)), resamples=50)
        ends = [found.interval(name) for name in NAMES]
        hits += [low <= getattr(LAW, name) <= high for name, (low, high) in zip(NAMES, ends, strict=True)]
        assert all(low < high for low, high in ends) and not found.doubts
        assert found.law.E == pytest.approx(LAW.E, rel=0.03)
    assert np.mean(hits) >= 0.7


@pytest.mark.parametrize(
    ("n", "d", "said"),
    [
        (np.full(9, 1e4), np.geomspace(1e5, 1e8, 9), "fewer than three values of N"),
        (np.geomspace(1e3, 1e6, 9), np.full(9, 1e6), "fewer than three values of D"),
        (np.repeat([1e4, 1.5e4, 2e4], 3), np.tile([1e5, 1e6, 1e7], 3), "N ranges over less than a factor of 4"),
    ],
)
def test_cells_that_cannot_tell_are_doubted(n, d, said):
    found = fit_law(n, d, LAW(n, d) * np.exp(1e-3 * np.random.default_rng(0).normal(size=9)), resamples=20)
    assert said in " ".join(found.doubts) and not found.record()["identified"]


def test_noise_that_drowns_the_law_is_doubted():
    n, d, loss = columns(planted(0.15))
    assert fit_law(n, d, loss, resamples=12).doubts


def test_too_few_cells_are_an_error_that_says_how_many():
    with pytest.raises(UserError, match="6 finished cells; expected 7 at least") as caught:
        fit_law(*(column[:6] for column in columns(planted())))
    assert caught.value.field == "parts"


def test_the_cost_of_an_item_is_found_and_never_negative():
    n = np.geomspace(1e3, 1e6, 6)
    cost = frontier.fit_cost(n, 30 * n + 2000 * np.sqrt(n))
    assert (cost.u, cost.v) == pytest.approx((30, 2000)) and cost.worst < 1e-6
    falling = frontier.fit_cost(n, 5000 * np.sqrt(n) - 0.5 * n)
    assert falling.u >= 0 and falling.v > 0


def test_the_best_of_a_budget_is_that_of_a_fine_search():
    cost = frontier.CostOfItem(30.0, 2000.0, 0.0)
    for flops in (1e10, 1e13, 1e20):
        best = frontier.best_of(LAW, cost, flops, 1e4)
        n = np.geomspace(1e1, 1e12, 200_001)
        assert best.loss == pytest.approx(LAW(n, flops / cost(n)).min(), rel=1e-9)
        assert best.d * cost(best.n) == pytest.approx(flops)


def test_where_an_item_costs_in_proportion_to_n_the_frontier_is_the_closed_one():
    """N* = G (C / k)^(b / (a + b)), as in the paper, for cost k N."""
    cost, flops = frontier.CostOfItem(6.0, 0.0, 0.0), 1e15
    factor = (LAW.a * LAW.A / (LAW.b * LAW.B)) ** (1 / (LAW.a + LAW.b))
    expected = factor * (flops / 6) ** (LAW.b / (LAW.a + LAW.b))
    assert frontier.best_of(LAW, cost, flops, 1e5).n == pytest.approx(expected, rel=1e-3)
    slopes = frontier.exponent(Fit(LAW, (LAW,), 9, 0.0, ()), cost, (1e12, 1e18), 1e5)
    assert slopes["n"]["value"] == pytest.approx(LAW.b / (LAW.a + LAW.b), abs=1e-3)
    assert slopes["n"]["value"] + slopes["d"]["value"] == pytest.approx(1, abs=1e-3)


def test_parabolas_find_the_best_size_and_its_power():
    best = {flops: 50 * flops**0.4 for flops in BUDGETS}
    flops = np.repeat(BUDGETS, 5)
    n = np.concatenate([best[c] * np.geomspace(0.1, 10, 5) for c in BUDGETS])
    loss = 5 + 0.1 * (np.log(n) - np.log([best[c] for c in flops])) ** 2
    bowls, power = fit_bowls(flops, n, loss + 1e-3 * np.random.default_rng(0).normal(size=len(n)), resamples=50)
    assert [bowl.n for bowl in bowls] == pytest.approx(list(best.values()), rel=0.1)
    assert all(bowl.inside and bowl.n_ci95[0] < best[bowl.flops] * 1.1 for bowl in bowls)
    assert power["p"]["ci95"][0] - 0.01 < 0.4 < power["p"]["ci95"][1] + 0.01


def test_a_parabola_without_a_least_among_its_sizes_says_so_and_stays_out_of_the_power():
    n = np.tile(np.geomspace(1e3, 1e5, 4), 2)
    flops = np.repeat([1e10, 1e11], 4)
    bowls, power = fit_bowls(flops, n, 5 + 0.1 * np.log(n) ** 1.5, resamples=10)
    assert not any(bowl.inside for bowl in bowls) and power == {}


def test_a_least_at_the_edge_of_the_sizes_is_told_by_where_resamples_have_theirs():
    n = np.tile(np.geomspace(1e3, 1e5, 5), 2)
    flops, noise = np.repeat([1e10, 1e11], 5), 0.02 * np.random.default_rng(0).normal(size=10)
    edge, middle = 9e4, 1e4
    loss = 5 + 0.01 * (np.log(n) - np.log(np.where(flops < 5e10, middle, edge))) ** 2
    (at_middle, at_edge), power = fit_bowls(flops, n, loss + noise, resamples=200)
    assert at_edge.outside > OUTSIDE and at_edge.n_ci95[1] == pytest.approx(1e5)
    assert at_edge.outside > at_middle.outside and power == {}


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: frontier.target_of_flops(0.0), "--flops"),
        (lambda: frontier.target_of_flops(math.nan), "--flops"),
        (lambda: frontier.target_of_chips(10, "h300"), "--device"),
        (lambda: frontier.target_of_chips(-1, "h100"), "--chip-hours"),
        (lambda: frontier.target_of_chips(1, "h100", 1.5), "--mfu"),
    ],
)
def test_a_budget_that_cannot_be_names_its_flag(make, field):
    with pytest.raises(UserError) as caught:
        make()
    assert caught.value.field == field and caught.value.expected


def test_hours_of_a_chip_are_its_peak_times_what_is_used():
    target = frontier.target_of_chips(2.0, "v5e", 0.5)
    assert target.flops == 2 * 3600 * CHIPS["v5e"].flops * 0.5 and "50%" in target.said and "v5e" in target.said


def compiled(**change) -> dict:
    """A report of a step that its links hold up: 100 of 400 operations a device that the peak would give."""
    peak = CHIPS["v5e"].flops
    report = {
        "fits": True, "topology": "v5e:2x2", "chip": "TPU v5e", "devices": 4,
        "flops_per_step": {"useful": 400, "recomputed": 80},
        "floor_seconds": {"arithmetic": 120 / peak, "memory": 9 / peak, "links": 400 / peak, "limit": "links"},
    }  # fmt: skip
    return report | change


def test_the_floor_of_a_compiled_step_bounds_what_a_chip_gives(tmp_path):
    file = tmp_path / "step.json"
    file.write_text(json.dumps(compiled()))
    ceiling = ceiling_of(file)
    assert ceiling.device == "v5e" and ceiling.share == pytest.approx(0.25)
    bound = frontier.target_of_chips(1.0, "v5e", 0.5, ceiling)
    assert bound.flops == pytest.approx(3600 * CHIPS["v5e"].flops * 0.25)
    assert "25% of it used, the most by links of the step compiled for v5e:2x2)" in bound.said
    assert frontier.target_of_chips(1.0, "v5e", 0.1, ceiling) == frontier.target_of_chips(1.0, "v5e", 0.1)
    floor = {**compiled()["floor_seconds"], "links": 1 / CHIPS["v5e"].flops, "limit": "arithmetic"}
    file.write_text(json.dumps(compiled(floor_seconds=floor)))
    assert ceiling_of(file).share == pytest.approx(100 / 120)  # what is computed twice is of no use
    useful = 4456881872519861  # whose share is 1 and a bit, by rounding
    floor = {"arithmetic": useful / 1 / CHIPS["v5e"].flops, "memory": 0.0, "limit": "arithmetic"}
    alone = compiled(devices=1, flops_per_step={"useful": useful, "recomputed": 0}, floor_seconds=floor)
    file.write_text("\ufeff" + json.dumps(alone), encoding="utf-8")
    assert ceiling_of(file).share == 1.0 and "links unknown" in ceiling_of(file).said
    with pytest.raises(UserError, match="v5e, whose step") as caught:
        frontier.target_of_chips(1.0, "h100", 0.5, ceiling)
    assert caught.value.field == "--device"


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "{}", json.dumps(compiled(floor_seconds=None)), json.dumps(compiled(chip="Abacus")),
        "[" * 100_000, json.dumps(compiled(devices=10**400)), json.dumps(compiled(fits=False)),
        json.dumps(compiled(devices=0)), json.dumps(compiled(flops_per_step={"useful": -1})), None,
        json.dumps({name: value for name, value in compiled().items() if name != "floor_seconds"}),
    ],
)  # fmt: skip
def test_what_is_no_report_of_a_compiled_step_is_refused(tmp_path, text):
    file = tmp_path / "step.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match="step.json") as caught:
        ceiling_of(file)
    assert caught.value.field == "--compiled"


@pytest.fixture(scope="module")
def result():
    cells = planted()
    cells[0] = {**cells[0], "planned": {**cells[0]["planned"], "epochs": 2.5}}
    targets = [frontier.target_of_flops(1e14), frontier.target_of_chips(1000, "h100")]
    about = {"title": "Planted", "learning_rate": "1e-3", "cells": cells, "failed": {"x": "out of luck"}}
    return about | fits.analyse(cells, "network", 30, targets)


def test_a_sweep_tells_both_models_apart_at_every_budget(result):
    assert json.loads(json.dumps(result)) == result
    hmat, flat = (result["models"][name] for name in ("hmat", "flat"))
    assert result["history"] == 64 and result["oracle"] == pytest.approx(4.2)
    assert (hmat["law"]["cells"], flat["law"]["cells"]) == (24, 25)  # one of hmat's saw its data twice
    assert hmat["law"]["identified"] and hmat["exponents"]["n"]["value"] == pytest.approx(0.4, abs=0.05)
    by_parabola = [bowl["n"] for bowl in hmat["isoflop"]["bowls"] if bowl["inside"]]
    by_law = [point["n"]["value"] for point in hmat["frontier"]]
    assert len(by_parabola) == 4 and by_parabola[0] == pytest.approx(by_law[0], rel=0.3)
    for ours, theirs in zip(hmat["frontier"], flat["frontier"], strict=True):
        assert ours["loss"]["ci95"][1] < theirs["loss"]["ci95"][0]


def test_only_what_lies_far_past_the_data_is_warned_of(result):
    near, far = result["models"]["hmat"]["predictions"]
    assert near["warnings"] == [] and "far past the data" in far["warnings"][0]
    assert near["loss"]["ci95"][0] <= float(LAW(near["n"]["value"], near["d"]["value"])) + 0.02


def test_histories_are_groups_that_differ_in_nothing_else(result):
    groups = {group["model"]: [c["history"] for c in group["cells"]] for group in result["histories"]}
    assert groups == {"hmat": [16, 32, 64], "flat": [16, 32, 64]}


def test_the_page_says_what_was_found(result):
    pictures = plots.figures(result)
    text = page.markdown(result, list(pictures))
    assert set(pictures) == {"isoflop", "loss", "recall", "frontier", "history"}
    assert all(f"](plots/{name}.svg)" in text for name in pictures)
    assert "(2.5 passes)" in text and "x failed: out of luck" in text and "4.200" in text
    assert "1,000 hours of one NVIDIA H100 (989 TFLOP/s peak, 30% of it used) = 1.07e+21 FLOPs" in text
    assert "held-out users" not in text, "one cell has passes over its data"
    assert "on liked events of held-out users" in page.markdown(
        {**result, "cells": result["cells"][1:]}, list(pictures)
    )
    assert svg(pictures["loss"]) == svg(plots.figures(result)["loss"])


def test_budgets_are_told_apart_by_three_digits():
    cells = [cell("hmat", n, flops, 64, 0.0, LAW) for flops in (1.5e9, 2.5e9) for n in (1000, 3000, 9000)]
    found = {"title": "Near", "learning_rate": "1e-3", "cells": cells, "failed": {}} | fits.analyse(cells, "total", 20)
    figures = plots.figures(found)
    text = page.markdown(found, list(figures))
    assert text.count("| 1.5e+09 |") == text.count("| 2.5e+09 |") >= 2
    shown = [line.get_text() for line in figures["isoflop"].axes[0].get_legend().get_texts()]
    assert shown == ["1.5e+09 FLOPs", "2.5e+09 FLOPs"]


def test_a_sweep_over_items_alone_has_a_law_and_no_parabolas():
    cells = [{**one, "items": one["d"], "flops": 0.0} for one in planted()]
    found = {"title": "Items", "learning_rate": "1e-3", "cells": cells, "failed": {}}
    found |= fits.analyse(cells, "network", 10)
    pictures = plots.figures(found)
    assert found["models"]["hmat"]["law"] and not found["models"]["hmat"]["isoflop"]["bowls"]
    assert "frontier" in pictures and "## Laws" in page.markdown(found, list(pictures))
    assert all(svg(picture).startswith("<?xml") for picture in pictures.values())


def test_a_page_of_too_few_cells_says_so_in_place_of_a_law():
    cells = [cell("hmat", n, 1e11, 64, 0.0, Law(4, 60, 90, 0.5, 0.35)) for n in (1000, 3000, 9000)]
    found = {"title": "Few", "learning_rate": "1e-3", "cells": cells, "failed": {}} | fits.analyse(cells, "total", 20)
    pictures = plots.figures(found)
    assert found["models"]["hmat"]["law"] is None and "frontier" not in pictures
    assert "3 finished cells; expected 7" in page.markdown(found, list(pictures))
