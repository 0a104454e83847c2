"""Doubts of a volume's modality, from its values alone."""

from __future__ import annotations

import numpy as np
import pytest

from hssl_dist.imaging import unit_doubts
from hssl_dist.records import Scaling, Volume
from tests.case_records import record


def _volume(*channels: tuple[str, np.ndarray], scaling: Scaling | None = None) -> Volume:
    image = np.stack([values for _, values in channels])
    modalities = tuple(modality for modality, _ in channels)
    return Volume(image, None, (1.0, 1.0, 1.0), modalities, record().geometry, scaling or Scaling())


def _values(dark: float, share: float) -> np.ndarray:
    """Values of soft tissue, and a share of dark ones."""
    values = np.full(100_000, 40.0, np.float32)
    values[: round(share * values.size)] = dark
    return np.random.default_rng(0).permutation(values).reshape(10, 100, 100)


@pytest.mark.parametrize(("dark", "share"), [(-1000, 0.5), (-201, 0.01), (-800, 1.0)])
def test_values_like_hounsfield_units_are_ct(dark: float, share: float) -> None:
    assert unit_doubts(_volume(("ct", _values(dark, share)))) == ()


@pytest.mark.parametrize(("dark", "share"), [(0, 0.5), (-150, 0.5), (-1000, 0.01)])
def test_other_values_are_mr(dark: float, share: float) -> None:
    assert unit_doubts(_volume(("mr", _values(dark, share)))) == ()


def test_each_channel_is_doubted_alone() -> None:
    scan, mri = _values(-1000, 0.25), _values(0, 0.25)
    no_ct = "the model takes CT in HU, but hardly a voxel is below -200 (the lowest is 0): is this CT?"
    assert unit_doubts(_volume(("ct", mri))) == (no_ct,)
    assert unit_doubts(_volume(("mr", mri), ("mr", scan), ("ct", mri))) == (
        "channel 1: the model takes MR, but 25% of the voxels are below -200: is this CT?",
        f"channel 2: {no_ct}",
    )


def test_values_are_those_after_scaling() -> None:
    stored = (_values(-1000, 0.25) + 1024).astype(np.int16)
    scaled = _volume(("ct", stored), scaling=Scaling(scale_factor=1.0, add_offset=-1024.0))
    assert unit_doubts(scaled) == ()
    assert unit_doubts(_volume(("ct", stored))) != ()
