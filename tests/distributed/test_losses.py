"""On any number of ranks, equal or ragged, DDP gives the gradient of one process on the whole batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hssl_dist import collectives
from hssl_dist.errors import ConfigError, TrainingError
from hssl_dist.losses.dense import dense_contrast, dense_contrast_across
from hssl_dist.losses.hierarchy import accuracy, classification
from hssl_dist.losses.nt_xent import nt_xent
from hssl_dist.losses.restoration import restoration
from tests.distributed.ranks import run_ranks

SAMPLES, POINTS, FEATURES = 12, 6, 5
SPLITS = ((12,), (6, 6), (9, 3), (4, 4, 4), (7, 4, 1), (8, 4, 0), (3, 3, 3, 3), (6, 1, 0, 5))
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-6}

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Tensor, Batch], Tensor]


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(3)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    first, first_points = noise(SAMPLES, FEATURES), noise(SAMPLES, POINTS, FEATURES)
    valid = torch.rand(SAMPLES, POINTS, generator=generator) > 0.3
    valid[2] = False
    return {
        "first": first,
        "second": first + 0.5 * noise(SAMPLES, FEATURES),
        "groups": torch.randint(-2, 2, (SAMPLES,), generator=generator),
        "regions": torch.arange(SAMPLES),
        "targets": torch.randint(0, 3, (SAMPLES,), generator=generator),
        "first_points": first_points,
        "second_points": first_points + 0.5 * noise(SAMPLES, POINTS, FEATURES),
        "coordinates": 10 * torch.rand(SAMPLES, POINTS, 3, generator=generator),
        "valid": valid,
        "mask": torch.rand(SAMPLES, 1, POINTS, 1, 1, generator=generator) > 0.6,
    }


def in_one_pass(net: nn.Module, first: Tensor, second: Tensor) -> Sequence[Tensor]:
    return net(torch.cat((first, second))).chunk(2)


# ------------------------------------------------------------------------------- losses and slow references


def image_level(net: nn.Module, temperature: Tensor, batch: Batch) -> Tensor:
    first, second = in_one_pass(net, batch["first"], batch["second"])
    return nt_xent(first, second, temperature, tile=5)


def image_level_reference(net: nn.Module, temperature: Tensor, batch: Batch) -> Tensor:
    first, second = net(batch["first"]), net(batch["second"])
    n = len(first)
    rows = F.normalize(torch.cat((first, second)), dim=1)
    logits = (rows @ rows.T / temperature).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    return F.cross_entropy(logits, torch.arange(2 * n).roll(n))


def image_level_of_groups(net: nn.Module, temperature: Tensor, batch: Batch) -> Tensor:
    first, second = in_one_pass(net, batch["first"], batch["second"])
    return nt_xent(first, second, temperature, groups=batch["groups"], tile=5)


def image_level_of_groups_reference(net: nn.Module, temperature: Tensor, batch: Batch) -> Tensor:
    first, second = net(batch["first"]), net(batch["second"])
    n = len(first)
    rows = F.normalize(torch.cat((first, second)), dim=1)
    alike = (batch["groups"][:, None] == batch["groups"]).repeat(2, 2)
    positive = torch.arange(2 * n).roll(n)
    alike[torch.arange(2 * n), positive] = False
    return F.cross_entropy((rows @ rows.T / temperature).masked_fill(alike, -torch.inf), positive)


def task_level(net: nn.Module, temperature: Tensor, batch: Batch) -> Tensor:
    return classification(net(batch["first"]) / temperature, batch["targets"])


def task_level_reference(net: nn.Module, temperature: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(net(batch["first"]) / temperature, batch["targets"])


def balanced_level(net: nn.Module, temperature: Tensor, batch: Batch) -> Tensor:
    return classification(net(batch["first"]) / temperature, batch["targets"], balanced=True)


def balanced_level_reference(net: nn.Module, temperature: Tensor, batch: Batch) -> Tensor:
    logits, targets = net(batch["first"]) / temperature, batch["targets"]
    classes = [F.cross_entropy(logits[targets == c], targets[targets == c]) for c in targets.unique()]
    return torch.stack(classes).mean()


def correspondence(net: nn.Module, temperature: Tensor, batch: Batch) -> Tensor:
    first, second = in_one_pass(net, batch["first_points"], batch["second_points"])
    return dense_contrast(first, second, batch["coordinates"], batch["valid"], temperature, distance=4.0)


def correspondence_reference(net: nn.Module, temperature: Tensor, batch: Batch) -> Tensor:
    terms = []
    for first, second, places, valid in zip(
        net(batch["first_points"]),
        net(batch["second_points"]),
        batch["coordinates"],
        batch["valid"],
        strict=True,
    ):
        views = F.normalize(first, dim=1), F.normalize(second, dim=1)
        for own, other in (views, views[::-1]):
            for p in range(POINTS):
                far = [q for q in range(POINTS) if valid[q] and (places[p] - places[q]).norm() >= 4.0]
                if not valid[p] or not far:
                    continue
                negatives = torch.cat((own[far], other[far]))
                logits = torch.cat((other[p : p + 1], negatives)) @ own[p] / temperature
                terms.append(logits.logsumexp(0) - logits[0])
    return torch.stack(terms).mean()


def correspondence_across(net: nn.Module, temperature: Tensor, batch: Batch) -> Tensor:
    first, second = in_one_pass(net, batch["first_points"], batch["second_points"])
    marks = batch["coordinates"], batch["valid"], batch["regions"], batch["groups"]
    return dense_contrast_across(first, second, *marks, temperature, distance=4.0, tile=17)


def correspondence_across_reference(net: nn.Module, temperature: Tensor, batch: Batch) -> Tensor:
    views = [F.normalize(net(batch[name]), dim=2) for name in ("first_points", "second_points")]
    points = [(b, p) for b in range(len(batch["valid"])) for p in range(POINTS) if batch["valid"][b, p]]
    terms = []
    for b, p in points:
        far = [
            (c, q)
            for c, q in points
            if batch["groups"][c] != batch["groups"][b]
            or (c == b and (batch["coordinates"][b, p] - batch["coordinates"][c, q]).norm() >= 4.0)
        ]
        if not far:
            continue
        own_index, other_index = (torch.tensor(index) for index in zip(*far, strict=True))
        for own, other in (views, views[::-1]):
            negatives = torch.cat((own[own_index, other_index], other[own_index, other_index]))
            logits = torch.cat((other[b, p][None], negatives)) @ own[b, p] / temperature
            terms.append(logits.logsumexp(0) - logits[0])
    return torch.stack(terms).mean()


def restored_voxels(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    restored = net(batch["first_points"]).movedim(2, 1)[..., None, None]
    return restored, batch["second_points"].movedim(2, 1)[..., None, None]


def masked_restoration(net: nn.Module, temperature: Tensor, batch: Batch) -> Tensor:
    restored, target = restored_voxels(net, batch)
    return restoration(restored * temperature, target[:, :3], batch["mask"])


def masked_restoration_reference(net: nn.Module, temperature: Tensor, batch: Batch) -> Tensor:
    restored, target = restored_voxels(net, batch)
    mask = batch["mask"].expand(-1, 3, -1, -1, -1)
    return F.mse_loss((restored * temperature)[mask], target[:, :3][mask])


LOSSES: dict[str, tuple[Loss, Loss]] = {
    "image": (image_level, image_level_reference),
    "image of groups": (image_level_of_groups, image_level_of_groups_reference),
    "task": (task_level, task_level_reference),
    "balanced": (balanced_level, balanced_level_reference),
    "dense": (correspondence, correspondence_reference),
    "dense across": (correspondence_across, correspondence_across_reference),
    "restoration": (masked_restoration, masked_restoration_reference),
}

# --------------------------------------------------------------------------------------------- on the ranks


class Net(nn.Module):
    """A small network whose temperature is a parameter too."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.linear = nn.Linear(FEATURES, 3)
        self.log_temperature = nn.Parameter(torch.tensor(-1.2))
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


