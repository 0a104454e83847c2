"""Every row of the table of bad input, from discovery to the loaded volume, without a cluster."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest

from hssl_dist import preprocess
from hssl_dist.config.preprocess import PreprocessConfig
from hssl_dist.console import Console
from hssl_dist.datasets import dataset_root, discover
from hssl_dist.errors import UsageError
from hssl_dist.imaging import load_case
from hssl_dist.jobs.preprocess_cases import Refused as RefusedCase
from hssl_dist.jobs.preprocess_cases import survey_cases
from hssl_dist.jobs.sources import hash_cases
from tests.bad_inputs import (
    MAX_VOXELS,
    ROWS,
    Accepted,
    Quarantined,
    Refused,
    Warned,
    write_row,
)
from tests.bad_inputs_table import table
from tests.spoiling import HEALTHY

REQUIRED = """
truncated gzip; gzip with a bad CRC; gzip with flipped bits; 1 MB of gzip that declares 1 GiB; 32767^3 header;
negative dims; zero dims; singular affine; NaN affine; NaN slope; NaN voxels; infinite voxels; constant image;
RGB; complex; 4D where 3D is due; label of another shape; label of another affine;
label with undeclared values; float labels; empty label; channel missing; duplicate case ids;
same patient in two datasets; unreadable JSON; path traversal in dataset.json; path traversal in an archive;
name with spaces;
name in unicode; zero cases
"""


def rows(kind: type) -> list[str]:
    return [name for name, row in ROWS.items() if isinstance(row.outcome, kind)]


def surveyed(folder: Path, name: str) -> dict:
    """What surveying, or hashing, makes of every case of a row's dataset: a survey or the reason."""
    config = write_row(folder, name)
    dataset = discover(config, str(folder))
    hashed = hash_cases(dataset.cases, dataset_root(config, str(folder)), Console(io.StringIO()))
    found = {case.id: case.problem for case in hashed if case.problem is not None}
    readable = [case.case for case in hashed if case.problem is None]
    for result in survey_cases(readable, dataset.classes, MAX_VOXELS):
        if isinstance(result, RefusedCase):
            found[result.case_id] = result.reason
        else:
            found[result.id] = result
    assert sorted(found) == [case.id for case in dataset.cases]
    return found


def needs_no_root(name: str) -> None:
    if name == "unreadable file" and os.geteuid() == 0:
        pytest.skip("root can read everything")


def test_every_required_kind_has_a_row():
    assert {name.strip().replace("\n", " ") for name in REQUIRED.split(";")} <= set(ROWS)


def test_the_documentation_shows_the_table():
    assert table() in Path(__file__).parents[3].joinpath("docs/data.md").read_text()


@pytest.mark.parametrize("name", rows(Quarantined))
def test_the_case_is_refused_with_its_reason_and_the_others_are_not(tmp_path, name):
    needs_no_root(name)
    found = surveyed(tmp_path, name)
    bad = found.pop("bad")
    assert ROWS[name].outcome.reason in bad
    assert "\n" not in bad
    assert set(found) == set(HEALTHY)
    assert not any(isinstance(survey, str) for survey in found.values())


@pytest.mark.parametrize("name", rows(Accepted))
def test_the_case_is_accepted(tmp_path, name):
    expected = ROWS[name].outcome
    config = write_row(tmp_path, name)
    dataset = discover(config, str(tmp_path))
    [case] = [case for case in dataset.cases if case.id not in HEALTHY]
    assert case.id == expected.case
    volume = load_case(case, dataset.classes, MAX_VOXELS)
    assert np.count_nonzero(volume.label) == expected.foreground
    assert np.isfinite(volume.image).all()


@pytest.mark.parametrize("name", rows(Refused))
def test_the_job_is_refused_before_anything_is_written(tmp_path, name, capsys):
    config = write_row(tmp_path, name)
    with pytest.raises(UsageError) as raised:
        discover(config, str(tmp_path))
    assert ROWS[name].outcome.line in str(raised.value)
    assert "\n" not in str(raised.value)

    job = PreprocessConfig(store={"url": f"{tmp_path}/store"}, source_root=str(tmp_path), datasets=(config,))
    (tmp_path / "job.yaml").write_text(job.model_dump_json())
    assert preprocess.main(["--config", str(tmp_path / "job.yaml"), "--json"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("hssl preprocess: error: ")
    assert ROWS[name].outcome.line in err
    assert err.count("\n") == 1
    assert out.count("\n") == 1
    assert '"status":"failed"' in out
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", rows(Warned))
def test_what_is_warned_of_is_stored(tmp_path, name):
    found = surveyed(tmp_path, name)
    assert set(found) == {"bad", *HEALTHY}
    assert not any(isinstance(survey, str) for survey in found.values())
