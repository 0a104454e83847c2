"""DICOM series: the geometry comes from the headers and is checked first, ITK decodes and rescales slices.

Slices are ordered by where they lie, whatever their names. What cannot be one regular grid is refused.
"""

from __future__ import annotations

import json
import os
import posixpath
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float64, Shaped

from hssl_dist import dicom, files
from hssl_dist.dicom import DicomHeader
from hssl_dist.errors import InputError
from hssl_dist.imaging.itk import check_installed, one_line, ras_affine
from hssl_dist.imaging.source import SourceHeader, SourceImage, check_affine, check_size, reading

TOLERANCE_VOXELS = 0.1
"""No slice may lie further from its place on the regular grid, in slice distances and in pixels."""
_TOLERANCE_COSINE, _TOLERANCE_SPACING = 1e-4, 1e-3
_CODING = ("transfer_syntax", "bits_allocated", "bits_stored", "signed", "slope", "intercept")
_DECODING_LIMIT_S = 3600.0
_FRAGMENT, _FRAGMENTS_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


@dataclass(frozen=True, slots=True)
class _Slice:
    """One image of a series: its file and what may be known of it."""

    url: str
    header: DicomHeader

    @property
    def name(self) -> str:
        return posixpath.basename(self.url)


def read_series(url: str, max_voxels: int) -> SourceImage:
    """Read the DICOM series of a URL of `dicom.series_url`.

    All headers are checked before any voxel is read: one number a voxel, one size, one orientation, slices at
    right angles and at regular distances. Voxels are rescaled as the files say (to HU for CT), in the type
    ITK needs for that. Raises InputError with the reason.
    """
    name = dicom.series_name(url)
    with reading(name, missing="a file of the series is missing"):
        slices = [_Slice(path, header) for path, header in dicom.series_files(url)]
        for one in slices:
            _check_image(one)
        slices, affine = _ordered(slices, name)
        first = slices[0].header
        shape = (first.whole("columns"), first.whole("rows"), len(slices))
        check_affine(affine, name)
        check_size(SourceHeader(shape, 1, np.dtype(np.uint8), 1.0, 0.0, affine), name, max_voxels)
        check_installed(name)
        with _local(slices) as paths:
            raw = _voxels(slices, paths)
    return SourceImage(name, SourceHeader(shape, 1, raw.dtype, 1.0, 0.0, affine), raw)


# -------------------------------------------------------------------------------------------------- geometry


def _check_image(one: _Slice) -> None:
    header = one.header
    if header.whole("frames", 1) > 1:
        raise InputError(f"{one.name}: an object of several frames; convert it to one image a file")
    if header.whole("samples", 1) != 1 or header.values.get("photometric") != "MONOCHROME2":
        raise InputError(f"{one.name}: not a plain grey image (MONOCHROME2); real numbers are needed")
    if header.whole("rows") < 1 or header.whole("columns") < 1:
        raise InputError(f"{one.name}: the image has no size")
    for tag, count in (("position", 3), ("orientation", 6), ("spacing", 2)):
        if header.numbers(tag, count) is None:
            raise InputError(f"{one.name}: the image's {tag} is missing or no {count} numbers")


def _ordered(slices: Sequence[_Slice], name: str) -> tuple[list[_Slice], Float64[np.ndarray, "4 4"]]:
    """The slices along their normal, and the affine (RAS). Raises InputError if they are no grid."""
    if len(slices) < 2:
        raise InputError(f"{name}: a series of one image (a localizer?); at least 2 are needed")
    _check_alike(slices, name)
    orientation = _numbers(slices[0], "orientation", 6).reshape(2, 3)
    if np.abs(orientation @ orientation.T - np.eye(2)).max() > _TOLERANCE_COSINE:
        raise InputError(f"{name}: the orientation's axes are not at right angles, or not of length 1")
    normal = np.cross(*orientation)
    places = np.array([_numbers(one, "position", 3) for one in slices])
    order = np.argsort(places @ normal, kind="stable")
    spacing = _numbers(slices[0], "spacing", 2)
    distance_mm = _check_places(places[order], normal, float(spacing.min()), name)
    affine = ras_affine(
        tuple(np.stack([*orientation, normal], axis=1).ravel()),
        (float(spacing[1]), float(spacing[0]), distance_mm),
        tuple(places[order[0]]),
    )
    return [slices[index] for index in order], affine


def _check_alike(slices: Sequence[_Slice], name: str) -> None:
    """Raise InputError unless all slices have the size, spacing and orientation of the first."""
    sizes = {(one.header.whole("columns"), one.header.whole("rows")) for one in slices}
    if len(sizes) > 1:
        shown = " and ".join(f"{width} x {height}" for width, height in sorted(sizes)[:2])
        raise InputError(f"{name}: images of {len(sizes)} sizes in one series ({shown})")
    orientations = np.array([_numbers(one, "orientation", 6) for one in slices])
    if np.abs(orientations - orientations[0]).max() > _TOLERANCE_COSINE:
        raise InputError(f"{name}: images of different orientations in one series (a localizer?)")
    spacings = np.array([_numbers(one, "spacing", 2) for one in slices])
    if spacings.min() <= 0 or (spacings.max(axis=0) / spacings.min(axis=0)).max() > 1 + _TOLERANCE_SPACING:
        raise InputError(f"{name}: images of different pixel spacings in one series, or of none")


