"""Bad input: one row for each kind, with a generator and what has to come of it.

A row takes a healthy case of a small healthy dataset and spoils it. `docs/data.md` shows the table to users
(`tests/bad_inputs_table.py`).
"""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hssl_dist.config.preprocess import DatasetConfig
from tests.spoiling import (
    FOREGROUND,
    HEALTHY,
    Files,
    archive,
    bomb,
    copy_of_healthy,
    damaged,
    description,
    description_is,
    empty_folders,
    flipped,
    header,
    image,
    instead,
    label,
    listed,
    moved,
    one_voxel,
    other_grid,
    renamed,
    second_channel,
    stored_as,
    twin_dataset,
    write_case,
    write_dataset,
)

MAX_VOXELS = 1 << 24


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
    source: str = "{layout}"
    """What the config names: the dataset's folder, or what `spoil` made of it."""


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
        Quarantined("the image has 2 channels (4th dimension), but 1 channel is expected (mr)"),
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
    "path traversal in an archive": Row(
        "msd",
        archive(bytes, name="msd/../../evil.nii.gz"),
        Refused("'msd/../../evil.nii.gz' leads out of it"),
        "msd.tar",
    ),
    "absolute path in an archive": Row(
        "msd",
        archive(bytes, name="/etc/evil.nii.gz"),
        Refused("'/etc/evil.nii.gz' leads out of it"),
        "msd.tar",
    ),
    "truncated archive": Row(
        "msd",
        archive(lambda data: data[: len(data) // 3], name="msd/more"),
        Refused("fetch it again"),
        "msd.tar",
    ),
    "archive of rubbish": Row(
        "msd",
        archive(lambda data: b"rubbish" * 999, name="msd/more"),
        Refused("is no whole and plain tar archive"),
        "msd.tar",
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
    return config.model_copy(update={"source": row.source.format(layout=row.layout)})
