"""Commit records for tests."""

from __future__ import annotations

from typing import Any

from hssl_dist.records import CaseRecord, Geometry, Intensity, ManifestHeader, SourceFile, StoredObject


def header(**changes: Any) -> ManifestHeader:
    values: dict[str, Any] = {
        "dataset": "liver",
        "task": "liver",
        "group": "abdomen-ct",
        "classes": {1: "liver", 2: "tumour"},
        "channels": ("ct",),
        "recipe": {"version": 1},
        "recipe_hash": "ab" * 32,
        "code_version": "0.1.0",
    }
    return ManifestHeader(**(values | changes))


def record(case: str = "a", **changes: Any) -> CaseRecord:
    """A labelled case of 10 x 20 x 20 voxels, 2 x 1 x 1 mm each: 1000 of class 1, 100 of class 2."""
    geometry = Geometry(
        original_shape=(20, 20, 10),
        original_affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 2, 0), (0, 0, 0, 1)),
        oriented_shape=(10, 20, 20),
        oriented_spacing_mm=(2.0, 1.0, 1.0),
        crop_start=(0, 0, 0),
        crop_stop=(10, 20, 20),
        shape=(10, 20, 20),
        spacing_mm=(2.0, 1.0, 1.0),
    ).model_copy(update=changes.pop("geometry", {}))
    intensity = Intensity(
        minimum=-1000, maximum=900, mean=40, std=60, percentile_00_5=-90, percentile_99_5=240,
        clip_low=-80, clip_high=240, offset=40, scale=60, background=-2,
    )  # fmt: skip
    values: dict[str, Any] = {
        "id": case,
        "dataset": "liver",
        "patient": case,
        "task": "liver",
        "group": "abdomen-ct",
        "split": "train",
        "labelled": True,
        "modalities": ("ct",),
        "geometry": geometry,
        "intensities": (intensity,),
        "foreground": {},
        "voxels": {"0": 2900, "1": 1000, "2": 100},
        "sources": (SourceFile(path=f"{case}.nii.gz", size_bytes=3_000_000, sha256="0" * 64),),
        "key": case,
        "objects": (StoredObject(path=f"{case}/c", size_bytes=1_000_000, sha256="0" * 64),),
    }
    return CaseRecord(**(values | changes))
