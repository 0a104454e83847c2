"""Health measures at configurations whose values are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hssl_dist.config.pretrain import ObjectiveConfig, PretrainConfig, StageConfig
from hssl_dist.training.health import (
    batch_finding,
    chance_level,
    embedding_health,
    findings,
    finite_samples,
    health_warnings,
)


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


def history(*measures: tuple[float, float, float], every: int = 10) -> list[tuple[int, dict[str, float]]]:
    """Logged steps with image loss, effective rank and standard deviation; chance is 3."""
    return [
        (
            every * (number + 1),
            {"loss_image": loss, "effective_rank": rank, "embedding_std": std, "image_chance": 3.0},
        )
        for number, (loss, rank, std) in enumerate(measures)
    ]


def settings(steps: int = 200, warmup_steps: int = 10) -> PretrainConfig:
    return PretrainConfig(encoder=StageConfig(steps=steps, warmup_steps=warmup_steps))


GOOD, CHANCE, COLLAPSED = (1.0, 20.0, 0.9), (2.99, 20.0, 0.9), (1.0, 1.2, 0.02)


def test_chance_is_the_log_of_the_number_of_negatives_and_one() -> None:
    assert chance_level(torch.arange(16)) == pytest.approx(math.log(31))
    # Two of a patient have 2 negatives each of the one other, which has 4.
    assert chance_level(torch.tensor([5, 7, 5])) == pytest.approx((2 * math.log(3) + math.log(5)) / 3)
    assert chance_level(torch.tensor([4, 4])) == 0.0


def test_healthy_embeddings_are_not_warned_of() -> None:
    assert health_warnings(history(*30 * [GOOD]), settings()) == {}


def test_a_loss_at_chance_is_warned_of() -> None:
    found = findings(history(GOOD, *5 * [CHANCE]), settings())
    assert found.keys() == {"chance"}
    said = "steps 20 to 60: the image loss stayed at 2.990, chance is 3.000: the embeddings tell no samples"
    assert found["chance"].startswith(said)


def test_collapse_is_warned_of_by_rank_and_by_spread() -> None:
    found = findings(history(GOOD, *5 * [COLLAPSED]), settings())
    assert found.keys() == {"rank", "std"}
    assert "their effective rank is 1.20, of 128 at most" in found["rank"]
    assert "their standard deviation is 0.020, it is 1 where they are spread evenly" in found["std"]


@pytest.mark.parametrize(
    ("logged", "steps", "warmup_steps"),
    [
        (history(*4 * [CHANCE]), 200, 0),  # too few to judge
        (history(*5 * [CHANCE]), 200, 10),  # the first is of the warm-up
        (history(*9 * [CHANCE]), 500, 0),  # a fifth of 50 is 10
        ([*history(*5 * [CHANCE]), (60, {"loss_dense": 1.0})], 200, 0),  # the decoder stage
        (history(*4 * [CHANCE], (2.5, 20.0, 0.9)), 200, 0),  # the mean is below
    ],
    ids=["few", "warm-up", "fifth", "decoder", "mean"],
)
def test_no_verdict_before_its_time(
    logged: list[tuple[int, dict[str, float]]], steps: int, warmup_steps: int
) -> None:
    assert findings(logged, settings(steps, warmup_steps)) == {}


def test_a_run_is_warned_of_each_kind_once_at_its_first_time() -> None:
    course = history(*8 * [CHANCE], *10 * [COLLAPSED], *10 * [CHANCE])
    found = health_warnings(course, settings())
    assert {kind: text.partition(":")[0] for kind, text in found.items()} == {
        "chance": "steps 20 to 60",
        "rank": "steps 90 to 130",
        "std": "steps 90 to 130",
    }


def test_samples_that_are_not_finite_are_found() -> None:
    regions = torch.zeros(3, 1, 2, 2, 2)
    regions[1, 0, 1, 1, 0] = math.inf
    embeddings = torch.zeros(6, 4)
    embeddings[5, 0] = math.nan
    assert finite_samples([regions], 3).tolist() == [True, False, True]
    assert finite_samples([regions, embeddings], 3).tolist() == [True, False, False]


def test_batches_of_one_block_are_of_one_task() -> None:
    found = batch_finding(PretrainConfig(global_batch=24), tasks=4, blocks=1)
    assert found == (
        "each global batch of 24 is one block, of one of the 4 tasks: the heads of task and group learn one "
        "class and unlearn it with the next batch; set sampling.block_size to 12 at most, or raise "
        "global_batch to 32 at least"
    )


@pytest.mark.parametrize(
    ("changes", "tasks", "blocks"),
    [
        ({}, 4, 2),
        ({}, 1, 1),
        ({"objective": ObjectiveConfig(task_weight=0, group_weight=0)}, 4, 1),
        ({"encoder": StageConfig(steps=0)}, 4, 1),
    ],
    ids=["mixed", "one task", "image level alone", "decoder alone"],
)
def test_where_batches_of_one_block_do_no_harm(changes: dict[str, Any], tasks: int, blocks: int) -> None:
    assert batch_finding(PretrainConfig(global_batch=16, **changes), tasks, blocks) is None
