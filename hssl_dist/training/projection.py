"""Features in two dimensions, and whether neighbours in all of them are alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

_LEAST_STD = 1e-12


def principal_plane(
    features: Float64[np.ndarray, "n d"],
) -> tuple[Float64[np.ndarray, "n 2"], tuple[float, float]]:
    """Coordinates on the two principal axes of standardised features, and each axis's share of the variance.

    Signs are fixed: the feature that weighs most on an axis does so positively. Needs two rows and columns.
    """
    _, singular, axes = np.linalg.svd(_standardised(features), full_matrices=False)
    heaviest = np.abs(axes[:2]).argmax(axis=1)
    axes = axes[:2] * np.where(axes[(0, 1), heaviest] < 0.0, -1.0, 1.0)[:, None]
    variances = singular**2
    first, second = variances[:2] / max(float(variances.sum()), _LEAST_STD)
    return _standardised(features) @ axes.T, (float(first), float(second))


def neighbour_accuracy(
    features: Float64[np.ndarray, "n d"], labels: Sequence[str], patients: Sequence[str], neighbours: int
) -> tuple[float, float]:
    """Share of rows whose label wins a vote of their nearest rows of other patients, and the share of the
    commonest label, which naming it always would reach.

    Distances are Euclidean over standardised features; of labels with equal votes the nearest row's wins.
    """
    rows = _standardised(features)
    squares = (rows**2).sum(axis=1)
    distances = squares[:, None] + squares[None] - 2.0 * rows @ rows.T
    names = np.array(patients)
    distances[names[:, None] == names[None]] = np.inf
    right = 0
    for label, row in zip(labels, distances, strict=True):
        nearest = [place for place in np.argsort(row, kind="stable")[:neighbours] if np.isfinite(row[place])]
        votes = Counter(labels[place] for place in nearest)  # in order of distance, which settles ties
        right += bool(votes) and votes.most_common(1)[0][0] == label
    return right / len(labels), Counter(labels).most_common(1)[0][1] / len(labels)


def _standardised(features: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n d"]:
    """Mean 0 and deviation 1 of each feature; one that never varies is 0."""
    centred = features - features.mean(axis=0)
    standardised: Float64[np.ndarray, "n d"] = centred / np.maximum(features.std(axis=0), _LEAST_STD)
    return standardised
