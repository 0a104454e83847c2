"""Whether a volume's values are those of its modality: most formats do not say which that is.

CT is in Hounsfield units, of which air and lung are far below 0; nothing in MR is. Of 383 crops of CT each
has 24 % of its voxels below `AIR_HU`, or more, and of 477 MR volumes none has any: all files of
`tests/data/test_real_unit.py`.
"""

from __future__ import annotations

import numpy as np

from hssl_dist.imaging.sample import spaced_sample
from hssl_dist.records import Volume

AIR_HU = -200.0
"""Air and lung lie below; water is 0, fat about -100."""

CT_SHARE, MR_SHARE = 0.001, 0.05
"""Of CT at least so many voxels lie there, of MR less."""


def unit_doubts(volume: Volume) -> tuple[str, ...]:
    """Why channels of a loaded volume may be of another modality than its `modalities` say; a line each.

    A crop of CT without air is doubted, too, so these are for warnings.
    """
    doubts = []
    for index, (channel, modality) in enumerate(zip(volume.image, volume.modalities, strict=True)):
        values = spaced_sample(channel, volume.scaling).values
        share = float(np.mean(values < AIR_HU))
        what = f"channel {index}: " if len(volume.image) > 1 else ""
        if modality == "ct" and share < CT_SHARE:
            doubts.append(
                f"{what}the model takes CT in HU, but hardly a voxel is below {AIR_HU:g} "
                f"(the lowest is {values.min():g}): is this CT?"
            )
        if modality != "ct" and share >= MR_SHARE:
            doubts.append(
                f"{what}the model takes {modality.upper()}, but {share:.0%} of the voxels are below "
                f"{AIR_HU:g}: is this CT?"
            )
    return tuple(doubts)
