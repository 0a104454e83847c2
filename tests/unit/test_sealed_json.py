"""JSON with a hash of its own: a flipped bit is an error or changes nothing, and files of before are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest

from hssl_dist import files
from hssl_dist.config.parts import TrackingConfig
from hssl_dist.errors import CheckpointError, ConfigError, CorruptError
from hssl_dist.files.sealed_json import SEAL, read_sealed, sealed, unsealed
from hssl_dist.jobs.finished import Wanted, read_done, write_done
from hssl_dist.jobs.study_cells import read_cell
from tests.refusals import value_or_refusal
from tests.study_cells import cell

CONTENT = {"dice": 0.8125, "ü": ["1", None, True], "nested": {"b": -3, "a": 1e-9}}
TRAJECTORY = {"seed": 3, "steps": 10}
SUMMARY = {"model": "models:/unet/3", "run_id": "f" * 32, "steps": 10}


def flips(data: bytes) -> list[bytes]:
    """The data with one bit of each byte flipped, another one each time."""
    changed = []
    for place in range(len(data)):
        copy = bytearray(data)
        copy[place] ^= 1 << place % 8
        changed.append(bytes(copy))
    return changed


@pytest.mark.parametrize("indent", [None, 2])
def test_what_is_sealed_is_read_however_it_is_laid_out(indent: int | None) -> None:
    text = json.dumps(sealed(CONTENT), indent=indent, ensure_ascii=indent is None)
    assert read_sealed("a.json", text.encode()) == CONTENT
    assert unsealed("a.json", [1]) == [1]
    assert unsealed("a.json", CONTENT) == CONTENT


def test_keys_that_are_numbers_are_sealed_as_they_are_read() -> None:
    text = json.dumps(sealed({"classes": {10: "a", 2: "b"}}))
    assert read_sealed("a.json", text.encode()) == {"classes": {"10": "a", "2": "b"}}


def test_no_flipped_bit_changes_a_value_in_silence() -> None:
    refused = 0
    for data in flips(json.dumps(sealed(CONTENT), ensure_ascii=False).encode()):
        found = value_or_refusal(lambda: read_sealed("a.json", data), CorruptError)  # noqa: B023
        if isinstance(found, CorruptError):
            assert str(found).startswith("a.json ")
            refused += 1
        else:
            # Nothing is another, or the seal has lost its name: then that is a key nobody knows.
            assert found == CONTENT or len(found) == len(CONTENT) + 1
    assert refused > 60


@pytest.mark.parametrize("text", ["", "{", '{"a": 1', "[" * 100_000, '"\\ud800"x'])
def test_what_is_no_json_is_one_error(text: str) -> None:
    with pytest.raises(CorruptError, match=r"^a\.json is no JSON \(") as failed:
        read_sealed("a.json", text.encode())
    assert "\n" not in str(failed.value)


def test_what_no_json_of_ours_holds_is_no_match() -> None:
    for odd in ("NaN", '"\\ud800"'):
        with pytest.raises(CorruptError, match="does not have the SHA-256 that is in it"):
            read_sealed("a.json", f'{{"a": {odd}, "{SEAL}": "{"0" * 64}"}}'.encode())


# ------------------------------------------------------------------------------------------------ who uses it


def done(folder: Path) -> dict[str, Any]:
    def register(name: str) -> NoReturn:
        raise AssertionError(name)

    nobody = TrackingConfig(uri="http://127.0.0.1:1")
    wanted = Wanted(str(folder / "model"), register, "unet")
    outcome = read_done(nobody, str(folder), "run", TRAJECTORY, wanted)
    assert outcome is not None
    return dict(outcome.summary)


def test_no_flipped_bit_of_a_finished_run_makes_it_another(tmp_path: Path) -> None:
    write_done(str(tmp_path), TRAJECTORY, SUMMARY)
    path = tmp_path / "done.json"
    for data in flips(path.read_bytes()):
        path.write_bytes(data)
        with pytest.raises((CheckpointError, ConfigError)) as failed:
            done(tmp_path)
        assert "remove it, and the run goes on from its last checkpoint" in str(failed.value)
    path.write_text(json.dumps({"trajectory": TRAJECTORY, "summary": SUMMARY}))  # of before the seal
    assert done(tmp_path) == SUMMARY | {"already_done": True}


def test_no_flipped_bit_of_a_cell_changes_a_study(tmp_path: Path) -> None:
    finished, url = cell(), str(tmp_path / "cell.json")
    data = (json.dumps(sealed(finished.model_dump(mode="json")), indent=1) + "\n").encode()
    for changed in flips(data):
        files.write(url, changed)
        found = value_or_refusal(lambda: read_cell(url), CorruptError)
        if isinstance(found, CorruptError):
            assert str(found).startswith(f"{url} ")
            assert "remove it, and the study takes it from its run again" in str(found)
        else:
            assert found == finished
    files.write(url, json.dumps(finished.model_dump(mode="json"), indent=1).encode())  # of before the seal
    assert read_cell(url) == finished
