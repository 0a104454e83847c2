"""Projections and neighbours: against numpy's eigenvectors, loops, and clusters that are known."""

from __future__ import annotations

import numpy as np
import pytest

from hssl_dist.training.projection import neighbour_accuracy, principal_plane


def test_the_plane_is_that_of_the_two_largest_eigenvectors() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 5)) @ rng.normal(size=(5, 5))
    points, shares = principal_plane(features)
    values, vectors = np.linalg.eigh(np.corrcoef(features.T))
    assert shares == pytest.approx(tuple(values[[-1, -2]] / values.sum()))
    standardised = (features - features.mean(axis=0)) / features.std(axis=0)
    for axis in (0, 1):
        vector = vectors[:, -1 - axis]
        vector = vector * np.sign(vector[np.abs(vector).argmax()])
        np.testing.assert_allclose(points[:, axis], standardised @ vector, atol=1e-9)


def test_a_feature_that_never_varies_does_not_matter() -> None:
    features = np.random.default_rng(1).normal(size=(10, 3))
    points, _ = principal_plane(features)
    wider, _ = principal_plane(np.column_stack([features, np.full(10, 7.0)]))
    np.testing.assert_allclose(points, wider, atol=1e-9)


def test_neighbours_vote_as_in_a_loop() -> None:
    rng = np.random.default_rng(2)
    features = rng.normal(size=(40, 3)) + np.repeat([[0.0], [0.7]], 20, axis=0)
    labels, patients = ["a"] * 20 + ["b"] * 20, [f"p{place // 2}" for place in range(40)]
    x = (features - features.mean(axis=0)) / features.std(axis=0)
    right = 0
    for i in range(40):
        others = [(float(np.linalg.norm(x[i] - x[j])), j) for j in range(40) if patients[i] != patients[j]]
        votes = [labels[j] for _, j in sorted(others)[:5]]
        right += max(("a", "b"), key=votes.count) == labels[i]
    accuracy, chance = neighbour_accuracy(features, labels, patients, 5)
    assert (accuracy, chance) == (right / 40, 0.5)
    assert 0.5 < accuracy < 1.0


def test_the_other_cases_of_a_patient_are_no_neighbours() -> None:
    features = np.array([[0.0], [0.01], [5.0], [5.01]])
    labels = ["a", "a", "b", "b"]
    assert neighbour_accuracy(features, labels, ["p", "q", "r", "s"], 1)[0] == 1.0
    assert neighbour_accuracy(features, labels, ["p", "p", "r", "r"], 1)[0] == 0.0
