"""A study's files: their numbers are the statistics', the page's are the table's, in a real browser."""

from __future__ import annotations

import csv
import io
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from hssl_dist.jobs.study_context import StudyContext
from hssl_dist.jobs.study_outputs import cells_csv, results_json, table_csv, write_outputs
from hssl_dist.jobs.study_report import study_page
from hssl_dist.report.evaluation import Picture, Value
from hssl_dist.report.montage import montage
from hssl_dist.report.study import Cases, EmbeddingMap
from hssl_dist.report.study_words import between, gain
from hssl_dist.segmentation.power import LEVELS
from hssl_dist.segmentation.study import Questions, StudyResults, summarise_study
from hssl_dist.segmentation.study_cells import StudyCell
from hssl_dist.segmentation.study_pairs import CellKey, key_of
from tests import browser
from tests.study_cells import FEW, QUESTIONS, cell, scored, simulated

MINUS = "\N{MINUS SIGN}"
GONE = CellKey("acdc", 0.05, "single", 3, 1)


def _context(**changes: Any) -> StudyContext:
    values: dict[str, Any] = {
        "title": "Label efficiency",
        "questions": QUESTIONS,
        "config_hash": "ab" * 32,
        "intervals": FEW,
        "titles": {"multi": "HSSL multi-domain", "single": "HSSL single-domain"},
        "arms": [("HSSL multi-domain", "pretrained on everything")],
        "lineage": {"code_version": "0.1.0", "manifests": {"acdc": "cd" * 32}},
    }
    return StudyContext(**(values | changes))


def _full_context() -> StudyContext:
    picture = Picture(montage([("", [[0.0, 1.0], [1.0, 0.0]], None)]), "Best: p1, HSSL, Dice 90.0")
    points = {"hippocampus": [(0.0, 1.0), (1.0, 2.0)], "acdc": [(3.0, 1.0)]}
    return _context(
        selection=[("reporting split", "looked at once")],
        cases=[Cases("acdc", "One run.", {1: "RV"}, [[picture, picture]])],
        embeddings=[EmbeddingMap("HSSL, seed 0", points, (0.5, 0.25), 5, 0.9, 0.6)],
        health={"HSSL, seed 0": {"loss_image": [(0, 3.0), (10, 2.0)], "unknown": [(0, 1.0)]}},
        warnings=["something to know"],
    )


@cache
def _cells() -> list[StudyCell]:
    return [one for one in simulated({"multi": 0.06, "single": 0.01}) if key_of(one) != GONE]


@cache
def _results() -> StudyResults:
    return summarise_study(_cells(), QUESTIONS, FEW)


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# ------------------------------------------------------------------------------------------------- the files


def test_every_case_and_class_of_a_cell_has_a_line() -> None:
    text = cells_csv([cell("multi", seed=1), cell(cases=(scored("a", "a", 0.5, None),))])
    rows = _rows(text)
    assert [(row["arm"], row["case"], row["class"], row["dice"]) for row in rows] == [
        ("multi", "a", "c0", "0.500000"),
        ("multi", "b1", "c0", "0.600000"),
        ("multi", "b2", "c0", "0.800000"),
        ("scratch", "a", "c0", "0.500000"),
        ("scratch", "a", "c1", ""),
    ]


def test_the_table_has_a_line_per_group_and_the_statistics_numbers() -> None:
    results = _results()
    rows = _rows(table_csv(results))
    assert len(rows) == len(results.rows) == 2 * 3 * 3
    for row, found in zip(rows, results.rows, strict=True):
        assert (row["task"], float(row["fraction"]), row["arm"]) == found.group
        assert float(row["dice"]) == pytest.approx(found.dice.value, abs=1e-6)
        if found.difference is None:
            assert [row[key] for key in ("difference", "low", "p_holm", "unpaired_runs")] == [""] * 4
            continue
        for key in ("low", "high"):
            assert float(row[key]) == pytest.approx(getattr(found.difference.estimate, key), abs=1e-6)
        assert int(row["unpaired_runs"]) == (1 if found.group == GONE.group else 0)


