"""Names of classes from a dataset's description alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hssl_dist.datasets.class_names import class_names
from hssl_dist.errors import ConfigError, MissingError


def _write(folder: Path, labels: Any) -> str:
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return str(folder)


@pytest.mark.parametrize(
    "labels", [{"0": "background", "2": "LV", "1": "RV"}, {"background": 0, "LV": 2, "RV": 1}]
)
def test_both_forms_are_read_from_the_folder_or_the_file(tmp_path: Path, labels: Any) -> None:
    folder = _write(tmp_path, labels)
    assert class_names(folder) == class_names(f"{folder}/dataset.json") == {1: "RV", 2: "LV"}


def test_what_makes_no_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"there is no .*/dataset\.json"):
        class_names(str(tmp_path))
    with pytest.raises(ConfigError, match=r"label 'whole' is a region of the values \[1, 2\]"):
        class_names(_write(tmp_path, {"background": 0, "whole": [1, 2]}))
    with pytest.raises(ConfigError, match=r"dataset\.json: labels: Input should be an object"):
        class_names(_write(tmp_path, [1, 2]))
    with pytest.raises(ConfigError, match=r"dataset\.json: label 'x' is 'y', which is no whole number"):
        class_names(_write(tmp_path, {"background": 0, "x": "y"}))
    with pytest.raises(
        ConfigError, match=r"dataset\.json: label values 1 and 3 are both called 'LV'; give each a name"
    ):
        class_names(_write(tmp_path, {"0": "background", "1": "LV", "2": "RV", "3": "LV"}))
