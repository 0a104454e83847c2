"""Stored numbers: error bounds, exact second storage, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from hssl_dist.errors import InputError
from hssl_dist.records import Scaling
from hssl_dist.store.quantising import FINEST_STEP, quantise
from tests.reading import dequantise


def test_int16_is_within_half_a_step_and_exact_the_second_time():
    image = np.random.default_rng(0).normal(scale=3.0, size=(1, 8, 9, 10)).astype(np.float32)
    stored, scaling = quantise(image, "int16")
    assert (stored.dtype, scaling) == (np.int16, Scaling(FINEST_STEP, 0.0))
    values = dequantise(stored, scaling)
    assert values.dtype == np.float32
    assert np.abs(values - image).max() <= FINEST_STEP / 2
    again, _ = quantise(values, "int16")
    np.testing.assert_array_equal(again, stored)
    np.testing.assert_array_equal(dequantise(again, scaling), values)


@pytest.mark.parametrize(("peak", "step"), [(31.9, 2**-10), (32.0, 2**-9), (-64.5, 2**-8), (1e5, 4.0)])
def test_int16_takes_a_coarser_step_only_for_wide_ranges(peak, step):
    image = np.array([[[[0.0, peak]]]], dtype=np.float32)
    stored, scaling = quantise(image, "int16")
    assert scaling.scale_factor == step
    assert np.abs(dequantise(stored, scaling) - image).max() <= step / 2


def test_float16():
    image = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
    stored, scaling = quantise(image, "float16")
    assert (stored.dtype, scaling) == (np.float16, Scaling(1.0, 0.0))
    np.testing.assert_array_equal(dequantise(stored, scaling), image.astype(np.float16).astype(np.float32))


def test_values_that_cannot_be_stored_are_refused():
    with pytest.raises(InputError, match=r"reaches 100000, float16 ends at 65504; use storage\.dtype=int16"):
        quantise(np.full((1, 1, 1, 1), 1e5, np.float32), "float16")
    for value in (np.nan, np.inf):
        with pytest.raises(InputError, match="NaN or infinite voxels"):
            quantise(np.array([[[[0.0, value]]]], np.float32), "int16")