def test_the_same_cells_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    cells = simulated({"multi": 0.03}, tasks=("acdc",), fractions=(0.05, 1.0))
    for folder, some in (("a", cells), ("b", cells[::-1])):
        write_outputs(str(tmp_path / folder), some, _context())
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["cells.csv", "report.html", "results.json", "table.csv"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_json_has_settings_lineage_and_what_is_missing(tmp_path: Path) -> None:
    write_outputs(str(tmp_path), _cells(), _full_context())
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["config_hash"] == "ab" * 32
    assert found["lineage"]["manifests"] == {"acdc": "cd" * 32}
    assert found["missing"] == [{"task": "acdc", "fraction": 0.05, "arm": "single", "subset": 3, "seed": 1}]
    assert [entry["outcome"] for entry in found["primary"]] == ["above", "above"]
    assert found["rows"][1]["difference"]["unpaired_runs"] == [[3, 1]]
    assert found["rows"][1]["power"]["dropped"] == {"subset": 1, "seed": 0, "patient": 0}
    assert len(found["convergence"]) == 18


# -------------------------------------------------------------------------------------------------- in words


def _page(gain: float, **changes: Any) -> str:
    cells = simulated({"multi": gain}, tasks=("acdc",), fractions=(0.05, 0.1, 1.0))
    return study_page(summarise_study(cells, Questions("multi"), FEW), _context(**changes))


def test_a_gain_a_null_and_a_loss_are_said_plainly() -> None:
    gain, null, loss = _page(0.04), _page(0.0), _page(-0.04)
    assert "the gain of HSSL multi-domain over scratch lies above 0 on 1 of 1 task." in gain
    assert "<strong>gain shown</strong> With 5% of the labels, HSSL multi-domain is " in gain
    assert "all of it above 0." in gain
    assert "the gain of HSSL multi-domain over scratch lies above 0 on 0 of 1 task." in null
    assert "<strong>no gain shown</strong>" in null
    assert "which includes 0." in null
    assert "lies above 0 on 0 of 1 task, and below 0 on 1." in loss
    assert "<strong>worse</strong>" in loss
    assert "points below all labels</strong>" in null
    assert "<dt>HSSL multi-domain</dt><dd>pretrained on everything</dd>" in null
    assert "the last quarter of the steps gave scratch" in null


def test_of_several_differences_the_page_warns() -> None:
    one = simulated({"multi": 0.04}, tasks=("acdc",), fractions=(0.05,))
    alone = study_page(summarise_study(one, Questions("multi"), FEW), _context())
    assert "are tested in all" not in alone
    assert "3 differences are tested in all: the more, the likelier" in _page(0.04)


def test_the_patients_of_all_tasks_are_counted_not_those_of_the_largest() -> None:
    tasks: dict[str, set[str]] = {}
    for one in _cells():
        tasks.setdefault(one.task, set()).update(case.patient for case in one.cases)
    assert len(tasks) == 2
    patients = sum(map(len, tasks.values()))
    assert f"<dt>test patients</dt><dd>{patients}</dd>" in study_page(_results(), _context())


def test_of_several_tasks_the_primary_comparisons_are_adjusted() -> None:
    page = study_page(_results(), _context())
    assert page.count("Adjusted for 2 primary comparisons (Holm), it ") == 2
    assert "1 planned cell not there; pairs that need them are left out." in page
    assert "single on acdc, 5% of the labels, subset 3, seed 1" in page
    assert "left out 1 run without a partner (subset 3 seed 1)" in page
    assert (
        "acdc, 5% of the labels: means and curves are of the 9 runs that all arms have; left out of them: "
        "scratch subset 3 seed 1; HSSL multi-domain subset 3 seed 1"
    ) in page


def test_words_say_what_does_not_stand() -> None:
    found = Value(0.012, 0.001, 0.023)
    stands, falls = (gain("HSSL", "scratch", 0.05, found, p, 2, "95%") for p in (0.04, 0.06))
    assert (stands.label, falls.label) == ("gain shown", "gain shown, but not firmly")
    assert falls.text == (
        "With 5% of the labels, HSSL is 1.20 Dice points above scratch; 95% interval +0.10 to +2.30, "
        "all of it above 0. Adjusted for 2 primary comparisons (Holm), it does not stand at 5%: p = 0.06."
    )
    single = gain("HSSL", "scratch", 0.05, found, 0.2, 1, "95%")
    assert single.label == "gain shown, but not firmly"
    assert single.text.endswith(" By its t distribution, it does not stand at 5%: p = 0.20.")
    alone = gain("HSSL", "scratch", 0.125, Value(-0.3), math.nan, 1, "95%")
    assert (alone.label, alone.outcome) == ("not known", "unknown")
    assert "With 12.5% of the labels, HSSL is 30.00 Dice points below scratch; " in alone.text
    better = between("HSSL", "single", 0.05, found, 0.2, "95%")
    assert (better.label, better.text[-20:]) == ("better than single, but not firmly", "By itself, p = 0.20.")
    nothing = between("HSSL", "single", 0.05, Value(math.nan), math.nan, "95%")
    assert "HSSL and single have no pair of runs in common." in nothing.text


def test_what_is_absent_is_left_out_and_texts_are_escaped() -> None:
    page = _page(0.0)
    for heading in ("Best, median", "What the encoders", "Health of", "What was chosen", "What is missing"):
        assert heading not in page
    evil = "<script>alert(1)</script>"
    page = _page(0.0, title=evil, titles={"multi": evil}, lineage={evil: evil}, warnings=[evil])
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 10


def test_without_the_main_arm_nothing_is_claimed() -> None:
    results = summarise_study([cell()], Questions("multi"), FEW)
    assert "There is no run of the main arm beside scratch" in study_page(results, _context())


def test_arms_without_a_run_in_common_have_a_page_without_means() -> None:
    results = summarise_study([cell(seed=0), cell("multi", seed=1)], Questions("multi"), FEW)
    page = study_page(results, _context())
    assert "means and curves are of the 0 runs that all arms have" in page
    assert "no pair of runs in common" in page


def test_a_claim_without_its_cells_is_not_known_even_without_any_of_scratch() -> None:
    gone = "the gain of HSSL multi-domain over scratch lies above 0 on 0 of 1 task; on 1 it is not known."
    lone = study_page(summarise_study([cell("multi")], Questions("multi"), FEW), _context())
    assert gone in lone
    planned = [
        CellKey("heart", fraction, arm, 0, 0) for fraction in (0.05, 1.0) for arm in ("scratch", "multi")
    ]
    cells = [cell(), cell(fraction=1.0), cell("multi", fraction=1.0)]
    failed = study_page(summarise_study(cells, Questions("multi"), FEW, planned), _context())
    assert gone in failed
    assert "With 5% of the labels, HSSL multi-domain and scratch have no pair of runs in common." in failed


# ----------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(study_page(_results(), _full_context()), encoding="utf-8")
    return path.as_uri()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1000, 360])