@dataclass(frozen=True)
class Step:
    """The loss for logging and the gradients an optimiser would see."""

    value: float
    weight: Tensor
    temperature: Tensor


def step(loss_of: Loss, net: nn.Module, module: Net, batch: Batch) -> Step:
    module.zero_grad()
    loss = loss_of(net, module.log_temperature.exp(), batch)
    loss.backward()
    assert module.linear.weight.grad is not None
    assert module.log_temperature.grad is not None
    value = float(collectives.all_reduce_sum(loss.double())) / collectives.world_size()  # of one process
    return Step(value, module.linear.weight.grad.clone(), module.log_temperature.grad.clone())


def cast(batch: Batch, dtype: torch.dtype) -> Batch:
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in batch.items()}


def steps_of_a_rank(split: tuple[int, ...]) -> dict[tuple[str, torch.dtype, str], Step]:
    """Each loss in each precision: ours, and as control the mean over the rank's own samples."""
    own = slice(sum(split[: collectives.rank()]), sum(split[: collectives.rank() + 1]))
    steps = {}
    for dtype in BOUNDS:
        module = Net(dtype)
        net = DistributedDataParallel(module)
        batch = {name: x[own] for name, x in cast(make_batch(), dtype).items()}
        for name, (ours, naive) in LOSSES.items():
            steps[name, dtype, "ours"] = step(ours, net, module, batch)
            if min(split) > 1:
                steps[name, dtype, "naive"] = step(naive, net, module, batch)
    return steps


