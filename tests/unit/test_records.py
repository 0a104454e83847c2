"""Records: canonical JSON and strictness."""

import pytest
from pydantic import ValidationError

from hssl_dist.records import Lineage, ManifestHeader, SourceFile, canonical_json, content_hash


def test_equal_values_give_equal_text() -> None:
    assert canonical_json({"b": 1, "a": [1.5, None, "ü"]}) == '{"a":[1.5,null,"ü"],"b":1}'
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})


def test_a_record_survives_its_json() -> None:
    record = Lineage(config_hash="c", code_version="1", manifests={"b": "2", "a": "1"})
    assert Lineage.model_validate_json(record.to_json()) == record
    assert record.to_json().index('"a"') < record.to_json().index('"b"')


def test_unknown_fields_and_changes_are_refused() -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        SourceFile.model_validate({"path": "a", "size_bytes": 1, "sha256": "x", "more": 1})
    with pytest.raises(ValidationError, match="frozen"):
        SourceFile(path="a", size_bytes=1, sha256="x").path = "b"  # type: ignore[misc]


def test_not_a_number_has_no_json() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        canonical_json(float("nan"))


def test_a_dataset_has_no_two_values_of_one_name() -> None:
    with pytest.raises(ValidationError, match="label values 2 and 5 are both called 'x'"):
        ManifestHeader(
            dataset="d",
            task="t",
            group="g",
            classes={5: "x", 1: "y", 2: "x"},
            channels=("mr",),
            recipe={},
            recipe_hash="r",
            code_version="1",
        )
