"""Health measures at configurations whose values are known."""

from __future__ import annotations

import math

import pytest
import torch

from hssl_dist.training.health import chance_level, chance_warning, embedding_health, finite_samples


def test_perfect_embeddings_on_the_axes() -> None:
    axes = torch.eye(4)
    health = embedding_health(axes, axes)
    assert health["image_accuracy"] == 1.0
    assert health["effective_rank"] == pytest.approx(4.0)
    assert health["alignment"] == 0.0
    # Of 7 partners of an embedding one coincides with it, 6 are at squared distance 2.
    assert health["uniformity"] == pytest.approx(math.log((1 + 6 * math.exp(-4)) / 7))
    # A coordinate is 1 in a quarter of the embeddings: standard deviation sqrt(1/4 - 1/16), times sqrt(4).
    assert health["embedding_std"] == pytest.approx(2 * math.sqrt(3 / 16))


def test_collapsed_embeddings() -> None:
    same = torch.nn.functional.normalize(torch.ones(5, 3))
    health = embedding_health(same, same)
    assert health["effective_rank"] == pytest.approx(1.0, abs=1e-4)
    assert health["embedding_std"] == pytest.approx(0.0, abs=1e-7)
    assert health["uniformity"] == pytest.approx(0.0, abs=1e-6)
    assert health["alignment"] == pytest.approx(0.0, abs=1e-12)


def test_retrieval_accuracy_counts_both_directions() -> None:
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    second = torch.nn.functional.normalize(torch.tensor([[0.9, 0.1], [0.8, 0.6]]))
    # Nearest others: first0 -> second0 (its own), first1 -> second1 (its own), second0 -> first0 (its own),
    # second1 -> second0 (not its own).
    assert embedding_health(first, second)["image_accuracy"] == 0.75


def history(*losses: float) -> list[tuple[int, dict[str, float]]]:
    return [(step, {"loss_image": loss}) for step, loss in enumerate(losses)]


def test_a_loss_at_chance_is_warned_of() -> None:
    chance = chance_level(16)
    assert chance == pytest.approx(math.log(31))
    warning = chance_warning(history(chance, chance * 1.01, chance * 0.99), 16)
    assert warning is not None
    assert warning.startswith("the image loss stayed at 3.400, chance is 3.434:")
    assert chance_warning(history(chance, chance, chance / 2), 16) is None
    assert chance_warning([(1, {"loss_dense": 9.0})], 16) is None


def test_samples_that_are_not_finite_are_found() -> None:
    regions = torch.zeros(3, 1, 2, 2, 2)
    regions[1, 0, 1, 1, 0] = math.inf
    embeddings = torch.zeros(6, 4)
    embeddings[5, 0] = math.nan
    assert finite_samples([regions], 3).tolist() == [True, False, True]
    assert finite_samples([regions, embeddings], 3).tolist() == [True, False, False]
