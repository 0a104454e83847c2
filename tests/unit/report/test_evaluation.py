"""The evaluation's report: its numbers as written, its charts, and that texts never become markup."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from hssl_dist.report.evaluation import (
    Chart,
    Column,
    ComparisonTable,
    DifferenceCell,
    EvaluationData,
    OutcomeRow,
    Picture,
    ScoreRow,
    SetTable,
    Value,
    WorstRow,
    evaluation_report,
)
from hssl_dist.report.strips import strip_chart

NAN = math.nan
COLUMNS = [Column("Dice", 3), Column("Volume, %", 1, signed=True, percent=True)]


def _table(name: str) -> SetTable:
    values = [Value(0.9, 0.85, 0.951), Value(-0.0314, -0.1, 0.02)]
    rows = [ScoreRow("LV", 3, values, values), ScoreRow("all", None, [Value(NAN), Value(0.0)], values)]
    return SetTable(name, rows, [OutcomeRow("LV", 3, 7, 1, 2, 0)])


def _data(**changes: object) -> EvaluationData:
    values: dict[str, object] = {
        "title": "Evaluation: x",
        "facts": [("cases", "10")],
        "warnings": [],
        "classes": {3: "LV"},
        "columns": COLUMNS,
        "tables": [_table("x")],
        "charts": [Chart("Dice", "Dice", {"LV": {"x": [(0.5, False), (0.0, True)]}}, 1.0)],
        "comparisons": [],
        "worst": [WorstRow("x", "case_9", "case_9", 0.25, "LV missed")],
        "pictures": {},
        "confidence": 0.95,
        "notes": [("HD95", "by hand")],
        "lineage": [("model", "models:/m/1")],
    }
    return EvaluationData(**(values | changes))  # type: ignore[arg-type]


def test_numbers_intervals_and_missing_values_are_written_alike() -> None:
    page = evaluation_report(_data())
    assert '<td class="n">0.900<span class="interval">[0.850, 0.951]</span></td>' in page
    minus = "\N{MINUS SIGN}"
    assert f'{minus}3.1%<span class="interval">[{minus}10.0%, +2.0%]</span>' in page
    assert '<td class="n">\N{EN DASH}</td><td class="n">0.0%</td>' in page
    assert "95% bootstrap intervals" in page
    assert "Dice of every case: LV from 0 to 0.5." in page
    assert "Hollow: there was nothing to measure" in page
    assert "Compared" not in page
    assert "Best, median and worst case" not in page
    assert page == evaluation_report(_data())


def test_several_sets_are_told_apart_and_compared() -> None:
    cells = [
        DifferenceCell(Value(0.0213, 0.01, 0.03), 5, 1, 0, 0.0004),
        DifferenceCell(Value(NAN), 0, 6, 0, NAN),
    ]
    comparison = ComparisonTable("x", "y", [("LV", 3, cells)], 2)
    page = evaluation_report(_data(tables=[_table("x"), _table("y")], comparisons=[comparison]))
    assert "y minus x" in page
    assert '+0.021<span class="interval">[+0.010, +0.030]</span>' in page
    assert "5 : 1 : 0, p &lt; 0.001" in page
    assert "0 : 6 : 0, p \N{EN DASH}" in page
    assert "2 times a class has a score in one of both sets only" in page
    assert page.count('style="background: var(--series-2)"') == 2


def test_the_patient_column_stands_where_it_says_more_than_the_case() -> None:
    assert '<th scope="col">Patient</th>' not in evaluation_report(_data())
    worst = [WorstRow("x", "case_9", "p4", 0.25, "LV missed")]
    assert '<th scope="col">Patient</th>' in evaluation_report(_data(worst=worst))


def test_the_page_stands_alone_and_texts_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    page = evaluation_report(
        _data(
            title=evil,
            warnings=[evil],
            classes={3: evil},
            tables=[_table(evil), _table("y")],
            charts=[Chart("Dice", "Dice", {evil: {evil: [(0.5, False)], "y": []}})],
            worst=[WorstRow(evil, evil, "p", 0.5, evil)],
            pictures={evil: [Picture(b"\x89PNG", evil)]},
            lineage=[(evil, evil)],
        )
    )
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 8
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)


def test_strips_show_every_case_the_mean_and_hollow_dots_at_the_edge() -> None:
    dots = [(0.8, False), (0.9, False), (0.0, True)]
    (axes,) = strip_chart(
        {"LV": {"x": dots}, "RV": {"x": []}}, title="Dice", y_label="Dice", highest=1.0
    ).axes
    full, hollow = axes.get_lines()
    assert sorted(full.get_ydata()) == pytest.approx([0.8, 0.9])
    low, high = axes.get_ylim()
    assert low < hollow.get_ydata()[0] < np.mean([0.8, 0.9, 0.0])
    assert (hollow.get_markerfacecolor(), high > 0.9) == ("none", True)
    (line,) = axes.collections[0].get_segments()
    assert line[:, 1] == pytest.approx(np.mean([0.8, 0.9, 0.0]))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["LV", "RV"]


def test_of_many_cases_evenly_many_are_drawn_and_the_mean_is_of_all() -> None:
    dots = [(float(score), False) for score in range(5000)]
    (axes,) = strip_chart({"LV": {"x": dots}}, title="", y_label="mm").axes
    scores = axes.get_lines()[0].get_ydata()
    assert (len(scores), scores[0], scores[-1]) == (400, 0.0, 4999.0)
    assert axes.collections[0].get_segments()[0][0, 1] == pytest.approx(2499.5)


@pytest.mark.parametrize("dots", [[], [(0.5, False)], [(0.0, True)], [(-3.0, False), (3.0, False)]])
def test_strips_of_few_cases_have_a_range(dots: list[tuple[float, bool]]) -> None:
    (axes,) = strip_chart({"$x_{": {"a": dots}}, title="", y_label="mL").axes
    low, high = axes.get_ylim()
    assert all(low <= score <= high for score, _ in dots)
    assert low < high
