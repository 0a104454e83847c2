"""What evaluating folders of label maps refuses: bad input, in lines, and to replace what others wrote."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hssl_dist import cli
from hssl_dist.errors import ConfigError, HsslError, InputError, MissingError
from tests.label_folders import AFFINE, CASES, SHAPE, Folders, label_of


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def _empty(folders: Folders) -> None:
    (folders.root / "none").mkdir()


def _other_names(folders: Folders) -> None:
    folders.write("none", "x", label_of("p1_a"))


def _other_shape(folders: Folders) -> None:
    folders.write("off", "p1_b", np.zeros((20, 18, 7), np.uint8))


def _other_place(folders: Folders) -> None:
    affine = AFFINE.copy()
    affine[0, 3] = 4.0
    folders.write("off", "p1_b", label_of("p1_b"), affine)


def _undeclared(folders: Folders) -> None:
    folders.write("off", "p1_b", label_of("p1_b") * 3)


def _undeclared_label(folders: Folders) -> None:
    folders.write("labels", "p1_b", label_of("p1_b") * 3)


def _nothing(folders: Folders) -> None:
    """The folders as they are."""


@pytest.mark.parametrize(
    ("spoil", "sets", "changes", "kind", "message"),
    [
        (
            _empty, ("none",), {}, MissingError,
            "predictions 'none': there is no label map in ROOT/none; is it the right folder?",
        ),
        (_nothing, ("none",), {}, MissingError, "predictions 'none': there is no folder ROOT/none"),
        (_nothing, ("off",), {"labels": "/nowhere"}, MissingError, "labels: there is no folder /nowhere"),
        (
            _other_names, ("none",), {}, MissingError,
            "predictions 'none' and labels have no case in common: x beside p1_a, p1_b, p2_a, p3_a; "
            "give files of the same names",
        ),
        (
            _other_shape, ("off",), {}, InputError,
            "predictions 'off': p1_b.nii.gz: shape (20, 18, 7) differs from (20, 18, 8) of its label",
        ),
        (
            _other_place, ("off",), {}, InputError,
            "predictions 'off': p1_b.nii.gz: lies up to 4 mm away from its label (affines differ); "
            "at most 0.1 mm is tolerated",
        ),
        (
            _undeclared, ("off",), {}, InputError,
            "predictions 'off': p1_b.nii.gz: the label holds 3, 6; the dataset declares 0, 1, 2",
        ),
        (
            _undeclared_label, ("off",), {}, InputError,
            "labels: p1_b.nii.gz: the label holds 3, 6; the dataset declares 0, 1, 2",
        ),
        (
            _nothing, ("off",), {"patient_pattern": "^q(.)"}, ConfigError,
            "patient_pattern '^q(.)' finds no patient in case 'p1_a'",
        ),
        (
            _nothing, ("off",), {"classes": {300: "x"}}, ConfigError,
            "label value 300 is declared; 1 to 255 can be scored",
        ),
        (
            _nothing, ("off",), {"surface_dice": {"class_tolerance_mm": {"liver": 1.0}}}, ConfigError,
            "surface_dice.class_tolerance_mm names 'liver'; the classes are left, right",
        ),
        (
            _nothing, ("off",), {"classes": {}, "dataset": "/nowhere"}, MissingError,
            "there is no /nowhere/dataset.json; the layout needs it",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(
    folders: Folders, spoil: Any, sets: tuple[str, ...], changes: Any, kind: type[HsslError], message: str
) -> None:
    spoil(folders)
    with pytest.raises(kind) as caught:
        folders.run(*sets, **changes)
    assert str(caught.value) == message.replace("ROOT", str(folders.root))
    assert not (folders.root / "output").exists()


def test_sets_without_a_case_in_all_of_them_are_refused(folders: Folders) -> None:
    for case, folder in (("p1_a", "one"), ("p1_b", "two")):
        folders.write(folder, case, label_of(case))
    with pytest.raises(MissingError) as caught:
        folders.run("one", "two", allow_missing=True)
    assert str(caught.value) == (
        "no labelled case is in all sets of predictions; compare sets of the same cases"
    )


def test_labels_that_are_all_empty_need_a_declaration(folders: Folders) -> None:
    for case in CASES:
        folders.write("labels", case, np.zeros(SHAPE, np.uint8))
    with pytest.raises(ConfigError) as caught:
        folders.run("off", classes={})
    assert str(caught.value) == (
        "all labels are empty and nothing names their values; give --dataset or --classes"
    )
    folders.run("off")
    assert folders.scores["sets"]["off"]["classes"]["left"]["outcomes"]["spurious"] == 4


# ---------------------------------------------------------------------------------------- many bad files


def _spoil_three(folders: Folders) -> None:
    (folders.root / "labels/p1_a.nii.gz").write_bytes(b"no label")
    _undeclared(folders)
    (folders.root / "off/p3_a.nii.gz").write_bytes(b"")


def test_all_files_that_cannot_be_scored_are_named_at_once(folders: Folders) -> None:
    _spoil_three(folders)
    folders.write("perfect", "p1_a", label_of("p1_a") * 3)  # beside a label that cannot be read
    told = io.StringIO()
    with pytest.raises(InputError) as caught:
        folders.run("off", "perfect", told=told)
    assert told.getvalue().splitlines() == [
        "warning: labels: p1_a.nii.gz: not a NIfTI file; convert it to .nii.gz",
        "warning: predictions 'perfect': p1_a.nii.gz: the label holds 3, 6; the dataset declares 0, 1, 2",
        "warning: predictions 'off': p1_b.nii.gz: the label holds 3, 6; the dataset declares 0, 1, 2",
        "warning: predictions 'off': p3_a.nii.gz: the file is empty",
    ]
    assert str(caught.value) == (
        "4 label maps cannot be scored, each told above; mend them, or leave their cases out of all folders"
    )
    assert not (folders.root / "output").exists()


def test_so_are_labels_that_are_to_tell_the_classes(folders: Folders) -> None:
    for case in CASES[1:]:
        (folders.root / f"labels/{case}.nii.gz").write_bytes(b"")
    told = io.StringIO()
    with pytest.raises(InputError, match=r"^3 label maps cannot be scored, each told above; "):
        folders.run("off", classes={}, told=told)
    assert told.getvalue() == "".join(
        f"warning: labels: {case}.nii.gz: the file is empty\n" for case in CASES[1:]
    )


def test_of_very_many_the_first_are_named(folders: Folders) -> None:
    for number in range(23):
        for folder in ("labels", "off"):
            folders.write(folder, f"p4_{number:02d}", label_of("p1_a"))
        (folders.root / f"off/p4_{number:02d}.nii.gz").write_bytes(b"")
    told = io.StringIO()
    with pytest.raises(InputError, match=r"^23 label maps cannot be scored, the first 20 told above; "):
        folders.run("off", told=told)
    assert [line.split()[-5] for line in told.getvalue().splitlines()] == [
        f"p4_{number:02d}.nii.gz:" for number in range(20)
    ]


def test_as_a_command_bad_files_are_status_1_and_a_line_each(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    _spoil_three(folders)
    places = [f"--{key}={folders.root / key}" for key in ("labels", "output")]
    words = ["--predictions", str(folders.root / "off"), *places, "--classes", '{"1": "left", "2": "right"}']
    assert cli.main(["evaluate", *words, "--threads", "1"]) == 1
    told = capsys.readouterr()
    assert [line.partition(":")[0] for line in told.err.splitlines()] == ["warning"] * 3 + ["hssl evaluate"]
    assert told.out == ""


# -------------------------------------------------------------------------------- an output that is not empty


def test_scores_of_another_input_are_not_replaced_unless_asked_to(folders: Folders) -> None:
    folders.run("off")
    before = (folders.root / "output/scores.json").read_bytes()
    root = folders.root
    for sets, changes, scored in (
        (("perfect",), {}, f"perfect={root}/perfect beside the labels in {root}/labels"),
        (
            ("off", "perfect"),
            {},
            f"off={root}/off, perfect={root}/perfect beside the labels in {root}/labels",
        ),
        (("off",), {"labels": str(root / "perfect")}, f"off={root}/off beside the labels in {root}/perfect"),
    ):
        with pytest.raises(ConfigError) as caught:
            folders.run(*sets, **changes)
        assert str(caught.value) == (
            f"output {root}/output holds the scores of off={root}/off beside the labels in {root}/labels, "
            f"these would be of {scored}; choose another output, or replace them with --overwrite true"
        )
        assert (root / "output/scores.json").read_bytes() == before
    folders.run("off", surface_dice={"tolerance_mm": 2.0})
    assert folders.scores["settings"]["tolerance_mm"] == {"left": 2.0, "right": 2.0}
    folders.run("perfect", overwrite=True)
    assert list(folders.scores["sets"]) == ["perfect"]


@pytest.mark.parametrize("name", ["scores.json", "scores.csv", "report.html"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_others_are_never_replaced(folders: Folders, name: str, overwrite: bool) -> None:
    (folders.root / "output").mkdir()
    (folders.root / "output" / name).write_text("[]")
    with pytest.raises(ConfigError) as caught:
        folders.run("off", overwrite=overwrite)
    assert str(caught.value) == (
        f"output {folders.root}/output holds a {name} that is not from hssl evaluate; move it, or choose "
        "another output"
    )
    assert [path.read_text() for path in (folders.root / "output").iterdir()] == ["[]"]


def test_an_output_that_is_a_file_is_refused(folders: Folders) -> None:
    (folders.root / "output").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        folders.run("off")
    assert str(caught.value) == f"output {folders.root}/output is a file; choose a folder"


def test_an_evaluation_that_was_cut_short_is_done_again(folders: Folders) -> None:
    folders.run("off")
    for name in ("scores.csv", "report.html"):
        (folders.root / "output" / name).unlink()
    folders.run("off")
    assert sorted(path.name for path in (folders.root / "output").iterdir()) == [
        "report.html", "scores.csv", "scores.json",
    ]  # fmt: skip
