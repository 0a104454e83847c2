"""Label files: on the grid of another file, of the values that are declared, as uint8 in RAS, `z y x`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
from jaxtyping import Shaped, UInt8

from hssl_dist.errors import InputError
from hssl_dist.imaging.orientation import ras_spacing_mm, to_ras
from hssl_dist.imaging.slabs import slabs
from hssl_dist.imaging.source import SourceHeader, SourceImage, read_source
from hssl_dist.records import Scaling

GRID_TOLERANCE_VOXELS = 0.1
"""Two files share a grid if no corner voxel lies further apart than this share of the smallest voxel edge."""

LABEL_TOLERANCE = 1e-3
"""A label stored as float counts as whole numbers up to this much (scaled or converted masks)."""

_HIGHEST = 255
"""Labels are held as uint8."""


def load_label(
    url: str, classes: Iterable[int], max_voxels: int, reference: tuple[str, SourceHeader]
) -> UInt8[np.ndarray, "z y x"]:
    """A label, oriented like its image, whose name and header are the `reference`.

    Raises InputError if the file is missing, damaged, no label, on another grid, or holds values that are
    neither 0 nor one of `classes`.
    """
    source = read_label(url, max_voxels)
    check_grid(source, *reference)
    return decode_label(source, classes)


def read_label(url: str, max_voxels: int) -> SourceImage:
    """A label file by itself, not decoded yet. Raises InputError if it is missing, damaged or no label."""
    source = read_source(url, max_voxels)
    if source.header.channels != 1:
        raise InputError(f"{source.name}: the label has {source.header.channels} channels; 1 is needed")
    return source


def check_grid(source: SourceImage, name: str, reference: SourceHeader) -> None:
    """Raise InputError unless a file has the shape and, within the tolerance, the affine of file `name`."""
    shape, expected = source.header.shape, reference.shape
    if shape != expected:
        raise InputError(f"{source.name}: shape {shape} differs from {expected} of {name}")
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, size - 1) for size in shape))])
    apart = corners @ (source.header.affine - reference.affine).T[:, :3]
    distance = float(np.linalg.norm(apart, axis=1).max())
    edge = min(ras_spacing_mm(reference.affine))
    if distance > GRID_TOLERANCE_VOXELS * edge:
        raise InputError(
            f"{source.name}: lies up to {distance:.3g} mm away from {name} (affines differ); "
            f"at most {GRID_TOLERANCE_VOXELS * edge:.3g} mm is tolerated"
        )


def decode_label(source: SourceImage, classes: Iterable[int] | None) -> UInt8[np.ndarray, "z y x"]:
    """The values of a label file in RAS. Raises InputError for values that are neither 0 nor one of `classes`
    (any that uint8 holds if None), and for fractions.
    """
    scaling = source.header.scaling
    oriented = to_ras(source.raw[0], source.header.affine)
    label = np.empty(oriented.shape, dtype=np.uint8)
    declared = {0, *(range(1, _HIGHEST + 1) if classes is None else classes)}
    undeclared: set[int] = set()
    for slab in slabs(label.shape):
        numbers = np.ascontiguousarray(oriented[slab])
        values = (
            numbers
            if scaling == Scaling()
            else numbers * np.float64(scaling.scale_factor) + scaling.add_offset
        )
        whole = _whole_numbers(values, source.name)
        undeclared |= _undeclared(whole, declared)
        if undeclared:
            break
        label[slab] = whole
    if undeclared:
        shown = ", ".join(str(value) for value in sorted(undeclared)[:5])
        names = f"0 to {_HIGHEST}" if classes is None else ", ".join(str(value) for value in sorted(declared))
        raise InputError(f"{source.name}: the label holds {shown}; the dataset declares {names}")
    return label


def _undeclared(whole: Shaped[np.ndarray, "planes y x"], declared: set[int]) -> set[int]:
    """The values of some planes that are not declared."""
    low, high = int(whole.min()), int(whole.max())
    if high - low < len(declared) and declared.issuperset(range(low, high + 1)):
        return set()  # without sorting the planes
    return {int(value) for value in np.unique(whole)} - declared


def _whole_numbers(values: Shaped[np.ndarray, "planes y x"], name: str) -> Shaped[np.ndarray, "planes y x"]:
    if values.dtype.kind != "f":
        return values
    if not np.isfinite(values).all():
        raise InputError(f"{name}: the label has NaN or infinite voxels")
    whole: Shaped[np.ndarray, "planes y x"] = np.rint(values)
    gap = np.abs(values - whole)
    if gap.max() > LABEL_TOLERANCE:
        raise InputError(f"{name}: the label holds {values.flat[gap.argmax()]:g}; whole numbers are needed")
    return whole
