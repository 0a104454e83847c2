"""Bad input: one row for each kind, with a generator and what has to come of it.

A row takes a healthy case of a small healthy dataset and spoils it. `docs/data.md` shows the table to users:
`python -m tests.bad_inputs` prints it, and a test holds the two together.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
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
MAX_VOXELS = 1 << 24
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


@dataclass(frozen=True, slots=True)
class Quarantined:
    """The case is left out with this reason, and the job goes on."""

    reason: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The case is stored under this id, with so many voxels of its label."""

    case: str
    foreground: int = FOREGROUND


@dataclass(frozen=True, slots=True)
class Refused:
    """The job ends with status 2 and this line before anything is written."""

    line: str


@dataclass(frozen=True, slots=True)
class Warned:
    """All is stored, and the job and the quality report say this."""

    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """A kind of bad input."""

    layout: str
    spoil: Callable[[Files], object]
    outcome: Quarantined | Accepted | Refused | Warned


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


# -------------------------------------------------------------------------------------------------- the table

ROWS: dict[str, Row] = {
    # Files that are not what their name says
    "no bytes": Row("folder", damaged(lambda data: b""), Quarantined("the file is empty")),
    "no NIfTI": Row("folder", damaged(lambda data: b"a text"), Quarantined("not a NIfTI file")),
    "half a header": Row(
        "folder",
        damaged(lambda data: gzip.compress(gzip.decompress(data)[:170])),
        Quarantined("truncated: ends within its header, after 170 bytes"),
    ),
    "header of a pair": Row(
        "folder", header(magic=b"ni1"), Quarantined("a header without its voxels (.hdr/.img pair)")
    ),
    "folder where a file is due": Row(
        "folder", instead(Path.mkdir), Quarantined("cannot be read: Is a directory")
    ),
    "link to nothing": Row(
        "folder", instead(lambda path: path.symlink_to("nowhere")), Quarantined("is missing")
    ),
    "link to itself": Row(
        "folder",
        instead(lambda path: path.symlink_to(path)),
        Quarantined("cannot be read: Too many levels of symbolic links"),
    ),
    "pipe": Row("folder", instead(os.mkfifo), Quarantined("cannot be read: it is a pipe or a device")),
    "endless device": Row(
        "folder",
        instead(lambda path: path.symlink_to("/dev/zero")),
        Quarantined("cannot be read: it is a pipe or a device"),
    ),
    "unreadable file": Row(
        "folder", lambda case: case.image.chmod(0), Quarantined("cannot be read: Permission denied")
    ),
    "label without image": Row("folder", lambda case: case.image.unlink(), Quarantined("is missing")),
    "plain NIfTI named .nii.gz": Row("folder", damaged(gzip.decompress), Accepted("bad")),
    "gzip named .nii": Row(
        "folder", lambda case: case.image.rename(case.image.with_name(f"{case.name}.nii")), Accepted("bad")
    ),
    # Compression
    "truncated gzip": Row(
        "folder",
        damaged(lambda data: data[: len(data) // 2]),
        Quarantined("truncated gzip: it ends before its checksum"),
    ),
    "gzip without checksum": Row(
        "folder", damaged(lambda data: data[:-8]), Quarantined("truncated gzip: it ends before its checksum")
    ),
    "gzip with a bad CRC": Row(
        "folder", damaged(lambda data: flipped(data, -8)), Quarantined("corrupt gzip")
    ),
    "gzip with flipped bits": Row(
        "folder", damaged(lambda data: flipped(data, len(data) // 2)), Quarantined("corrupt gzip")
    ),
    "gzip with rubbish behind it": Row(
        "folder", damaged(lambda data: data + b"rubbish"), Quarantined("bytes after its end that are no gzip")
    ),
    "1 MB of gzip that declares 1 GiB": Row(
        "folder",
        lambda case: (header(dim=[3, 1024, 1024, 1024, 1, 1, 1, 1], datatype=2)(case), damaged(bomb)(case)),
        Quarantined("the header declares 1024 x 1024 x 1024 voxels; max_voxels allows 16777216"),
    ),
    "1 MB of gzip that holds 1 GiB": Row(
        "folder", damaged(bomb), Quarantined("holds more than the 2272 bytes its header declares")
    ),
    # Headers
    "32767^3 header": Row(
        "folder",
        header(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]),
        Quarantined("the header declares 32767 x 32767 x 32767 voxels; max_voxels allows 16777216"),
    ),
    "zero dims": Row(
        "folder",
        header(dim=[3, 12, 0, 8, 1, 1, 1, 1]),
        Quarantined("declares a size of 12 x 0 x 8; every size must be positive"),
    ),
    "negative dims": Row(
        "folder",
        header(dim=[3, 12, -10, 8, 1, 1, 1, 1]),
        Quarantined("declares a size of 12 x -10 x 8; every size must be positive"),
    ),
    "more voxels declared than there are": Row(
        "folder",
        header(dim=[3, 12, 10, 9, 1, 1, 1, 1]),
        Quarantined("truncated: holds 2272 of the 2512 bytes its header declares"),
    ),
    "singular affine": Row(
        "folder",
        header(srow_x=[0, 1.5, 0, 0]),
        Quarantined("the affine is singular: its voxels have no volume"),
    ),
    "NaN affine": Row(
        "folder", header(srow_x=[np.nan, 0, 0, 0]), Quarantined("the affine has NaN or infinite entries")
    ),
    "NaN slope": Row(
        "folder",
        header(scl_slope=np.nan),
        Quarantined("intensity scaling (scl_slope, scl_inter) is (nan, 0)"),
    ),
    "lengths in micrometres": Row(
        "folder",
        header(xyzt_units=3),
        Quarantined("the header gives lengths in micrometres; convert it to millimetres"),
    ),
    "voxels of a kilometre": Row(
        "folder",
        header(srow_x=[1e6, 0, 0, 0]),
        Quarantined("the affine makes voxels of 1e+06 x 1.5 x 3 mm, which cannot be"),
    ),
    "huge offset": Row(
        "folder",
        header(vox_offset=1e30),
        Quarantined("the header puts the voxels at byte 1e+30, which cannot be"),
    ),
    "header extension of 1 GiB": Row(
        "folder",
        header(vox_offset=float(1 << 30)),
        Quarantined("the header puts the voxels at byte 1.07374e+09, which cannot be"),
    ),
    "RGB": Row(
        "folder",
        stored_as([("R", "u1"), ("G", "u1"), ("B", "u1")]),
        Quarantined("voxels are colour (RGB); real numbers are needed"),
    ),
    "complex": Row(
        "folder", stored_as(np.complex64), Quarantined("voxels are complex; real numbers are needed")
    ),
    "unknown voxel type": Row(
        "folder", header(datatype=999), Quarantined("unknown voxel type (NIfTI datatype 999)")
    ),
    "4D where 3D is due": Row(
        "folder",
        image(lambda voxels: np.stack([voxels, voxels], 3)),
        Quarantined("the image has 2 channels (4th dimension); the dataset has 1"),
    ),
    "vectors": Row(
        "folder",
        header(dim=[5, 12, 10, 2, 1, 4, 1, 1]),
        Quarantined("5 dimensions (12 x 10 x 2 x 1 x 4); 3, or 4 with channels, are needed"),
    ),
    # Voxels
    "NaN voxels": Row("folder", one_voxel(np.nan), Quarantined("1 of 960 voxels are NaN or infinite")),
    "infinite voxels": Row("folder", one_voxel(-np.inf), Quarantined("1 of 960 voxels are NaN or infinite")),
    "one voxel of 3e38": Row("folder", one_voxel(3e38), Quarantined("to 3e+38; beyond 1e+12 none can be")),
    "constant image": Row(
        "folder", image(lambda voxels: 0 * voxels + 7), Quarantined("the image is constant: every voxel is 7")
    ),
    # Labels
    "label of another shape": Row(
        "folder",
        label(lambda voxels: voxels[:, :, 1:]),
        Quarantined("shape (12, 10, 7) differs from (12, 10, 8)"),
    ),
    "label of another affine": Row(
        "folder", label(lambda voxels: voxels, moved(2.0)), Quarantined("lies up to 2 mm away from")
    ),
    "label with undeclared values": Row(
        "folder",
        label(lambda voxels: 7 * voxels),
        Quarantined("the label holds 7; the dataset declares 0, 1"),
    ),
    "label of fractions": Row(
        "folder",
        label(lambda voxels: voxels * np.float32(0.5)),
        Quarantined("the label holds 0.5; whole numbers are needed"),
    ),
    "label with NaN": Row(
        "folder",
        label(lambda voxels: voxels * np.float32(np.nan)),
        Quarantined("the label has NaN or infinite voxels"),
    ),
    "label of two channels": Row(
        "folder",
        label(lambda voxels: np.stack([voxels, voxels], 3)),
        Quarantined("the label has 2 channels; 1 is needed"),
    ),
    "float labels": Row("folder", label(lambda voxels: voxels.astype(np.float64)), Accepted("bad")),
    "empty label": Row("folder", label(lambda voxels: 0 * voxels), Accepted("bad", foreground=0)),
    # Channels and lists
    "channel missing": Row("nnunet", lambda case: second_channel(case).unlink(), Quarantined("is missing")),
    "channels of different grids": Row(
        "nnunet", other_grid, Quarantined("_0001.nii.gz: shape (12, 10, 7) differs from (12, 10, 8)")
    ),
    "file listed that is not there": Row("msd", lambda case: case.image.unlink(), Quarantined("is missing")),
    "label listed that is not there": Row("msd", lambda case: case.label.unlink(), Quarantined("is missing")),
    # Names
    "name with spaces": Row("folder", renamed("bad scan (2)"), Accepted("bad-scan-2")),
    "name in unicode": Row("folder", renamed("Müller 患者"), Accepted("Muller-bdcd2805")),
    "name of 240 characters": Row("folder", renamed("n" * 240), Accepted(f"{120 * 'n'}-0c441b63")),
    "name with a line break": Row("folder", renamed("bad\nscan"), Accepted("bad-scan")),
    "name that is not UTF-8": Row(
        "folder", renamed("caf\udce9"), Refused("caf\\udce9.nii.gz' is not UTF-8; rename it")
    ),
    "names that become one": Row(
        "folder", renamed(f"{HEALTHY[0]} ()"), Refused("are both case 'healthy-0'; rename one")
    ),
    "duplicate case ids": Row(
        "folder",
        lambda case: shutil.copy(case.image, case.image.with_name(f"{case.name}.nii")),
        Refused("bad.nii are the same case; remove one"),
    ),
    "case listed twice": Row(
        "msd", listed(f"imagesTr/{HEALTHY[0]}.nii.gz"), Refused("are both case 'healthy-0'; rename one")
    ),
    # Descriptions
    "unreadable JSON": Row("msd", description_is(b'{"labels": '), Refused("dataset.json: Invalid JSON")),
    "JSON of another shape": Row(
        "nnunet", description(labels=3), Refused("dataset.json: labels: Input should be")
    ),
    "JSON that is a folder": Row(
        "msd",
        lambda case: ((case.root / "dataset.json").unlink(), (case.root / "dataset.json").mkdir()),
        Refused("dataset.json cannot be read: Is a directory"),
    ),
    "no dataset.json": Row(
        "nnunet",
        lambda case: (case.root / "dataset.json").unlink(),
        Refused("dataset.json; the layout needs it"),
    ),
    "path traversal in dataset.json": Row(
        "msd",
        listed("../../etc/a.nii.gz"),
        Refused("dataset.json names '../../etc/a.nii.gz', which is outside of the dataset"),
    ),
    "absolute path in dataset.json": Row(
        "msd",
        listed("/etc/a.nii.gz"),
        Refused("dataset.json names '/etc/a.nii.gz', which is outside of the dataset"),
    ),
    "URL in dataset.json": Row(
        "msd",
        listed("s3://bucket/a.nii.gz"),
        Refused("dataset.json names 's3://bucket/a.nii.gz', which is outside of the dataset"),
    ),
    "channels nobody names": Row(
        "msd", description(modality={}), Refused("its description names no channel")
    ),
    "label values beyond 255": Row(
        "nnunet",
        description(labels={"background": 0, "box": 256}),
        Refused("label value 256; 1 to 255 can be stored"),
    ),
    "zero cases": Row("folder", empty_folders, Refused("no case in")),
    "no such folder": Row("folder", lambda case: shutil.rmtree(case.root), Refused("there is no folder")),
    # What is stored, but should be known
    "same patient in two datasets": Row(
        "folder", twin_dataset, Warned("scans are in the dataset twin, too (bad = patient001)")
    ),
    "identical volumes under two names": Row(
        "folder",
        copy_of_healthy,
        Warned("patients share scans (bad = healthy-0): splits keep such patients together"),
    ),
    "file that belongs to no case": Row(
        "folder",
        lambda case: case.image.with_name("notes.txt").write_bytes(b""),
        Warned("files that belong to no case: images/notes.txt"),
    ),
    "file that the list leaves out": Row(
        "msd",
        lambda case: shutil.copy(case.image, case.image.with_name("new.nii.gz")),
        Warned("files that belong to no case: imagesTr/new.nii.gz"),
    ),
}


def write_row(folder: Path, name: str, case: str = "bad") -> DatasetConfig:
    """A healthy dataset and the row's case, under `folder`."""
    row = ROWS[name]
    root = folder / row.layout
    config = write_dataset(root, row.layout)
    row.spoil(write_case(root, row.layout, case))
    return config


def table() -> str:
    """The table in Markdown: every row, under what comes of it."""
    said = {
        Quarantined: lambda outcome: f"quarantined: {outcome.reason}",
        Accepted: lambda outcome: (
            "accepted" if outcome.case == "bad" else f"accepted as `{_short(outcome.case)}`"
        ),
        Refused: lambda outcome: f"status 2: {outcome.line}",
        Warned: lambda outcome: f"warning: {outcome.text}",
    }
    lines = ["| input | outcome |", "|---|---|"]
    for kind, words in said.items():
        lines += [
            f"| {name} | {words(row.outcome).strip()} |"
            for name, row in ROWS.items()
            if isinstance(row.outcome, kind)
        ]
    return "\n".join(lines)


def _short(case: str) -> str:
    return case if len(case) < 40 else f"{case[:8]}...{case[-12:]}"


if __name__ == "__main__":
    print(table())  # noqa: T201
