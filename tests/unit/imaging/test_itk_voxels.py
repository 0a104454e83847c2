"""Voxels of NRRD and MetaImage files that are cut short, damaged or too many: the exact reason."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from hssl_dist.errors import InputError
from hssl_dist.imaging.source import read_source
from tests.itk_files import FORMATS, header_and_voxels, image_of, voxels, write_image
from tests.spoiling import flipped

LIMIT = 1 << 20


@pytest.mark.parametrize(("name", "compressed"), FORMATS)
def test_a_size_is_refused_before_any_voxel_is_read(tmp_path, name, compressed):
    path = write_image(tmp_path / name, image_of(voxels()), compressed)
    header, _ = header_and_voxels(path)
    Path(path).write_bytes(header)
    with pytest.raises(InputError, match=f"^{name}: the header declares 6 x 5 x 4 voxels; max_voxels allows"):
        read_source(path, 119)


BODY_FAULTS = {
    "cut": (lambda body: body[:-20], "truncated: "),
    "none": (lambda body: b"", "truncated: "),
    "long tail": (lambda body: body + bytes(range(1, 200)) * 1000, "bytes"),
}


@pytest.mark.parametrize(("name", "compressed"), FORMATS)
@pytest.mark.parametrize("fault", BODY_FAULTS)
def test_refuses_voxels(tmp_path, name, compressed, fault):
    path = write_image(tmp_path / name, image_of(voxels()), compressed)
    header, body = header_and_voxels(path)
    damage, reason = BODY_FAULTS[fault]
    Path(path).write_bytes(header + damage(body))
    with pytest.raises(InputError, match=reason) as raised:
        read_source(path, LIMIT)
    assert str(raised.value).startswith(f"{name}: ")


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_a_flipped_bit_of_compressed_voxels_is_noticed_or_changes_nothing(tmp_path, name):
    path = write_image(tmp_path / name, image_of(voxels(shape=(9, 9, 9))), True)
    header, body = header_and_voxels(path)
    whole, refusals = read_source(path, LIMIT).raw, []
    start = 10 if name == "a.nrrd" else 0  # the rest of a gzip header says nothing of the voxels
    for position in range(start, len(body)):
        Path(path).write_bytes(header + flipped(body, position))
        try:
            found = read_source(path, LIMIT).raw
        except InputError as error:
            refusals.append(str(error))
        else:
            assert np.array_equal(found, whole), position
    # A block that is stored as it is begins with bits of no meaning.
    assert len(refusals) >= len(body) - start - 1
    assert all(re.search("corrupt compressed voxels|truncated|after the end", reason) for reason in refusals)


def test_a_bomb_is_refused_when_it_has_grown_beyond_its_header(tmp_path):
    path = write_image(tmp_path / "a.mha", image_of(np.zeros((400, 400, 400), np.int8)), True)
    header, body = header_and_voxels(path)
    Path(path).write_bytes(re.sub(rb"DimSize = .*", b"DimSize = 40 40 40", header) + body)
    with pytest.raises(InputError, match=r"^a.mha: holds more than the 64000 bytes its header declares"):
        read_source(path, LIMIT)