def all_steps_of_a_rank(splits: list[tuple[int, ...]]) -> list[dict[tuple[str, torch.dtype, str], Step]]:
    return [steps_of_a_rank(split) for split in splits]


@cache
def all_steps_of(world_size: int) -> list[list[dict[tuple[str, torch.dtype, str], Step]]]:
    """By rank, then by split: one process group does all splits over as many ranks."""
    splits = [split for split in SPLITS if len(split) == world_size]
    return run_ranks(all_steps_of_a_rank, world_size, splits)


def steps_of(split: tuple[int, ...]) -> list[dict[tuple[str, torch.dtype, str], Step]]:
    place = [other for other in SPLITS if len(other) == len(split)].index(split)
    return [steps[place] for steps in all_steps_of(len(split))]


@cache
def reference_of(name: str) -> Step:
    module = Net(torch.float32).double()
    return step(LOSSES[name][1], module, module, cast(make_batch(), torch.float64))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


def errors(found: Step, expected: Step) -> dict[str, float]:
    return {
        "value": abs(found.value / expected.value - 1),
        "weight": relative_error(found.weight, expected.weight),
        "temperature": relative_error(found.temperature, expected.temperature),
    }


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_ranks_give_the_gradient_of_one_process(split: tuple[int, ...], name: str) -> None:
    for steps in steps_of(split):
        for dtype, bound in BOUNDS.items():
            found = errors(steps[name, dtype, "ours"], reference_of(name))
            assert max(found.values()) <= bound, (dtype, found)


@pytest.mark.parametrize("name", LOSSES)
def test_a_mean_over_each_ranks_own_samples_fails_the_same_check(name: str) -> None:
    found = errors(steps_of((9, 3))[0][name, torch.float64, "naive"], reference_of(name))
    assert found["weight"] > 1e-2


def test_the_reference_is_right_where_it_must_be() -> None:
    """On one rank the mean over its own samples is the reference, so the check above can pass."""
    for name in LOSSES:
        found = errors(steps_of((12,))[0][name, torch.float64, "naive"], reference_of(name))
        assert max(found.values()) <= 1e-12


def refusals_of_a_rank() -> list[str]:
    """What a rank says of bad input that only rank 1 has; all must say the same, and at once."""
    odd = collectives.rank() == 1
    rows = torch.ones(2, 4)
    inputs = {
        "temperature": (rows, rows, -0.5 if odd else 0.5),
        "views": (rows, rows[: 1 if odd else 2], 0.5),
        "lengths": (*(2 * [rows[:, : 3 if odd else 4]]), 0.5),
        "temperatures": (rows, rows, 0.25 if odd else 0.5),
        "alone": (rows[: int(odd)], rows[: int(odd)], 0.5),
    }
    said = []
    for arguments in inputs.values():
        with pytest.raises((ConfigError, TrainingError)) as caught:
            nt_xent(*arguments)
        said.append(str(caught.value))
    return said


def test_bad_input_of_one_rank_is_refused_by_all() -> None:
    for said in run_ranks(refusals_of_a_rank, 2, timeout_s=60):
        assert said == [
            "the temperature is -0.5; it must be positive: set it to 0.1, say",
            "rank 1 has views of 2 x 4 and 1 x 4; both views of a sample need a row of the same length",
            "rank 0 has rows of length 4, rank 1 3; start all ranks with the same config and code",
            "rank 0 has a temperature of 0.5, rank 1 0.25; start all ranks with the same config and code",
            "the contrastive loss got 1 regions over 2 ranks: there are no negatives; "
            "raise global_batch to 2 or more",
        ]


def accuracy_of_a_rank() -> float:
    logits = torch.eye(3) if collectives.rank() == 0 else torch.tensor([[0.0, 1.0, 0.0]])
    targets = torch.tensor([0, 1, 0]) if collectives.rank() == 0 else torch.tensor([0])
    return accuracy(logits, targets)


def test_accuracy_counts_the_samples_of_all_ranks() -> None:
    assert run_ranks(accuracy_of_a_rank, 2) == [0.5, 0.5]
