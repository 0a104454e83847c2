"""Label maps as files: a `.nii.gz` whose grid is its source file's, to the bit.

Of a NIfTI source's header the fields of geometry are taken as they stand - affines, their codes, spacing,
unit - and nothing else, since a header may name the patient. Other formats have one affine, written as both.
"""

from __future__ import annotations

import gzip
from typing import Any

import nibabel
import numpy as np
from jaxtyping import UInt8

from hssl_dist.errors import InputError
from hssl_dist.imaging.nifti import read_fields
from hssl_dist.records import Geometry

NIFTI_ENDINGS = (".nii.gz", ".nii")
_QUATERN = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
_AFFINES = ("qform_code", "sform_code", *_QUATERN, "srow_x", "srow_y", "srow_z")
_LENGTH_UNIT = 7
"""The bits of `xyzt_units` that give the unit of length."""
_SCANNER = 1
_COMPRESSION = 6


def label_map(label: UInt8[np.ndarray, "i j k"], geometry: Geometry, source_url: str) -> bytes:
    """A `.nii.gz` of a label on the grid of the file at `source_url`; equal input gives equal bytes.

    A NIfTI-2 source gives NIfTI-2, whose affines are of higher precision. Raises InputError if the source is
    no longer the file `geometry` is of.
    """
    header = _header(geometry, source_url)
    header.set_data_dtype(np.uint8)
    header.set_data_shape(label.shape)
    header["magic"] = header.single_magic
    header["vox_offset"] = len(header.binaryblock) + 4  # four zeros: no extension follows
    data = b"".join((header.binaryblock, bytes(4), label.tobytes(order="F")))
    return gzip.compress(data, _COMPRESSION, mtime=0)


def _header(geometry: Geometry, source_url: str) -> Any:
    if not source_url.endswith(NIFTI_ENDINGS):
        header = nibabel.Nifti1Header()
        affine = np.asarray(geometry.original_affine)
        header.set_data_shape(geometry.original_shape)
        header.set_qform(affine, _SCANNER)
        header.set_sform(affine, _SCANNER)
        header.set_xyzt_units("mm")
        return header
    source = read_fields(source_url)
    shape = tuple(int(size) for size in source["dim"][1:4])
    if shape != geometry.original_shape:
        name = source_url.rpartition("/")[2]
        raise InputError(f"{name}: its shape is {shape} now, it was {geometry.original_shape}; run it again")
    header = type(source)()
    header.set_data_shape(shape)
    for field in _AFFINES:
        header[field] = source[field]
    header["pixdim"][:4] = source["pixdim"][:4]
    header["xyzt_units"] = source["xyzt_units"] & _LENGTH_UNIT
    return header
