"""Reports made of hostile names, in a real browser: nothing runs, nothing is fetched, nothing hides."""

from __future__ import annotations

import dataclasses
import math
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from hssl_dist.config.evaluate import IntervalConfig
from hssl_dist.jobs.study_context import StudyContext
from hssl_dist.jobs.study_report import study_page
from hssl_dist.records import Quarantined
from hssl_dist.report.demo import Arm, DatasetRow, DemoData, Stage, demo_report
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
from hssl_dist.report.montage import montage
from hssl_dist.report.page import visible
from hssl_dist.report.quality import QualityData, quality_report
from hssl_dist.report.study import Cases, EmbeddingMap
from hssl_dist.segmentation.study import Questions, summarise_study
from hssl_dist.segmentation.study_cells import SCRATCH_ARM
from tests import browser, case_records
from tests.study_cells import simulated

EVIL = (
    "\"'>--></title></style></svg></script><script>window.ran='script'</script>"
    "<img src=http://127.0.0.1:9/img onerror=\"window.ran='image'\">"
    "<svg onload=\"window.ran='svg'\"><style>@import url(http://127.0.0.1:9/css)</style></svg>"
    '<iframe srcdoc="<script>parent.ran=1</script>"></iframe><base href=http://127.0.0.1:9/>'
    "{{ 7 * 7 }} $x_{ javascript:alert(1) \x00\x1b[31m\u2028\u202egnp.\u2066\u202c"
)
PNG = montage([("", [[0.0, 1.0], [1.0, 0.0]], None)])
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def poisoned(value: Any) -> Any:
    """The value with the payload behind every text in it, the keys of mappings included."""
    if isinstance(value, str):
        return value + EVIL
    if isinstance(value, Mapping):
        return {poisoned(key): poisoned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(poisoned, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value)(
            **{part.name: poisoned(getattr(value, part.name)) for part in dataclasses.fields(value)}
        )
    if isinstance(value, BaseModel):
        return type(value).model_construct(**{key: poisoned(item) for key, item in value})
    return value


def quality() -> str:
    cases = [case_records.record("a"), case_records.record("b", labelled=False, voxels={})]
    quarantined = [Quarantined(id="c", patient="p", key="k", reason="empty", sources=("c.nii.gz",))]
    header = case_records.header(recipe={"note": "text"})
    return quality_report(poisoned(QualityData(header, cases, quarantined, PNG, ["a warning"])))


def evaluation() -> str:
    values = [Value(0.9, 0.85, 0.951), Value(-0.0314, -0.1, 0.02)]
    tables = [
        SetTable(name, [ScoreRow("LV", 3, values, values)], [OutcomeRow("LV", 3, 7, 1, 2, 0)])
        for name in "xy"
    ]
    cells = [DifferenceCell(Value(0.02, 0.01, 0.03), 5, 1, 0, 0.0004)] * 2
    data = EvaluationData(
        title="Evaluation",
        facts=[("cases", "10")],
        warnings=["look"],
        classes={3: "LV"},
        columns=[Column("Dice", 3), Column("Volume, %", 1, signed=True, percent=True)],
        tables=tables,
        charts=[Chart("Dice", "Dice", {"LV": {"x": [(0.5, False), (0.0, True)], "y": [(0.4, False)]}}, 1.0)],
        comparisons=[ComparisonTable("x", "y", [("LV", 3, cells)], 2)],
        worst=[WorstRow("x", "case_9", "p4", 0.25, "LV missed")],
        pictures={"x": [Picture(PNG, "Best")]},
        confidence=0.95,
        notes=[("HD95", "by hand")],
        lineage=[("model", "models:/m/1")],
    )
    return evaluation_report(poisoned(data))


def demo() -> str:
    arm = Arm(
        "arm", "start", "model", "run", [(0, 1.5), (10, 0.7)], [(10, 0.6)], {"LV": [0.8, math.nan]}, PNG
    )
    data = DemoData(
        stages=[Stage("preprocess", "10 stored", 61.25)],
        datasets=[DatasetRow("heart", "folder", "heart", "heart-mr", 10, 5, 10, "quality.html")],
        losses={"image": [(0, 3.0), (9, 1.25)]},
        accuracies={"task": [(0, 0.5), (9, 1.0)]},
        arms=[arm],
        dataset="heart",
        classes={1: "LV"},
        training_patients=4,
        labelled_patients=2,
        test_patients=1,
        test_cases=3,
        workers=2,
        lineage=[("manifest heart", "ab" * 32)],
    )
    return demo_report(poisoned(data))


def study() -> str:
    cells = simulated({"multi": 0.04}, tasks=("acdc",), fractions=(0.05, 1.0), subsets=2, seeds=1)
    hostile = [
        cell.model_copy(
            update={
                "arm": cell.arm if cell.arm == SCRATCH_ARM else poisoned(cell.arm),
                "task": poisoned(cell.task),
                "cases": poisoned(cell.cases),
            }
        )
        for cell in cells
    ]
    few = IntervalConfig(resamples=1000)
    questions = Questions(poisoned("multi"))
    points = {"hippocampus": [(0.0, 1.0), (1.0, 2.0)], "acdc": [(3.0, 1.0)]}
    pictures = [[Picture(PNG, "Best"), Picture(PNG, "Worst")]]
    context = StudyContext(
        title=poisoned("Label efficiency"),
        questions=questions,
        config_hash="ab" * 32,
        intervals=few,
        titles=poisoned({"multi": "HSSL"}),
        lineage=poisoned({"code_version": "0.1.0"}),
        selection=poisoned([("reporting split", "looked at once")]),
        cases=[dataclasses.replace(poisoned(Cases("acdc", "One run.", {1: "RV"}, pictures)))],
        embeddings=[poisoned(EmbeddingMap("HSSL", points, (0.5, 0.25), 5, 0.9, 0.6))],
        health=poisoned({"HSSL": {"loss_image": [(0, 3.0), (10, 2.0)]}}),
        warnings=poisoned(["something to know"]),
    )
    return study_page(summarise_study(hostile, questions, few), context)


PAGES = {"quality": quality, "evaluation": evaluation, "demo": demo, "study": study}


@pytest.mark.parametrize("name", PAGES)
def test_hostile_names_are_shown_and_nothing_of_them_runs(
    chromium: browser.Browser, name: str, tmp_path: Path
) -> None:
    text = PAGES[name]()
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    page = chromium.open(path.as_uri())
    assert page.evaluate("window.ran") is None
    assert page.requests() == [path.as_uri()]
    assert page.complaints() == []
    shown = page.evaluate("document.body.textContent")
    assert shown.count("<script>window.ran='script'</script>") >= 8
    # Of what a name could smuggle in, nothing is there as an element or an attribute.
    assert page.evaluate("document.querySelectorAll('script, iframe, base, object, embed, link').length") == 0
    handlers = (
        "[...document.querySelectorAll('*')].filter(one => [...one.attributes].some(a => /^on/.test(a.name)))"
    )
    assert page.evaluate(f"{handlers}.length") == 0
    assert page.evaluate("[...document.images].every(image => image.src.startsWith('data:image/png'))")
    assert page.evaluate("[...document.links].every(link => link.protocol === 'file:')")
    assert "{{ 7 * 7 }}" in shown
    assert not HIDDEN.search(shown)


@pytest.mark.parametrize("name", PAGES)
def test_markup_that_slipped_through_could_neither_run_nor_fetch(
    chromium: browser.Browser, name: str, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        own = EVIL.replace(":9/", f":{server.getsockname()[1]}/")
        path.write_text(PAGES[name]().replace("<main>", f"<main>{own}", 1), encoding="utf-8")
        page = chromium.open(path.as_uri())
        assert page.evaluate("document.querySelectorAll('main script').length") == 1
        assert page.evaluate("window.ran") is None
        # DevTools tell of what the page asked for, also where its policy did not let it out.
        assert any(url.startswith("http://127.0.0.1:") for url in page.requests())
        assert sum("Content Security Policy" in text for text in page.complaints()) >= 4
        with pytest.raises(BlockingIOError):
            server.accept()


def test_what_is_not_seen_is_shown_as_such() -> None:
    mark = "\N{REPLACEMENT CHARACTER}"
    assert visible("a\u202eb\x00c\u2028d\u2066") == f"a{mark}b{mark}c{mark}d{mark}"
    for text in ("Müller 患者\n\t", "\u0646\u0635\u200c\u0647\u0627", "-50\u00a0%"):
        assert visible(text) == text
