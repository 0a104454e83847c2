"""Cross-entropy plus soft Dice, against a slow reference and by hand."""

import math

import numpy as np
import pytest
import torch

from hssl_dist.losses.segmentation import DICE_EPSILON, _coarser, dice_cross_entropy


def reference(logits: np.ndarray, label: np.ndarray) -> float:
    """Voxel by voxel, class by class."""
    classes = logits.shape[1]
    entropy, count = 0.0, 0
    overlap, volume = np.zeros(classes), np.zeros(classes)
    for sample in np.ndindex(label.shape):
        b, place = sample[0], sample[1:]
        scores = np.exp(logits[(b, slice(None), *place)])
        probability = scores / scores.sum()
        truth = np.eye(classes)[label[sample]]
        entropy -= math.log(probability[label[sample]])
        count += 1
        overlap += probability * truth
        volume += probability + truth
    dice = (2 * overlap + DICE_EPSILON) / (volume + DICE_EPSILON)
    return entropy / count + 1 - dice[1:].mean()


def example() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 2, 4, 4, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, 3, (2, 2, 4, 4), generator=generator, dtype=torch.uint8)  # no class 3


def test_equals_the_slow_reference_also_with_an_absent_class() -> None:
    logits, label = example()
    found = float(dice_cross_entropy(logits, label))
    assert found == pytest.approx(reference(logits.numpy(), label.numpy()), rel=1e-12)


def test_deep_supervision_halves_the_weight_of_each_coarser_scale() -> None:
    logits, label = example()
    coarse = logits[..., ::2, ::2]
    coarse_label = label[..., 1::2, 1::2]  # the nearest voxel to the centre of two is the second
    expected = (
        reference(logits.numpy(), label.numpy()) + 0.5 * reference(coarse.numpy(), coarse_label.numpy())
    ) / 1.5
    assert float(dice_cross_entropy([logits, coarse], label)) == pytest.approx(expected, rel=1e-12)


def test_a_perfect_prediction_costs_nothing() -> None:
    label = example()[1]
    logits = 50 * torch.nn.functional.one_hot(label.long(), 3).movedim(-1, 1).float()
    assert float(dice_cross_entropy(logits, label)) == pytest.approx(0, abs=1e-6)


def test_half_precision_logits_give_a_float32_loss() -> None:
    logits, label = example()
    assert dice_cross_entropy(logits.bfloat16(), label).dtype == torch.float32


@pytest.mark.parametrize("step", [(1, 2, 2), (2, 4, 4), (1, 3, 5)])
def test_coarser_labels_are_the_nearest_to_each_centre(step: tuple[int, int, int]) -> None:
    size = tuple(4 * factor for factor in step)
    label = torch.arange(math.prod(size)).view(1, *size)
    nearest = torch.nn.functional.interpolate(label[None].double(), (4, 4, 4), mode="nearest-exact")
    assert torch.equal(_coarser(label, torch.Size((4, 4, 4))), nearest[0].long())


def test_logits_that_do_not_divide_the_label_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a label of \(2, 4, 4\) has no logits of \(2, 3, 4\)"):
        dice_cross_entropy(torch.zeros(1, 2, 2, 3, 4), torch.zeros(1, 2, 4, 4, dtype=torch.uint8))
