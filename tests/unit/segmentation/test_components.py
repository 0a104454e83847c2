"""Keeping the largest component: against plain flood fill, and the choice by means."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.transforms import KeepLargestConnectedComponent

from hssl_dist.segmentation import WAYS, DiceMeans, best_way, keep_largest

NEAR = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]


def flooded(mask: np.ndarray) -> np.ndarray:
    """The largest component by flood fill, one voxel after the other; the first of equals."""
    left, best = set(map(tuple, np.argwhere(mask))), set()
    for start in sorted(left):
        if start not in left:
            continue
        left.discard(start)
        found, todo = {start}, [start]
        while todo:
            place = todo.pop()
            for step in NEAR:
                near = tuple(a + b for a, b in zip(place, step, strict=True))
                if near in left:
                    left.discard(near)
                    found.add(near)
                    todo.append(near)
        if len(found) > len(best):
            best = found
    result = np.zeros(mask.shape, dtype=bool)
    for place in best:
        result[place] = True
    return result


LABELS = arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3), elements=st.sampled_from([0, 0, 0, 1, 2, 7]))


@settings(deadline=None, max_examples=200)
@given(LABELS)
def test_it_is_the_largest_component_by_flood_fill(label: np.ndarray) -> None:
    before = label.copy()
    foreground = keep_largest(label, "foreground")
    np.testing.assert_array_equal(foreground, np.where(flooded(label > 0), label, 0))
    by_class = sum(np.uint8(value) * flooded(label == value) for value in (1, 2, 7))
    np.testing.assert_array_equal(keep_largest(label, "class"), by_class)
    assert foreground.dtype == keep_largest(label, "class").dtype == np.uint8
    np.testing.assert_array_equal(label, before)
    assert keep_largest(label, "never") is label


def test_it_is_monai_s_where_no_two_components_are_of_one_size() -> None:
    label = np.zeros((6, 20, 20), dtype=np.uint8)
    label[1:4, 2:9, 2:9], label[3, 9:12, 9:12], label[5, 15:18, 15:19], label[0, 18:, 0] = 1, 2, 2, 1
    together = KeepLargestConnectedComponent([1, 2], is_onehot=False, independent=False, connectivity=3)
    apart = KeepLargestConnectedComponent([1, 2], is_onehot=False, independent=True, connectivity=3)
    for way, theirs in (("foreground", together), ("class", apart)):
        np.testing.assert_array_equal(keep_largest(label, way), np.asarray(theirs(label[None]))[0])
    kept = keep_largest(label, "foreground")
    assert (kept[3, 9:12, 9:12] == 2).all()  # it touches class 1 by a corner
    assert not kept[5].any()


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ((0.5, 0.6, 0.7), "class"),
        ((0.5, 0.7, 0.6), "foreground"),
        ((0.7, 0.6, 0.6), "never"),
        ((0.6, 0.6, 0.6), "never"),
        ((0.5, 0.6, 0.6), "foreground"),
        ((math.nan, math.nan, math.nan), "never"),
    ],
)
def test_the_way_that_validates_best_is_chosen_the_plainer_of_equals(
    means: tuple[float, float, float], expected: str
) -> None:
    assert best_way({w: DiceMeans({1: m}, m) for w, m in zip(WAYS, means, strict=True)}) == expected