def _check_places(
    places: Float64[np.ndarray, "slice 3"], normal: Float64[np.ndarray, " 3"], pixel_mm: float, name: str
) -> float:
    """The distance of neighbouring slices in mm, for places sorted along the normal."""
    along = (places - places[0]) @ normal
    gaps = np.diff(along)
    distance_mm = float(along[-1]) / len(gaps)
    if gaps.min() <= 1e-3 * distance_mm or distance_mm <= 0:
        raise InputError(f"{name}: two images of one series lie at the same place")
    ideal = np.arange(len(places)) * distance_mm
    if np.abs(along - ideal).max() > TOLERANCE_VOXELS * distance_mm:
        raise InputError(
            f"{name}: slices are {gaps.min():.4g} to {gaps.max():.4g} mm apart: one is missing, or the "
            "distances are irregular"
        )
    aside = np.linalg.norm(places - places[0] - np.outer(along, normal), axis=1)
    if aside.max() > TOLERANCE_VOXELS * pixel_mm:
        degrees = float(np.degrees(np.arctan2(aside[-1], along[-1])))
        raise InputError(
            f"{name}: slices shift by up to {aside.max():.3g} mm along the stack (gantry tilt of "
            f"{degrees:.1f} degrees?); resample it to a right-angled grid"
        )
    return distance_mm


def _numbers(one: _Slice, tag: str, count: int) -> Float64[np.ndarray, " count"]:
    values = one.header.numbers(tag, count)
    assert values is not None
    return np.array(values, dtype=np.float64)


# ---------------------------------------------------------------------------------------------------- voxels


@contextmanager
def _local(slices: Sequence[_Slice]) -> Iterator[list[str]]:
    """Local paths of the slices; remote files are copied to a temporary folder, which is removed."""
    if all(files.is_local(one.url) for one in slices):
        yield [one.url for one in slices]
        return
    with tempfile.TemporaryDirectory(prefix="hssl-") as folder:
        paths = []
        for index, one in enumerate(slices):
            paths.append(str(Path(folder) / f"{index}.dcm"))
            with files.open_read(one.url) as remote, Path(paths[-1]).open("wb") as local:
                shutil.copyfileobj(remote, local)
        yield paths


def _voxels(slices: Sequence[_Slice], paths: Sequence[str]) -> Shaped[np.ndarray, "1 k j i"]:
    """All slices, rescaled, in the type that holds every slice's."""
    samples = {}
    for index, (one, path) in enumerate(zip(slices, paths, strict=True)):
        _check_whole(one, path)
        samples[tuple(one.header.values.get(key) for key in _CODING)] = index
    first = slices[0].header
    shape = (first.whole("rows"), first.whole("columns"))
    request = {"paths": list(paths), "shape": shape, "samples": sorted(samples.values())}
    with _decoder() as (requests, answers):
        requests.write(json.dumps(request).encode() + b"\n")
        requests.flush()
        dtype = np.dtype(_message(answers, slices, 0)["dtype"])
        raw = np.empty((1, len(slices), *shape), dtype)
        for index, plane in enumerate(raw[0]):
            _message(answers, slices, index)
            data = answers.read(plane.nbytes)
            if len(data) < plane.nbytes:
                raise InputError(f"{slices[index].name}: ITK crashed while decoding it")
            plane[...] = np.frombuffer(data, dtype).reshape(shape)
    return raw


@contextmanager
def _decoder() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Standard input and output of a process that decodes; it is ended in any case, and within an hour."""
    process = subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).with_name("itk_decode.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    deadline = threading.Timer(_DECODING_LIMIT_S, process.kill)
    deadline.start()
    try:
        with process.stdin as requests, process.stdout as answers:
            yield requests, answers
    finally:
        deadline.cancel()
        process.kill()
        process.wait()


def _message(answers: IO[bytes], slices: Sequence[_Slice], index: int) -> dict[str, Any]:
    """The decoder's next line. Raises InputError, naming the slice, if it is an error or there is none."""
    line = answers.readline()
    if not line:
        raise InputError(f"{slices[index].name}: ITK crashed while decoding it")
    message: dict[str, Any] = json.loads(line) if line.strip() else {}
    if "error" in message:
        raise InputError(
            f"{slices[message['index']].name}: ITK cannot decode it: {one_line(message['error'])}"
        )
    return message


def _check_whole(one: _Slice, path: str) -> None:
    """Raise InputError unless all of a slice's voxels are in its file: GDCM makes up what is missing."""
    assert one.header.pixels is not None
    if one.header.values.get("transfer_syntax") == dicom.DEFLATED:
        return  # inflated to its end when the header was read
    start, end = one.header.pixels
    size = Path(path).stat().st_size
    header = one.header
    if end is not None:
        needed = header.whole("rows") * header.whole("columns") * header.whole("bits_allocated") // 8
        if end > size or end - start < needed:
            raise InputError(
                f"{one.name}: truncated: holds {min(size, end) - start} of {needed} bytes of voxels"
            )
        return
    with Path(path).open("rb") as stream:
        stream.seek(start)
        while (item := stream.read(8))[:4] == _FRAGMENT and len(item) == 8:
            stream.seek(struct.unpack("<I", item[4:])[0], os.SEEK_CUR)
    if item[:4] != _FRAGMENTS_END:
        raise InputError(f"{one.name}: truncated: its compressed voxels have no end")
