"""DICOM files made to order, tag by tag: every coding, every fault, and words that must never be read."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

CANARY = "CANARY7F3A"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
UID = "1.2.826.0.1.3680043.10.1"
LONG_FORMS = ("OB", "OW", "SQ", "UN", "UT")
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

Element = tuple[int, str, Any]

# Text of every kind in tags that say who, when, where and what; a nested one and private ones.
TELLING: tuple[Element, ...] = (
    (0x0008_0020, "DA", "20260102"),
    (0x0008_0080, "LO", f"{CANARY} hospital"),
    (0x0008_0090, "PN", f"{CANARY}^referring"),
    (0x0008_1030, "LO", f"{CANARY} study"),
    (0x0008_103E, "LO", f"{CANARY} series"),
    (0x0008_1140, "SQ", [[(0x0008_1155, "UI", f"{UID}.9"), (0x0010_0010, "PN", f"{CANARY}^nested")]]),
    (0x0009_0010, "LO", f"{CANARY} private"),
    (0x0009_1001, "UN", f"{CANARY} unknown".encode()),
    (0x0010_0010, "PN", f"{CANARY}^patient"),
    (0x0010_0020, "LO", f"{CANARY}-id"),
    (0x0010_4000, "LT", f"{CANARY} comment"),
    (0x0018_1030, "LO", f"{CANARY} protocol"),
    (0x0020_0010, "SH", CANARY),
    (0x0020_4000, "LT", f"{CANARY} image comment"),
    (0x0032_1060, "LO", f"{CANARY} procedure"),
    (0x0040_0254, "LO", f"{CANARY} step"),
)


def encode(elements: Sequence[Element], syntax: str = EXPLICIT) -> bytes:
    """The data set of those elements, sorted by tag."""
    order = ">" if syntax == BIG_ENDIAN else "<"
    return b"".join(_element(*element, syntax, order) for element in sorted(elements, key=lambda one: one[0]))


def _element(tag: int, form: str, value: Any, syntax: str, order: str) -> bytes:
    start = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    undefined = False
    if form == "SQ":
        parts = [
            struct.pack(order + "HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
            + encode(item, syntax)
            + struct.pack(order + "HHI", 0xFFFE, 0xE00D, 0)
            for item in value
        ]
        data = b"".join(parts) + struct.pack(order + "HHI", 0xFFFE, 0xE0DD, 0)
        undefined = True
    elif form == "US":
        data = struct.pack(order + "H", value)
    elif isinstance(value, list):  # compressed pixels: fragments after an empty table
        fragments = [b"", *value]
        data = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(one)) + one for one in fragments)
        data += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        undefined = True
    else:
        data = value if isinstance(value, bytes) else str(value).encode()
        data += b"" if len(data) % 2 == 0 else (b" " if form not in ("UI", "OB", "OW", "UN") else b"\0")
    size = 0xFFFFFFFF if undefined else len(data)
    if syntax == IMPLICIT:
        return start + struct.pack(order + "I", size) + data
    if form in LONG_FORMS:
        return start + form.encode() + b"\0\0" + struct.pack(order + "I", size) + data
    return start + form.encode() + struct.pack(order + "H", size) + data


def dicom_file(elements: Sequence[Element], syntax: str = EXPLICIT, media: str = CT_STORAGE) -> bytes:
    """A whole file: preamble, mark, meta group, data set."""
    meta = encode(
        [
            (0x0002_0001, "OB", b"\0\1"),
            (0x0002_0002, "UI", media),
            (0x0002_0003, "UI", f"{UID}.7"),
            (0x0002_0010, "UI", syntax),
            (0x0002_0012, "UI", f"{UID}.8"),
        ]
    )
    length = _element(0x0002_0000, "UL", struct.pack("<I", len(meta)), EXPLICIT, "<")
    body = encode(elements, syntax)
    if syntax == DEFLATED:
        packer = zlib.compressobj(wbits=-15)
        body = packer.compress(body) + packer.flush()
    return bytes(128) + b"DICM" + length + meta + body


def slice_elements(
    plane: np.ndarray,
    position_mm: Sequence[float],
    uid: str = UID,
    orientation: Sequence[float] = AXIAL,
    spacing_mm: Sequence[float] = (0.75, 0.5),
    rescale: tuple[str, str] | None = ("1", "-1024"),
    modality: str = "CT",
    syntax: str = EXPLICIT,
    instance: int = 1,
) -> list[Element]:
    """A CT image of one plane `row column`, uint16 or int16; the spacing is of rows, then of columns."""
    rows, columns = plane.shape
    bits = 12 if plane.dtype == np.uint16 else 8 * plane.itemsize
    order = ">" if syntax == BIG_ENDIAN else "<"
    elements: list[Element] = [
        (0x0008_0016, "UI", CT_STORAGE),
        (0x0008_0018, "UI", f"{uid}.{instance}"),
        (0x0008_0060, "CS", modality),
        (0x0020_000D, "UI", f"{UID}.1"),
        (0x0020_000E, "UI", uid),
        (0x0020_0013, "IS", instance),
        (0x0020_0032, "DS", "\\".join(f"{value:.10g}" for value in position_mm)),
        (0x0020_0037, "DS", "\\".join(f"{value:.10g}" for value in orientation)),
        (0x0028_0002, "US", 1),
        (0x0028_0004, "CS", "MONOCHROME2"),
        (0x0028_0010, "US", rows),
        (0x0028_0011, "US", columns),
        (0x0028_0030, "DS", "\\".join(f"{value:.10g}" for value in spacing_mm)),
        (0x0028_0100, "US", 8 * plane.itemsize),
        (0x0028_0101, "US", bits),
        (0x0028_0102, "US", bits - 1),
        (0x0028_0103, "US", int(plane.dtype.kind == "i")),
        (
            0x7FE0_0010,
            "OW" if plane.itemsize > 1 else "OB",
            plane.astype(plane.dtype.newbyteorder(order)).tobytes(),
        ),
        *TELLING,
    ]
    if rescale is not None:
        elements += [(0x0028_1052, "DS", rescale[1]), (0x0028_1053, "DS", rescale[0])]
    return elements


def changed(elements: Sequence[Element], changes: dict[int, Any]) -> list[Element]:
    """The elements with other values for some tags; None takes a tag away."""
    return [
        (tag, form, changes.get(tag, value))
        for tag, form, value in elements
        if changes.get(tag, value) is not None
    ]


def volume(slices: int = 5, rows: int = 7, columns: int = 6, seed: int = 0) -> np.ndarray:
    """Planes of 12-bit numbers as a CT writes them, `slice row column`."""
    return np.random.default_rng(seed).integers(0, 4096, (slices, rows, columns), dtype=np.uint16)


def series(
    planes: np.ndarray,
    distance_mm: float = 2.0,
    origin_mm: Sequence[float] = (10.0, -20.0, 30.0),
    orientation: Sequence[float] = AXIAL,
    **keys: Any,
) -> list[list[Element]]:
    """The elements of each image of a series along its normal."""
    normal = np.cross(orientation[:3], orientation[3:])
    return [
        slice_elements(
            plane,
            np.asarray(origin_mm) + index * distance_mm * normal,
            orientation=orientation,
            instance=len(planes) - index,
            **keys,
        )
        for index, plane in enumerate(planes)
    ]


def write_files(
    folder: Path, images: Sequence[Sequence[Element]], names: Sequence[str] = (), syntax: str = EXPLICIT
) -> str:
    """Write each image under its name (of no ending, not in the order they lie in); the folder's path."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = names or [f"IM{(7 * index + 3) % 101:04}" for index in range(len(images))]
    for name, elements in zip(chosen, images, strict=True):
        (folder / name).write_bytes(dicom_file(elements, syntax))
    return str(folder)