def test_the_page_renders_without_complaint_in_both_themes_and_on_a_phone(
    chromium: browser.Browser, url: str, width: int, dark: bool
) -> None:
    page = chromium.open(url, width=width, dark=dark)
    assert page.complaints() == []
    assert page.requests() == [url]
    assert page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)") is None
    assert page.evaluate("document.documentElement.scrollWidth") == width
    too_wide = """[...document.querySelectorAll('main *')].filter(part => !part.closest('.scroll, svg')
        && part.getBoundingClientRect().right > innerWidth + 1).map(part => part.outerHTML.slice(0, 80))"""
    assert page.evaluate(too_wide) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    unnamed = "[...document.querySelectorAll('svg[role=img]')].filter(one => !one.ariaLabel).length"
    assert page.evaluate(unnamed) == 0
    assert page.evaluate("document.querySelectorAll('figure svg').length") > 10


def test_long_names_of_arms_leave_room_for_numbers(chromium: browser.Browser, tmp_path: Path) -> None:
    """The first share's on a phone, all columns on a desktop."""
    titles = {"multi": "Weighted multi-domain HSSL", "single": "Single-domain HSSL"}
    (tmp_path / "report.html").write_text(study_page(_results(), _context(titles=titles)), encoding="utf-8")
    page = chromium.open((tmp_path / "report.html").as_uri(), width=360)
    first_column = """[...document.querySelectorAll('section[aria-labelledby=table] > .scroll tbody tr')].map(
        row => row.cells[1].getBoundingClientRect().right)"""
    assert max(page.evaluate(first_column)) < 360
    page.resize(1000, 900)
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert page.evaluate("document.querySelector('#numbers').getBoundingClientRect().right") < 1000


def test_the_rendered_numbers_are_those_of_the_table(chromium: browser.Browser, url: str) -> None:
    page = chromium.open(url)
    script = """[...document.querySelectorAll('#numbers tbody tr')].map(row => [...row.cells].map(
        cell => [cell.innerText, ...[...cell.querySelectorAll('data')].map(one => one.value)]))"""
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    shown, rows = page.evaluate(script), _rows(table_csv(_results()))
    assert len(shown) == len(rows) == 18
    for cells, row in zip(shown, rows, strict=True):
        assert cells[0][0] == row["task"]
        assert cells[1][1:] == [row["fraction"]]
        assert [cells[place][0] for place in (4, 5, 6)] == [row["subsets"], row["seeds"], row["patients"]]
        assert cells[7][1:] == [row["dice"], row["dice_low"], row["dice_high"]]
        assert cells[7][0].split()[0] == f"{100 * float(row['dice']):.1f}"
        assert cells[8][1:] == [row["sd_runs"]]
        assert cells[9][1:] == [row[key] for key in ("difference", "low", "high") if row[key]]
        if row["difference"]:
            points = f"{100 * float(row['difference']):+.2f}".replace("-", MINUS)
            assert cells[9][0].split()[0] in (points, points[1:] if points[1:] == "0.00" else points)
        assert cells[10][1:] == [row["p"]] * bool(row["p"])
        assert cells[11][1:] == [row["p_holm"]] * bool(row["p_holm"])


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    return json.loads(results_json(_results(), _full_context()))


