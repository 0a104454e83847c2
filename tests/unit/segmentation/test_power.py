"""Variance components and power: by hand, by simulation, and against the textbook's normal formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from hssl_dist.segmentation.power import LEVELS, VarianceComponents, power, units_needed, variance_components


def _table(differences: np.ndarray) -> dict[tuple[str, ...], float]:
    return {tuple(map(str, place)): float(value) for place, value in np.ndenumerate(differences)}


def test_components_of_two_levels_by_hand() -> None:
    # Rows differ by 4, columns by 2, nothing else: MS of rows 16 = 2 var + 0, of columns 4 = 2 var + 0.
    parts = variance_components(_table(np.array([[1.0, 3.0], [5.0, 7.0]])), ("subset", "patient"))
    assert parts.variances == pytest.approx({("subset",): 8.0, ("patient",): 2.0, ("subset", "patient"): 0.0})
    assert parts.of_mean({"subset": 2, "patient": 2}) == pytest.approx(8 / 2 + 2 / 2)
    # A diagonal is all interaction: MS 1 with one degree of freedom, none of its rows or columns.
    diagonal = variance_components(_table(np.array([[1.0, 0.0], [0.0, 1.0]])), ("subset", "patient"))
    assert diagonal.variances == pytest.approx(
        {("subset",): 0.0, ("patient",): 0.0, ("subset", "patient"): 1.0}
    )


def test_components_of_a_simulated_study_are_found() -> None:
    rng = np.random.default_rng(0)
    sizes = (40, 30, 50)
    true = {(0,): 4.0, (1,): 1.0, (2,): 2.0, (0, 1): 0.5, (0, 2): 0.25, (1, 2): 1.5, (0, 1, 2): 3.0}
    table = np.zeros(sizes)
    for axes, variance in true.items():
        shape = [size if axis in axes else 1 for axis, size in enumerate(sizes)]
        table = table + rng.normal(scale=math.sqrt(variance), size=shape)
    parts = variance_components(_table(table))
    for axes, variance in true.items():
        assert parts.variances[tuple(LEVELS[axis] for axis in axes)] == pytest.approx(variance, rel=0.5)
    residual = parts.variances[LEVELS]
    assert residual == pytest.approx(3.0, rel=0.03)


def test_a_level_of_one_unit_has_no_component() -> None:
    parts = variance_components(_table(np.random.default_rng(1).normal(size=(4, 1, 5))))
    assert all(variance == 0.0 for effect, variance in parts.variances.items() if "seed" in effect)
    assert parts.variances["subset", "patient"] > 0.0


def test_a_table_with_gaps_or_other_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 4 combinations are missing; fill them"):
        variance_components({("a", "x"): 1.0, ("a", "y"): 2.0, ("b", "x"): 0.0}, ("subset", "patient"))
    with pytest.raises(ValueError, match="keys have 1 names, but the levels are subset, seed, patient"):
        variance_components({("a",): 1.0})


def test_power_with_many_units_is_the_textbooks() -> None:
    parts = VarianceComponents(("patient",), {("patient",): 4.0})
    d = 0.25
    needed = (norm.ppf(0.975) + norm.ppf(0.8)) ** 2 * 4.0 / d**2  # 502.3
    found = units_needed(parts, {"patient": 1}, "patient", d)
    assert found is not None
    assert needed < found <= needed + 4  # t instead of normal quantiles cost two patients
    assert power(parts, {"patient": found}, d) >= 0.8 > power(parts, {"patient": found - 1}, d)


def test_power_is_what_simulated_t_tests_show() -> None:
    rng = np.random.default_rng(2)
    patients, d = 12, 0.9
    values = rng.normal(d, 1.0, (20_000, patients))
    statistic = values.mean(axis=1) / (values.std(axis=1, ddof=1) / math.sqrt(patients))
    from scipy.stats import t

    share = (np.abs(statistic) > t.ppf(0.975, patients - 1)).mean()
    parts = VarianceComponents(("patient",), {("patient",): 1.0})
    assert power(parts, {"patient": patients}, d) == pytest.approx(share, abs=0.01)
    assert power(parts, {"patient": patients}, 0.0) == pytest.approx(0.05)


def test_more_patients_cannot_make_up_for_few_subsets() -> None:
    parts = VarianceComponents(LEVELS, {("subset",): 1.0, ("patient",): 1.0, LEVELS: 1.0})
    sizes = {"subset": 5, "seed": 2, "patient": 40}
    assert units_needed(parts, sizes, "patient", 0.5) is None
    subsets = units_needed(parts, sizes, "subset", 0.5)
    assert subsets is not None
    assert power(parts, {**sizes, "subset": subsets}, 0.5) >= 0.8


def test_without_any_variance_any_difference_is_seen() -> None:
    parts = VarianceComponents(("patient",), {("patient",): 0.0})
    assert power(parts, {"patient": 2}, 0.1) == 1.0
    assert power(parts, {"patient": 2}, 0.0) == 0.0


def test_one_degree_of_freedom_needs_far_more_than_many() -> None:
    parts = VarianceComponents(("subset",), {("subset",): 1.0})
    # Of scipy.stats.nct: sf(12.706, df=1, nc=10) and nearly 1 for df=9.
    assert power(parts, {"subset": 2}, 10 / math.sqrt(2)) == pytest.approx(0.5673, abs=1e-3)
    assert power(parts, {"subset": 10}, 10 / math.sqrt(10)) > 0.999
