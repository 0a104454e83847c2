"""What ITK says of a header, and its errors in one line. The sole place that imports SimpleITK.

ITK keeps an image's axes in LPS mm; the affines that leave this module are RAS, as everywhere else. SimpleITK
is an optional extra: nothing is imported before a file of one of its formats is read.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float64

from hssl_dist.errors import InputError
from hssl_dist.imaging.source import SourceHeader, check_affine, check_size

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_REASON_CHARACTERS = 160


def simpleitk(name: str) -> ModuleType:
    """SimpleITK, its warnings turned off; `name` is the file that needs it. Raises InputError without it."""
    check_installed(name)
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def check_installed(name: str) -> None:
    """Raise InputError, saying what to do, unless SimpleITK is installed."""
    if importlib.util.find_spec("SimpleITK") is None:
        raise InputError(
            f"{name}: SimpleITK is needed to read it; install it with: pip install 'hssl-dist[itk]'"
        )


def header_of(text: bytes, ending: str, name: str, max_voxels: int) -> SourceHeader:
    """What ITK makes of a header alone, checked: three dimensions, one real number a voxel, a sound affine.

    `text` must hold nothing but the fields ITK may see; `ending` is the format's. Raises InputError.
    """
    itk = simpleitk(name)
    with tempfile.TemporaryDirectory(prefix="hssl-") as folder:
        path = Path(folder) / f"header{ending}"
        path.write_bytes(text)
        reader = itk.ImageFileReader()
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            reason = one_line(error).replace(str(path), name)
            raise InputError(f"{name}: the header makes no sense to ITK: {reason}") from None
    size = tuple(int(edge) for edge in reader.GetSize())
    if len(size) != 3:
        shown = " x ".join(str(edge) for edge in size)
        raise InputError(f"{name}: {len(size)} dimensions ({shown}); 3 are needed")
    if min(size) < 1:
        shown = " x ".join(str(edge) for edge in size)
        raise InputError(f"{name}: the header declares a size of {shown}; every size must be positive")
    header = SourceHeader(
        shape=(size[0], size[1], size[2]),
        channels=1,
        dtype=voxel_type(itk, reader.GetPixelID(), reader.GetNumberOfComponents(), name),
        slope=1.0,
        intercept=0.0,
        affine=ras_affine(reader.GetDirection(), reader.GetSpacing(), reader.GetOrigin()),
    )
    check_affine(header.affine, name)
    check_size(header, name, max_voxels)
    return header


def voxel_type(itk: ModuleType, pixel: int, components: int, name: str) -> np.dtype[Any]:
    """ITK's pixel type as numpy's. Raises InputError for colours, vectors and complex numbers."""
    types = {
        itk.sitkInt8: np.int8,
        itk.sitkUInt8: np.uint8,
        itk.sitkInt16: np.int16,
        itk.sitkUInt16: np.uint16,
        itk.sitkInt32: np.int32,
        itk.sitkUInt32: np.uint32,
        itk.sitkInt64: np.int64,
        itk.sitkUInt64: np.uint64,
        itk.sitkFloat32: np.float32,
        itk.sitkFloat64: np.float64,
    }
    if components != 1 or pixel not in types:
        kind = itk.GetPixelIDValueAsString(pixel) + (f" of {components}" if components > 1 else "")
        raise InputError(f"{name}: voxels are {kind}; real numbers are needed")
    return np.dtype(types[pixel])


def ras_affine(
    direction: tuple[float, ...], spacing: tuple[float, ...], origin: tuple[float, ...]
) -> Float64[np.ndarray, "4 4"]:
    """The affine from voxel indices `i j k` to RAS mm, of ITK's direction cosines by row, spacing, origin.

    Numbers beyond all measure give infinite entries.
    """
    affine = np.eye(4)
    with np.errstate(over="ignore", invalid="ignore"):
        affine[:3, :3] = np.reshape(direction, (3, 3)) * np.asarray(spacing)
        affine[:3, 3] = origin
        ras: Float64[np.ndarray, "4 4"] = _LPS_TO_RAS @ affine
    return ras


def one_line(error: object) -> str:
    """ITK's own reason: NRRD's innermost, or what follows the name of the failing object; cut short."""
    text = str(error).strip()
    if "[nrrd]" in text:
        reason = text.splitlines()[-1].removeprefix("[nrrd] ")
    else:
        reason = re.split(r"ERROR: (?:\w+\(0x[0-9a-f]+\): )?|\.[ch]xx:\d+:", text)[-1]
    reason = " ".join(reason.split())
    return reason if len(reason) <= _REASON_CHARACTERS else reason[: _REASON_CHARACTERS - 3] + "..."
