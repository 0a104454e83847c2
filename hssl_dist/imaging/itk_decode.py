"""Decode DICOM files with ITK in a process of its own: `python itk_decode.py < request`. Run by `itk_series`.

GDCM crashes on some damaged files and its codecs print to standard error, so neither happens in the caller.
The request is one line of JSON: `paths` of the slices, their `shape` (rows, columns), and `samples`, indices
of one slice for each coding that occurs. The answer is a line of JSON with the `dtype` that holds all, then
for each slice an empty line and its voxels. A line with an `error` and the `index` of its slice ends it.
Nothing but numpy and SimpleITK is imported, so that it starts fast.
"""

from __future__ import annotations

import json
import sys
from typing import Any, BinaryIO

import numpy as np
import SimpleITK


def _decode(path: str, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    """One slice, rescaled by its own tags. Raises RuntimeError."""
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(path)
    values: np.ndarray[Any, Any] = SimpleITK.GetArrayFromImage(reader.Execute())
    if values.shape != (1, *shape):
        raise RuntimeError("ERROR: it decodes to another size than its header declares")
    plane: np.ndarray[Any, Any] = values[0]
    return plane


def _answer(request: dict[str, Any], output: BinaryIO) -> None:
    shape = tuple(request["shape"])
    index = 0
    try:
        types = []
        for index in request["samples"]:
            types.append(_decode(request["paths"][index], shape).dtype)  # noqa: PERF401  (the index is told)
        dtype = np.result_type(*types)
        _say({"dtype": dtype.str}, output)
        for index, path in enumerate(request["paths"]):  # noqa: B007
            plane = _decode(path, shape).astype(dtype, casting="safe", copy=False)
            output.write(b"\n")
            output.write(np.ascontiguousarray(plane).data)
    except (RuntimeError, TypeError) as error:
        _say({"index": index, "error": str(error)}, output)


def _say(message: dict[str, Any], output: BinaryIO) -> None:
    output.write(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    _answer(json.loads(sys.stdin.buffer.readline()), sys.stdout.buffer)
