"""Folders of label maps and images under any names, whole or damaged: read, or refused in one line."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hssl_dist.config.evaluate import EvaluateConfig
from hssl_dist.config.preprocess import DatasetConfig
from hssl_dist.datasets import discover
from hssl_dist.datasets.inputs import find_inputs
from hssl_dist.errors import ConfigError, InputError, MissingError
from hssl_dist.imaging import write_nifti
from hssl_dist.jobs.evaluate_folders import FolderInputs
from hssl_dist.records import content_hash
from tests.depth import examples
from tests.mutations import damaged
from tests.refusals import value_or_refusal

NAMES = st.sampled_from(
    [
        *(
            "a",
            "b",
            "a b",
            "ünï",
            "._a",
            ".a",
            "a.b",
            "a_0000",
            "a_0001",
            "a_00010",
            "a!",
            "a.tar!",
            "-",
            "~",
        ),
        *("a\nb", "\udcff", "$HOME", "%s", "x" * 240, "٣_0000", "a\x7f", "a\tb"),
    ]
)
ENDINGS = st.sampled_from([".nii.gz", ".nii.gz", ".nii", ".nrrd", ".mha", ".nhdr", "", ".txt", ".nii.gz.gz"])
FILES = st.dictionaries(st.tuples(NAMES, ENDINGS), st.booleans(), max_size=4)

REFUSALS = (ConfigError, MissingError, InputError)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("maps")


@pytest.fixture(scope="module")
def whole(folder):
    """The bytes of a label map."""
    label = np.zeros((4, 5, 6), np.uint8)
    label[1:3, 1:3, 1:3] = 1
    write_nifti(folder / "label.nii.gz", label, np.eye(4))
    return (folder / "label.nii.gz").read_bytes()


def laid(root, found, whole, data):
    """A folder of these files, some of them damaged."""
    root.mkdir()
    for (name, ending), sound in found.items():
        path = os.path.join(root, f"{name}{ending}")  # noqa: PTH118  (names that are no text, too)
        with open(os.fsencode(path), "wb") as stream:  # noqa: PTH123
            stream.write(whole if sound else data.draw(damaged(whole)))


def outcome(read):
    """What reading gives; None if it is refused."""
    found = value_or_refusal(read, *REFUSALS)
    return None if isinstance(found, REFUSALS) else found


@given(FILES, FILES, FILES, st.booleans(), st.data())
@examples(100)
def test_any_folders_of_label_maps_are_scored_or_refused(folder, whole, common, own, others, allow, data):
    root = folder / "scored"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    laid(root / "labels", {**own, **common}, whole, data)
    laid(root / "ours", {**others, **common}, whole, data)
    config = EvaluateConfig(
        predictions=(f"ours={root / 'ours'}",),
        labels=str(root / "labels"),
        classes={1: "box"},
        allow_missing=allow,
    )

    inputs = outcome(lambda: FolderInputs(config, str(root / "labels"), lambda _: None))
    if inputs is None:
        return
    content_hash(outcome(lambda: dict(inputs.lineage)))
    for case in inputs.cases:
        example = outcome(lambda: inputs.example(case))  # noqa: B023
        assert example is None or example.label.shape == (6, 5, 4)


@given(FILES, st.sampled_from(["auto", "folder", "nnunet"]), st.data())
@examples(100)
def test_any_folder_of_images_is_listed_or_refused(folder, whole, found, layout, data):
    root = folder / "listed"
    shutil.rmtree(root, ignore_errors=True)
    laid(root, found, whole, data)

    inputs = outcome(lambda: find_inputs(str(root), layout))
    if inputs is not None:
        content_hash([case.name for case in inputs.cases])
        assert len({case.name for case in inputs.cases}) == len(inputs.cases)
    config = DatasetConfig(
        name="toy", layout="folder", source=str(root), group="toys", modality="mr", images=".", labels="none"
    )
    dataset = outcome(lambda: discover(config, "/"))
    if dataset is not None:
        content_hash([(case.id, case.images) for case in dataset.cases])
