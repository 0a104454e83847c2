"""How challenges lay out their files: one function per layout, each writing the same cases."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped

from hssl_dist.config.preprocess import DatasetConfig
from hssl_dist.synthetic.anatomy import Phantom

NiftiWriter = Callable[[Path, Shaped[np.ndarray, "x y z"], Float[np.ndarray, "4 4"]], None]
Orientation = Literal["RAS", "LPS"]
Layout = Literal["msd", "nnunet", "bids", "folder"]


@dataclass(frozen=True, slots=True)
class PhantomCase:
    """A phantom, whose it is, and how its file is stored; without `labelled`, its label is not written."""

    patient: str
    session: str | None
    phantom: Phantom
    orientation: Orientation
    labelled: bool

    @property
    def id(self) -> str:
        """Patient and session."""
        return self.patient if self.session is None else f"{self.patient}_{self.session}"


@dataclass(frozen=True, slots=True)
class Description:
    """What a challenge says about its dataset; sessions, if any, follow the patient in a case's id."""

    name: str
    task: str
    group: str
    modality: Literal["ct", "mr"]
    classes: dict[int, str]
    sessions: bool


def write_layout(
    layout: Layout, root: Path, about: Description, cases: Sequence[PhantomCase], write: NiftiWriter
) -> DatasetConfig:
    """Write the cases below `root`; the config's `source` is relative to it."""
    return LAYOUTS[layout](root, about, cases, write)


def _write_msd(
    root: Path, about: Description, cases: Sequence[PhantomCase], write: NiftiWriter
) -> DatasetConfig:
    source = f"Task01_{about.name.capitalize()}"
    training, test = [], []
    for case in cases:
        name = f"{about.name}_{case.id}.nii.gz"
        folder = "imagesTr" if case.labelled else "imagesTs"
        _write_image(root / source / folder / name, case, write)
        if case.labelled:
            _write_label(root / source / "labelsTr" / name, case, write)
            training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
        else:
            test.append(f"./imagesTs/{name}")
    description = {
        "name": about.name.capitalize(),
        "description": "Synthetic phantoms",
        "tensorImageSize": "3D",
        "modality": {"0": {"ct": "CT", "mr": "MRI"}[about.modality]},
        "labels": {"0": "background"} | {str(value): name for value, name in about.classes.items()},
        "numTraining": len(training),
        "numTest": len(test),
        "training": training,
        "test": test,
    }
    _write_json(root / source / "dataset.json", description)
    return _config(about, "msd", source, rf"^{about.name}_([^_]+)")


def _write_nnunet(
    root: Path, about: Description, cases: Sequence[PhantomCase], write: NiftiWriter
) -> DatasetConfig:
    source = f"Dataset002_{about.name.capitalize()}"
    for case in cases:
        name = f"{about.name}_{case.id}"
        folder = "imagesTr" if case.labelled else "imagesTs"
        _write_image(root / source / folder / f"{name}_0000.nii.gz", case, write)
        if case.labelled:
            _write_label(root / source / "labelsTr" / f"{name}.nii.gz", case, write)
    description = {
        "channel_names": {"0": about.modality.upper()},
        "labels": {"background": 0} | {name: value for value, name in about.classes.items()},
        "numTraining": sum(case.labelled for case in cases),
        "file_ending": ".nii.gz",
    }
    _write_json(root / source / "dataset.json", description)
    return _config(about, "nnunet", source, rf"^{about.name}_([^_]+)")


def _write_folder(
    root: Path, about: Description, cases: Sequence[PhantomCase], write: NiftiWriter
) -> DatasetConfig:
    source = f"{about.name}_folder"
    for case in cases:
        _write_image(root / source / "images" / f"{case.id}.nii.gz", case, write)
        if case.labelled:
            _write_label(root / source / "labels" / f"{case.id}.nii.gz", case, write)
    return _config(about, "folder", source, r"^([^_]+)", modality=about.modality, classes=about.classes)


def _write_bids(
    root: Path, about: Description, cases: Sequence[PhantomCase], write: NiftiWriter
) -> DatasetConfig:
    source = f"{about.name}_bids"
    suffix = {"ct": "CT", "mr": "T2w"}[about.modality]
    for folder in (root / source, root / source / "derivatives" / "labels"):
        _write_json(folder / "dataset_description.json", {"Name": about.name, "BIDSVersion": "1.10.0"})
    for case in cases:
        entities = [f"sub-{case.patient}"] + ([f"ses-{case.session}"] if case.session else [])
        below, stem = Path(*entities, "anat"), "_".join(entities)
        _write_image(root / source / below / f"{stem}_{suffix}.nii.gz", case, write)
        if case.labelled:
            target = (
                root / source / "derivatives" / "labels" / below / f"{stem}_desc-{about.name}_mask.nii.gz"
            )
            _write_label(target, case, write)
    return _config(about, "bids", source, None, modality=about.modality, classes=about.classes)


LAYOUTS: dict[Layout, Callable[[Path, Description, Sequence[PhantomCase], NiftiWriter], DatasetConfig]] = {
    "msd": _write_msd,
    "nnunet": _write_nnunet,
    "bids": _write_bids,
    "folder": _write_folder,
}


def _config(
    about: Description, layout: Layout, source: str, pattern: str | None, **extra: Any
) -> DatasetConfig:
    return DatasetConfig(
        name=f"phantom-{about.name}",
        layout=layout,
        source=source,
        task=about.task,
        group=about.group,
        patient_pattern=pattern if about.sessions else None,
        **extra,
    )


def _write_image(path: Path, case: PhantomCase, write: NiftiWriter) -> None:
    voxels = np.round(case.phantom.image).astype(np.int16)
    write(path, *_oriented(voxels, case))


def _write_label(path: Path, case: PhantomCase, write: NiftiWriter) -> None:
    write(path, *_oriented(case.phantom.label, case))


def _oriented(
    array: Shaped[np.ndarray, "z y x"], case: PhantomCase
) -> tuple[Shaped[np.ndarray, "x y z"], Float[np.ndarray, "4 4"]]:
    """The array as the file holds it, and the affine that puts its voxels at the same places in RAS mm."""
    turned = array.transpose(2, 1, 0)
    spacing = np.array(case.phantom.spacing_mm[::-1])
    first = -(np.array(turned.shape) - 1) / 2 * spacing
    if case.orientation == "LPS":
        turned = turned[::-1, ::-1]
        spacing, first = spacing * (-1, -1, 1), first * (-1, -1, 1)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = first
    return np.ascontiguousarray(turned), affine


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
