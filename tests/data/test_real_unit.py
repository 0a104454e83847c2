"""The rule that tells CT from MR, on every real volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hssl_dist.imaging import load_case, unit_doubts
from hssl_dist.imaging.unit import AIR_HU
from hssl_dist.records import Case

SETS = {
    "lidc": ("ct", "LIDC_nodules/images/*.nii.gz", 383),
    "hippocampus": ("mr", "Task04_Hippocampus/images*/*.nii.gz", 260),
    "acdc": ("mr", "Dataset027_ACDC/images*/*.nii.gz", 200),
    "ms": ("mr", "open_ms_bids/sub-*/**/anat/*.nii.gz", 17),
}


@pytest.mark.real
@pytest.mark.parametrize("name", SETS)
def test_no_volume_is_doubted_as_what_it_is_and_each_as_what_it_is_not(real_data: Path, name: str) -> None:
    modality, pattern, count = SETS[name]
    other = {"ct": "mr", "mr": "ct"}[modality]
    paths = sorted(real_data.glob(pattern))
    assert len(paths) == count
    shares = []
    for path in paths:
        volumes = [
            load_case(Case(name, path.name, path.name, (str(path),), None, (kind,)), {}, 1 << 30)
            for kind in (modality, other)
        ]
        assert unit_doubts(volumes[0]) == (), path
        assert len(unit_doubts(volumes[1])) == 1, path
        shares.append(np.mean(volumes[0].scaling.values(volumes[0].image) < AIR_HU))
    assert min(shares) > 0.24 if modality == "ct" else max(shares) == 0
