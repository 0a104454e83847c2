"""Evaluating folders of label maps: scores, comparisons, pictures, and what is said of cases left out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from hssl_dist.errors import MissingError
from tests.label_folders import CASES, SHAPE, SPACING, Folders, label_of


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def test_a_shift_of_one_voxel_is_scored_in_millimetres_and_missing_structures_count(folders: Folders) -> None:
    outcome = folders.run("off")
    rows = {(row["case"], row["class"]): row for row in folders.rows}
    assert set(rows) == {(case, name) for case in CASES for name in ("left", "right")}
    first = rows["p1_a", "left"]
    assert (first["set"], first["patient"], first["value"], first["outcome"]) == ("off", "p1", "1", "found")
    assert float(first["dice"]) == pytest.approx(3 / 4)
    assert float(first["hd95_mm"]) == 1.0
    assert float(first["label_ml"]) == pytest.approx(4 * 4 * 4 * 2.5 / 1000)
    missed, absent = rows["p1_b", "right"], rows["p2_a", "right"]
    diagonal_mm = np.linalg.norm(np.multiply(SHAPE, SPACING))
    assert (missed["outcome"], float(missed["dice"])) == ("missed", 0.0)
    assert float(missed["hd95_mm"]) == pytest.approx(diagonal_mm, abs=1e-5)
    assert (absent["outcome"], absent["dice"], absent["hd95_mm"]) == ("absent", "", "")

    scores = folders.scores
    right = scores["sets"]["off"]["classes"]["right"]
    assert right["outcomes"] == {"found": 2, "missed": 1, "spurious": 0, "absent": 1}
    known = [float(rows[case, "right"]["dice"]) for case in CASES if case != "p2_a"]
    assert right["dice"]["mean"]["value"] == pytest.approx(np.mean(known))
    assert right["dice"]["median"]["value"] == pytest.approx(np.median(known))
    assert right["dice"]["mean"]["patients"] == 2
    assert right["dice"]["mean"]["low"] <= right["dice"]["mean"]["value"] <= right["dice"]["mean"]["high"]
    overall = scores["sets"]["off"]["overall"]["dice"]["mean"]["value"]
    left = scores["sets"]["off"]["classes"]["left"]["dice"]["mean"]["value"]
    assert overall == pytest.approx((left + right["dice"]["mean"]["value"]) / 2)
    assert (scores["grid"], scores["n_cases"], scores["n_patients"]) == ("original", 4, 3)
    assert outcome.summary["dice_mean"] == overall
    assert outcome.warnings == ()
    assert outcome.lines[0].startswith("off, 4 cases: Dice ")


def test_equal_runs_write_equal_files_and_lineage_follows_the_content(folders: Folders) -> None:
    folders.run("off")
    first = {path.name: path.read_bytes() for path in (folders.root / "output").iterdir()}
    folders.run("off")
    assert {path.name: path.read_bytes() for path in (folders.root / "output").iterdir()} == first
    before = folders.scores["lineage"]
    folders.write("labels", "p1_a", np.roll(label_of("p1_a"), 1, axis=0))
    folders.run("off")
    after = folders.scores["lineage"]
    assert before["predictions"]["off"] == after["predictions"]["off"]
    assert before["labels"]["sha256"] != after["labels"]["sha256"]


def test_sets_are_compared_with_the_first_in_pairs(folders: Folders) -> None:
    folders.run("off", "best=perfect")
    (comparison,) = folders.scores["comparisons"]
    assert (comparison["first"], comparison["other"]) == ("off", "best")
    rows = {(row["set"], row["case"], row["class"]): row for row in folders.rows}
    gains = [1.0 - float(rows["off", case, "left"]["dice"]) for case in CASES]
    left = comparison["classes"]["left"]["dice"]
    assert left["value"] == pytest.approx(np.mean(gains))
    assert (left["better"], left["equal"], left["worse"], left["patients"]) == (3, 0, 0, 3)
    assert left["p"] == pytest.approx(0.25)  # the smallest that three patients allow: 2 / 2^3
    assert comparison["classes"]["left"]["hd95_mm"]["value"] == pytest.approx(-1.0)
    assert comparison["classes"]["left"]["hd95_mm"]["better"] == 3
    volumes = comparison["classes"]["left"]["volume_error_ml"]
    assert (volumes["value"], volumes["equal"], volumes["p"]) == (0.0, 3, None)
    page = (folders.root / "output/report.html").read_text()
    assert "<h3>best minus off</h3>" in page
    assert "3 : 0 : 0, p 0.250" in page


def test_a_false_alarm_of_one_set_is_told_as_unpaired(folders: Folders) -> None:
    alarm = label_of("p2_a")
    alarm[15:17, 3:5, 3:5] = 2
    folders.write("perfect", "p2_a", alarm)
    folders.run("off", "perfect")
    (comparison,) = folders.scores["comparisons"]
    assert comparison["classes"]["right"]["dice"]["unpaired"] == 1
    assert comparison["classes"]["left"]["dice"]["unpaired"] == 0
    assert folders.scores["sets"]["perfect"]["classes"]["right"]["outcomes"]["spurious"] == 1


def test_pictures_are_drawn_where_there_are_images(folders: Folders) -> None:
    outcome = folders.run("off", images=str(folders.root / "images"))
    page = (folders.root / "output/report.html").read_text()
    captions = re.findall(r"<figcaption>(\w+): (\w+), Dice ([\d.]+)</figcaption>", page)
    assert [rank for rank, _, _ in captions] == ["Best", "Median", "Worst"]
    assert captions[-1][1:] == ("p1_b", "0.400")
    assert page.count('src="data:image/png;base64,') == 3
    assert outcome.warnings == ()
    (folders.root / "images/p1_b_0000.nii.gz").unlink()
    outcome = folders.run("off", images=str(folders.root / "images"))
    assert outcome.warnings == ("no picture of case 'p1_b': its image is not in the folder",)


def test_classes_come_from_the_dataset_or_from_the_labels(folders: Folders) -> None:
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "L": 1, "R": 2}}
    (folders.root / "dataset.json").write_text(json.dumps(description))
    folders.run("off", classes={}, dataset=str(folders.root))
    assert folders.scores["classes"] == {"1": "L", "2": "R"}
    description = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "one", "2": "two"}}
    (folders.root / "dataset.json").write_text(json.dumps(description))
    folders.run("off", classes={}, dataset=str(folders.root / "dataset.json"))
    assert folders.scores["classes"] == {"1": "one", "2": "two"}
    folders.run("off", classes={})
    assert folders.scores["classes"] == {"1": "1", "2": "2"}


def test_tolerances_are_each_classs_own_and_told_when_finer_than_a_voxel(folders: Folders) -> None:
    folders.run("off", surface_dice={"tolerance_mm": 0.5, "class_tolerance_mm": {"right": 2.0}})
    scores = folders.scores
    assert scores["settings"]["tolerance_mm"] == {"left": 0.5, "right": 2.0}
    rows = {(row["case"], row["class"]): float(row["nsd"] or "nan") for row in folders.rows}
    assert rows["p1_a", "left"] < 1.0 == rows["p1_a", "right"]
    assert scores["warnings"] == [
        "surface Dice tolerates 0.5 mm, less than a voxel's shortest edge in 4 of 4 cases (up to 1 mm): "
        "there a surface one voxel off is wrong; set surface_dice.tolerance_mm if that is too strict"
    ]


def test_cases_that_are_not_scored_are_named(folders: Folders) -> None:
    (folders.root / "off/p2_a.nii.gz").unlink()
    folders.write("off", "p9_a", label_of("p1_a"))
    with pytest.raises(MissingError) as caught:
        folders.run("off")
    assert str(caught.value) == (
        "predictions 'off' lack 1 of 4 labelled cases: p2_a; predict them, or score the others with "
        "--allow_missing true"
    )
    outcome = folders.run("off", "perfect", allow_missing=True)
    assert outcome.warnings == (
        "predictions 'off' lack 1 of 4 labelled cases, which are scored for no set: p2_a",
        "predictions 'off' hold 1 cases without a label, which are not scored: p9_a",
    )
    lineage = folders.scores["lineage"]
    assert (lineage["missing"], lineage["surplus"]) == (
        {"off": ["p2_a"], "perfect": []},
        {"off": ["p9_a"], "perfect": []},
    )
    assert {row["case"] for row in folders.rows} == {"p1_a", "p1_b", "p3_a"}
