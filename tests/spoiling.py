"""A small healthy dataset of each layout, and ways to spoil a case of it: the generators of `bad_inputs`."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from hssl_dist.config.preprocess import DatasetConfig
from hssl_dist.imaging import write_nifti

SHAPE = (12, 10, 8)
AFFINE = np.diag([1.5, 1.5, 3.0, 1.0])
HEALTHY = ("healthy-0", "healthy-1", "healthy-2")
FOREGROUND = 6 * 5 * 4
MSD = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "box"}, "training": []}
NNUNET = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "box": 1}}


@dataclass(frozen=True, slots=True)
class Files:
    """Where a case's files are: the first channel's, and the label's."""

    root: Path
    name: str
    image: Path
    label: Path


# ------------------------------------------------------------------------------------------- healthy datasets


def place(root: Path, layout: str, name: str) -> Files:
    """The files of a case of that name."""
    if layout == "folder":
        return Files(root, name, root / f"images/{name}.nii.gz", root / f"labels/{name}.nii.gz")
    channel = "_0000" if layout == "nnunet" else ""
    return Files(root, name, root / f"imagesTr/{name}{channel}.nii.gz", root / f"labelsTr/{name}.nii.gz")


def write_case(root: Path, layout: str, name: str) -> Files:
    """A healthy case: noise with a bright, labelled box, other noise for every dataset and name."""
    case = place(root, layout, name)
    label = np.zeros(SHAPE, np.uint8)
    label[3:9, 3:8, 2:6] = 1
    rng = np.random.default_rng(list(f"{root.name}/{name}".encode()))
    for channel in [case.image, second_channel(case)] if layout == "nnunet" else [case.image]:
        image = (rng.normal(200.0, 20.0, SHAPE) + 150.0 * label).astype(np.int16)
        write_nifti(channel, image, AFFINE)
    write_nifti(case.label, label, AFFINE)
    if layout == "msd":
        list_case(root, f"imagesTr/{name}.nii.gz", f"labelsTr/{name}.nii.gz")
    return case


def write_dataset(root: Path, layout: str) -> DatasetConfig:
    """A dataset of three healthy cases; `root` is its folder, whose parent is the source root."""
    if description := {"msd": MSD, "nnunet": NNUNET}.get(layout):
        root.mkdir(parents=True)
        (root / "dataset.json").write_text(json.dumps(description))
    for name in HEALTHY:
        write_case(root, layout, name)
    own = {"modality": "mr", "classes": {1: "box"}} if layout == "folder" else {}
    return DatasetConfig(name=root.name, layout=layout, source=root.name, group="boxes", **own)


def list_case(root: Path, image: str, label: str | None) -> None:
    """Add a case to the Decathlon's list."""
    listed = json.loads((root / "dataset.json").read_text())
    listed["training"].append({"image": image, "label": label})
    (root / "dataset.json").write_text(json.dumps(listed))


def second_channel(case: Files) -> Path:
    """The second channel of a case of two files."""
    return case.image.with_name(f"{case.name}_0001.nii.gz")


# ------------------------------------------------------------------------------------------------- generators


def damaged(damage: Callable[[bytes], bytes]) -> Callable[[Files], object]:
    """The image's file has other bytes."""
    return lambda case: case.image.write_bytes(damage(case.image.read_bytes()))


def flipped(data: bytes, position: int) -> bytes:
    """One bit is another."""
    changed = bytearray(data)
    changed[position] ^= 16
    return bytes(changed)


def header(**fields: Any) -> Callable[[Files], object]:
    """The image's header has other fields."""

    def change(data: bytes) -> bytes:
        plain = bytearray(gzip.decompress(data))
        block = np.frombuffer(plain, nibabel.Nifti1Header.template_dtype, 1).copy()
        for key, value in fields.items():
            block[key] = value
        plain[: block.nbytes] = block.tobytes()
        return gzip.compress(bytes(plain), 1)

    return damaged(change)


