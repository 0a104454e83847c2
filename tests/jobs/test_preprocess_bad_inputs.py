"""Bad input through the whole job: every bad case is in quarantine once, every healthy one is committed."""

from __future__ import annotations

import html
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from hssl_dist import files
from hssl_dist import preprocess as verb
from hssl_dist.config.preprocess import PreprocessConfig
from hssl_dist.console import Console
from hssl_dist.errors import TooManyFailuresError
from hssl_dist.jobs import preprocess
from hssl_dist.records import Outcome
from hssl_dist.store import read_manifest, read_quarantine, verify
from tests.bad_inputs import MAX_VOXELS, ROWS, Accepted, Quarantined, Warned
from tests.spoiling import HEALTHY, write_case, write_dataset

pytestmark = pytest.mark.usefixtures("ray_cluster")

LAYOUTS = ("folder", "nnunet", "msd")


def spoils(name: str) -> bool:
    """Whether the row can stand in one dataset with the others; root can read a file that nobody may."""
    kinds = (Quarantined, Accepted, Warned)
    return isinstance(ROWS[name].outcome, kinds) and not (name == "unreadable file" and os.geteuid() == 0)


def case_name(row: str) -> str:
    """A safe name for a row's case, unless the row is about names."""
    return "bad-" + "".join(char if char.isalnum() else "-" for char in row)


@dataclass(frozen=True)
class Done:
    """The job that has run over all rows."""

    folder: Path
    config: PreprocessConfig
    outcome: Outcome

    def again(self, **changes: object) -> Outcome:
        return preprocess.run(self.config.model_copy(update=changes), Console(io.StringIO()))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Done:
    """All rows that do not refuse the whole dataset, in one dataset per layout, preprocessed together."""
    folder = tmp_path_factory.mktemp("bad")
    datasets = {layout: write_dataset(folder / layout, layout) for layout in LAYOUTS}
    for name in filter(spoils, ROWS):
        layout = ROWS[name].layout
        ROWS[name].spoil(write_case(folder / layout, layout, case_name(name)))
    twin = datasets["msd"].model_copy(update={"name": "twin", "source": "twin"})
    config = PreprocessConfig(
        store={"url": str(folder / "store")},
        source_root=str(folder),
        datasets=(*datasets.values(), twin),
        max_failure_rate=1.0,
        max_voxels=MAX_VOXELS,
    )
    return Done(folder, config, preprocess.run(config, Console(io.StringIO())))


def snapshot(root: str) -> dict[str, tuple[int, bytes]]:
    return {url: (Path(url).stat().st_mtime_ns, files.read(url)) for url in files.walk(root)}


def quarantining(layout: str) -> dict[str, str]:
    """The reason of each case that has to be in quarantine, by its id."""
    return {
        case_name(name): row.outcome.reason
        for name, row in ROWS.items()
        if row.layout == layout and isinstance(row.outcome, Quarantined) and spoils(name)
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_bad_case_is_in_quarantine_once_with_its_reason_everywhere(done, layout):
    expected = quarantining(layout)
    summary = done.outcome.summary["datasets"][layout]
    told = {item["id"]: item["reason"] for item in summary["quarantined"]}
    assert len(told) == len(summary["quarantined"])
    assert set(told) == set(expected)
    records = read_quarantine(done.config.store.url, layout)
    page = html.unescape(files.read(summary["report"]).decode())
    for case, reason in expected.items():
        assert reason in told[case]
        assert records[case].reason == told[case]
        warnings = [text for text in done.outcome.warnings if f"{case} is in quarantine" in text]
        assert warnings == [f"{layout}: {case} is in quarantine: {told[case]}"]
        assert told[case] in page
    assert all("\n" not in warning for warning in done.outcome.warnings)


def test_every_other_case_is_committed_and_none_is_lost(done):
    for layout in LAYOUTS:
        rows = [name for name, row in ROWS.items() if row.layout == layout and spoils(name)]
        committed = {record.id for record in read_manifest(done.config.store.url, layout).cases}
        named = {row.outcome.case for row in map(ROWS.get, rows) if isinstance(row.outcome, Accepted)} - {
            "bad"
        }
        assert set(HEALTHY) | named <= committed
        assert len(committed) + len(quarantining(layout)) == len(HEALTHY) + len(rows)
        assert not committed & set(quarantining(layout))
        verify(done.config.store.url, layout)
    totals = done.outcome.summary["totals"]
    assert totals["quarantined"] == sum(len(quarantining(layout)) for layout in LAYOUTS)
    assert json.loads(json.dumps(done.outcome.summary)) == done.outcome.summary


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if isinstance(row.outcome, Warned)])
def test_what_should_be_known_is_warned_of_and_in_the_report(done, name):
    row = ROWS[name]
    # In a dataset of its own a row's case is called `bad`; here it has the row's name.
    text = row.outcome.text.replace("bad", case_name(name))
    [warning] = [line for line in done.outcome.warnings if line.startswith(f"{row.layout}: {text}")]
    page = html.unescape(files.read(done.outcome.summary["datasets"][row.layout]["report"]).decode())
    assert warning.removeprefix(f"{row.layout}: ") in page


def test_overlaps_are_in_the_summary_of_both_datasets(done):
    case = case_name("same patient in two datasets")
    datasets = done.outcome.summary["datasets"]
    assert {"dataset": "twin", "cases": [[case, "patient001"]]} in datasets["folder"]["overlaps"]
    assert {"dataset": "folder", "cases": [["patient001", case]]} in datasets["twin"]["overlaps"]


def test_a_second_run_rewrites_nothing(done):
    before = snapshot(done.config.store.url)
    outcome = done.again()
    assert snapshot(done.config.store.url) == before
    assert outcome.warnings == done.outcome.warnings
    assert outcome.summary["totals"] == {
        **done.outcome.summary["totals"],
        "written": 0,
        "unchanged": done.outcome.summary["totals"]["cases"],
    }


def test_the_exit_status_turns_right_at_the_rate(done, capsys):
    bad, cases = len(quarantining("folder")), done.outcome.summary["datasets"]["folder"]["cases"]
    rate = bad / (bad + cases)
    path = done.folder / "job.yaml"
    for limit, status in ((rate, 0), (rate - 1e-6, 1)):
        path.write_text(done.config.model_copy(update={"max_failure_rate": limit}).model_dump_json())
        assert verb.main(["--config", str(path), "--json"]) == status
        out, err = capsys.readouterr()
        assert json.loads(out)["status"] == ("failed" if status else "done")
        assert err.count("error: folder: ") == status
    with pytest.raises(TooManyFailuresError, match=f"folder: {bad} of {bad + cases} cases"):
        done.again(max_failure_rate=rate - 1e-6)


def test_a_mended_file_is_taken_up_and_its_case_leaves_quarantine(done):
    before = done.again().summary["datasets"]["folder"]
    mended = case_name("truncated gzip")
    write_case(done.folder / "folder", "folder", mended)
    after = done.again().summary["datasets"]["folder"]
    assert (after["written"], after["cases"]) == (1, before["cases"] + 1)
    assert {item["id"] for item in before["quarantined"]} - {item["id"] for item in after["quarantined"]} == {
        mended
    }
    assert mended not in read_quarantine(done.config.store.url, "folder")
    assert mended in {record.id for record in read_manifest(done.config.store.url, "folder").cases}
