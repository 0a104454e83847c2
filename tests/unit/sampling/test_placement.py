import collections

import numpy as np
import pytest

from hssl_dist.augment.seeds import stream
from hssl_dist.sampling.placement import annotated, draw_start


def starts(record, shape, foreground, count=400):
    names = sorted(record.foreground)
    return np.array([draw_start(record, shape, foreground, names, stream(n, "test")) for n in range(count)])


def test_boxes_reach_every_place_and_stay_inside(record):
    drawn = starts(record(shape=(10, 20, 30)), (8, 16, 28), 0.0, 2000)

    assert set(map(tuple, drawn.tolist())) == set(np.ndindex(3, 5, 3))
    assert collections.Counter(drawn[:, 1].tolist()).most_common()[-1][1] > 300


@pytest.mark.parametrize("foreground", [0.0, 1.0])
def test_small_volumes_are_centred(record, foreground):
    case = record(shape=(2, 20, 7), foreground={"1": ((1, 3, 3),)})

    drawn = starts(case, (8, 8, 8), foreground)

    assert set(drawn[:, 0].tolist()) == {-3}
    assert set(drawn[:, 2].tolist()) == {-1}
    assert drawn[:, 1].min() >= 0
    assert drawn[:, 1].max() <= 12


def test_foreground_boxes_hold_the_voxel_of_a_class_drawn_evenly(record):
    voxels = {"1": ((0, 0, 0),) * 50, "2": ((20, 30, 30),), "3": ()}

    drawn = starts(record(shape=(40, 60, 60), foreground=voxels), (8, 16, 16), 1.0)

    first = (drawn <= 0).all(1)
    second = ((drawn <= [20, 30, 30]) & (np.array([20, 30, 30]) < drawn + np.array([8, 16, 16]))).all(1)
    assert (first ^ second).all()
    assert abs(first.mean() - 0.5) < 0.08
    offsets = np.array([20, 30, 30]) - drawn[second]
    np.testing.assert_array_equal(offsets.min(0), [2, 4, 4])
    np.testing.assert_array_equal(offsets.max(0), [6, 12, 12])


def test_foreground_is_used_as_often_as_asked(record):
    case = record(shape=(8, 8, 400), foreground={"any": ((4, 4, 396),)})

    near = starts(case, (8, 8, 8), 0.3, 1000)[:, 2] > 385

    assert abs(near.mean() - 0.3 - 0.7 * 7 / 393) < 0.05


def test_boxes_lie_around_what_is_named_alone(record):
    voxels = {"1": ((0, 0, 0),), "any": ((39, 59, 59),)}
    case = record(shape=(40, 60, 60), foreground=voxels)

    assert annotated(case) == ["1"]
    for names, start in ((["1"], (0, 0, 0)), (["any"], (32, 44, 44))):
        drawn = [draw_start(case, (8, 16, 16), 1.0, names, stream(n, "test")) for n in range(50)]
        assert set(drawn) == {start}