def _shown(page: browser.Page, section: str) -> list[list[list[str]]]:
    """The rows of a section's tables: of each cell its text, then the values of its numbers."""
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    rows: list[list[list[str]]] = page.evaluate(
        f"""[...document.querySelectorAll('section[aria-labelledby={section}] tbody tr')].map(row =>
        [...row.cells].map(cell =>
        [cell.innerText, ...[...cell.querySelectorAll('data')].map(one => one.value)]))"""
    )
    return rows


def _exact(*values: float | None) -> list[str]:
    return [f"{value:.6f}" for value in values if value is not None]


def _called(group: dict[str, Any]) -> tuple[str, str]:
    title = {"multi": "HSSL multi-domain", "single": "HSSL single-domain"}.get(group["arm"], group["arm"])
    return title, f"{100 * group['fraction']:g}%"


@pytest.mark.parametrize("section", ["pairs", "gaps"])
def test_the_rendered_differences_are_those_of_the_json(
    chromium: browser.Browser, url: str, written: dict[str, Any], section: str
) -> None:
    shown = {
        (task[0], first[0], other[0]): cells
        for task, first, other, *cells in _shown(chromium.open(url), section)
    }
    assert len(shown) == len(written[section]) > 5
    for found in written[section]:
        sides = (", ".join(_called(found[side])) for side in ("first", "other"))
        difference, pairs, *p = shown[found["first"]["task"], *sides]
        assert difference[1:] == _exact(found["value"], found["low"], found["high"])
        assert pairs == [" × ".join(map(str, found["sizes"]))]  # noqa: RUF001
        assert [cell[1:] for cell in p] == [_exact(found["p_holm"])] * (section == "pairs")


def test_the_rendered_convergence_is_that_of_the_json(
    chromium: browser.Browser, url: str, written: dict[str, Any]
) -> None:
    shown = {
        (task[0], share[0], arm[0]): cells
        for task, share, arm, *cells in _shown(chromium.open(url), "convergence")
    }
    assert len(shown) == len(written["convergence"]) == 18
    for found in written["convergence"]:
        title, share = _called(found)
        gain, converged, runs, best_step = shown[found["task"], share, title]
        assert gain[1:] == _exact(*(found["gain"][key] for key in ("value", "low", "high")))
        assert converged == [{True: "yes", False: "no"}[found["converged"]]]
        assert (runs, best_step[1:]) == ([str(found["runs"])], _exact(found["best_step"]))


def test_the_rendered_power_is_that_of_the_json(
    chromium: browser.Browser, url: str, written: dict[str, Any]
) -> None:
    shown = {
        (task[0], share[0], arm[0]): cells for task, share, arm, *cells in _shown(chromium.open(url), "power")
    }
    rows = [row for row in written["rows"] if row["power"] is not None]
    assert len(shown) == len(rows) == 12
    for row in rows:
        title, share = _called(row)
        pairs, error, power, *needed = shown[row["task"], share, title]
        found = row["power"]
        assert pairs == [" × ".join(str(found["sizes"][level]) for level in LEVELS)]  # noqa: RUF001
        assert (error[1:], power[1:]) == (_exact(found["standard_error"]), _exact(found["power"]))
        assert power[0].endswith("*") == bool(found["unseen"])
        texts = {level: str(found["needed"].get(level) or "no number") for level in LEVELS}
        assert needed == [["–" if level in found["unseen"] else texts[level]] for level in LEVELS]  # noqa: RUF001


def test_a_browser_hears_what_a_page_complains_of(chromium: browser.Browser, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text("<script>console.error('one'); fail()</script><img src='none.png'>")
    page = chromium.open(path.as_uri())
    assert len(page.complaints()) == 3
    assert page.requests() == [path.as_uri(), (tmp_path / "none.png").as_uri()]
    assert math.isclose(page.evaluate("1 / 3"), 1 / 3)
