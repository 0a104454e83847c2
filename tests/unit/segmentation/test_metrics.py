import math

import numpy as np
import pytest

from hssl_dist.segmentation import dice, dice_means


def _volume(values: list[int]) -> np.ndarray:
    return np.array(values, np.uint8).reshape(1, 2, -1)


def test_dice_of_each_class_by_hand() -> None:
    prediction = _volume([0, 1, 1, 2, 2, 0, 4, 0])
    label = _volume([0, 1, 0, 2, 2, 2, 0, 0])
    scores = dice(prediction, label, (1, 2, 3, 4))
    assert scores[1] == pytest.approx(2 * 1 / (2 + 1))
    assert scores[2] == pytest.approx(2 * 2 / (2 + 3))
    assert math.isnan(scores[3])
    assert scores[4] == 0.0


def test_dice_equals_monai() -> None:
    from monai.metrics.meandice import compute_dice
    from torch import from_numpy
    from torch.nn.functional import one_hot

    rng = np.random.default_rng(0)
    prediction, label = (rng.integers(0, 4, (5, 6, 7), dtype=np.uint8) for _ in range(2))
    hot = [one_hot(from_numpy(v).long(), 4).movedim(-1, 0)[None] for v in (prediction, label)]
    expected = compute_dice(*hot, include_background=False)[0].tolist()
    assert list(dice(prediction, label, (1, 2, 3)).values()) == pytest.approx(expected)


def test_dice_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"prediction has shape \(1, 2, 1\), label \(1, 2, 2\)"):
        dice(_volume([0, 1]), _volume([0, 1, 2, 0]), (1,))


def test_means_leave_out_what_is_in_neither() -> None:
    means = dice_means([{1: 0.5, 2: math.nan, 3: math.nan}, {1: 1.0, 2: 0.25, 3: math.nan}])
    assert means.per_class[1] == 0.75
    assert means.per_class[2] == 0.25
    assert math.isnan(means.per_class[3])
    assert means.overall == 0.5
    assert math.isnan(dice_means([]).overall)
