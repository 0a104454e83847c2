"""A small dataset in every layout, as files of no content, and what is found of it."""

from __future__ import annotations

import json
from collections.abc import Iterable

from hssl_dist import files
from hssl_dist.config.preprocess import DatasetConfig
from hssl_dist.datasets import discover
from tests.dicom_files import dicom_file, series, volume

MSD = {
    "modality": {"0": "FLAIR", "1": "T1w"},
    "labels": {"0": "background", "2": "core", "1": "oedema"},
    "training": [
        {"image": "./imagesTr/b.nii.gz", "label": "./labelsTr/b.nii.gz"},
        {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"},
        {"image": "./imagesTr/._a.nii.gz", "label": "./labelsTr/._a.nii.gz"},
    ],
    "test": ["./imagesTs/c.nii.gz"],
}
NNUNET = {
    "channel_names": {"0": "CT", "1": "PET"},
    "labels": {"background": 0, "tumour": 1},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}
LAYOUT_FILES = {
    "msd": [
        "imagesTr/a.nii.gz",
        "imagesTr/b.nii.gz",
        "imagesTr/._a.nii.gz",
        "labelsTr/a.nii.gz",
        "labelsTr/b.nii.gz",
        "imagesTs/c.nii.gz",
    ],
    "nnunet": [
        *(f"imagesTr/{case}_000{channel}.nii.gz" for case in "ba" for channel in (0, 1)),
        *(f"imagesTs/c_000{channel}.nii.gz" for channel in (0, 1)),
        "imagesTr/._a_0000.nii.gz",
        "labelsTr/a.nii.gz",
        "labelsTr/b.nii.gz",
    ],
    "bids": [
        "participants.tsv",
        "sub-1/anat/sub-1_FLAIR.nii.gz",
        "sub-1/anat/sub-1_FLAIR.json",
        "sub-1/anat/._sub-1_FLAIR.nii.gz",
        "sub-1/anat/sub-1_T1w.nii.gz",
        "sub-1/anat/sub-1_defacemask.nii.gz",
        "sub-1/dwi/sub-1_dwi.nii.gz",
        "sub-2/ses-1/anat/sub-2_ses-1_FLAIR.nii.gz",
        "sub-2/ses-2/anat/sub-2_ses-2_FLAIR.nii.gz",
        "derivatives/lesions/sub-1/anat/sub-1_desc-lesion_mask.nii.gz",
        "derivatives/lesions/sub-2/ses-2/anat/sub-2_ses-2_desc-lesion_mask.nii.gz",
    ],
    "folder": [
        "images/a.nii.gz",
        "images/b.nii.gz",
        "images/notes.txt",
        "images/._a.nii.gz",
        "labels/b.nii.gz",
    ],
    "dicom": ["anna/ct/1", "anna/ct/2", "ben/ct/1"],
}
EXTRAS = {
    "folder": {"modality": "ct", "classes": {1: "nodule"}},
    "bids": {"classes": {1: "lesion"}},
}


def put(root: str, names: Iterable[str], description: object = None) -> None:
    """Files of no content: discovery never opens an image."""
    for name in names:
        files.write(files.join(root, "set", name), b"")
    if description is not None:
        files.write(files.join(root, "set", "dataset.json"), json.dumps(description).encode())


def put_layout(root: str, layout: str) -> None:
    put(root, LAYOUT_FILES[layout], {"msd": MSD, "nnunet": NNUNET}.get(layout))
    if layout == "dicom":  # which files are one series stands in the files
        for name in LAYOUT_FILES[layout]:
            (elements,) = series(volume(1), uid=f"1.2.{ord(name[0])}")
            files.write(files.join(root, "set", name), dicom_file(elements))


def find(root: str, layout: str, **keys):
    config = DatasetConfig(
        **{"name": "d", "layout": layout, "source": "set", "group": "g", **EXTRAS.get(layout, {}), **keys}
    )
    return discover(config, root)


def told(root: str, layout: str, **keys):
    """`(id, patient, split, images, label)` of every case, paths relative to the dataset."""

    def short(url):
        return None if url is None else files.relative(url, files.join(root, "set"))

    return [
        (case.id, case.patient, case.split, [short(url) for url in case.images], short(case.label))
        for case in find(root, layout, **keys).cases
    ]