def image(change: Callable[[Any], Any]) -> Callable[[Files], object]:
    """The image has other voxels, from float32 ones."""
    return lambda case: _rewrite(case.image, change, np.float32)


def label(change: Callable[[Any], Any], affine: Any = AFFINE) -> Callable[[Files], object]:
    """The label has other voxels, from uint8 ones, or lies elsewhere."""
    return lambda case: _rewrite(case.label, change, np.uint8, affine)


def _rewrite(path: Path, change: Callable[[Any], Any], dtype: Any, affine: Any = AFFINE) -> None:
    voxels = np.asarray(nibabel.load(path).dataobj).astype(dtype)
    write_nifti(path, change(voxels), affine)


def one_voxel(value: float) -> Callable[[Files], object]:
    """One voxel of the image has this value."""

    def change(voxels: Any) -> Any:
        voxels[4, 5, 6] = value
        return voxels

    return image(change)


def instead(make: Callable[[Path], object]) -> Callable[[Files], object]:
    """Something else stands where the image should be."""

    def replace(case: Files) -> None:
        case.image.unlink()
        make(case.image)

    return replace


def renamed(name: str) -> Callable[[Files], object]:
    """The case has another name."""

    def rename(case: Files) -> None:
        for path in (case.image, case.label):
            path.rename(path.with_name(f"{name}.nii.gz"))

    return rename


def stored_as(dtype: Any) -> Callable[[Files], object]:
    """The image's voxels are of a type that is no number."""
    return lambda case: nibabel.Nifti1Image(np.ones(SHAPE, dtype), AFFINE).to_filename(case.image)


def bomb(data: bytes) -> bytes:
    """The file, and a GiB of zeros in one MB more."""
    return data + 64 * gzip.compress(bytes(1 << 24))


def moved(affine_change: float) -> Any:
    """The affine of a label that lies so many mm too far to the right."""
    affine = AFFINE.copy()
    affine[0, 3] += affine_change
    return affine


def description(**keys: Any) -> Callable[[Files], object]:
    """`dataset.json` has other keys."""

    def change(case: Files) -> None:
        path = case.root / "dataset.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))

    return change


def listed(image: str, label: str | None = None) -> Callable[[Files], object]:
    """`dataset.json` lists one more case."""
    return lambda case: list_case(case.root, image, label)


def description_is(data: bytes) -> Callable[[Files], object]:
    """`dataset.json` has these bytes."""
    return lambda case: (case.root / "dataset.json").write_bytes(data)


def archive(damage: Callable[[bytes], bytes], **member: Any) -> Callable[[Files], object]:
    """The dataset comes as a tar archive with one more member, which is then damaged."""

    def pack(case: Files) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as packed:
            packed.add(case.root, case.root.name)
            more = tarfile.TarInfo()
            for key, value in member.items():
                setattr(more, key, value)
            packed.addfile(more)
        case.root.with_suffix(".tar").write_bytes(damage(buffer.getvalue()))

    return pack


def empty_folders(case: Files) -> None:
    """No file is left."""
    for folder in (case.image.parent, case.label.parent):
        shutil.rmtree(folder)
        folder.mkdir()


def other_grid(case: Files) -> None:
    """The second channel has fewer slices."""
    _rewrite(second_channel(case), lambda voxels: voxels[:, :, 1:], np.int16)


def copy_of_healthy(case: Files) -> None:
    """The image is that of another case, compressed anew and stored as another type."""
    first = nibabel.load(place(case.root, "folder", HEALTHY[0]).image)
    write_nifti(case.image, np.asarray(first.dataobj).astype(np.float32), first.affine)


def twin_dataset(case: Files) -> None:
    """A second dataset, of another layout, has the case under another name and with another label."""
    write_dataset(case.root.with_name("twin"), "msd")
    twin = write_case(case.root.with_name("twin"), "msd", "patient001")
    shutil.copy(case.image, twin.image)
