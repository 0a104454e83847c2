"""The demo's report: means over cases, and a page that stands alone."""

from __future__ import annotations

import math
import re

import pytest

from hssl_dist.report.demo import Arm, DatasetRow, DemoData, Stage, demo_report


def _arm(name: str, **dice: list[float]) -> Arm:
    return Arm(
        name=name,
        start="models:/hssl-unet/1",
        model="models:/hssl-heart/1",
        run_id="f" * 32,
        loss=[(0, 1.5), (10, 0.7)],
        validation=[(10, 0.6)],
        dice=dice,
        pictures=b"\x89PNG",
    )


def _data(**changes: object) -> DemoData:
    values: dict[str, object] = {
        "stages": [Stage("preprocess", "10 stored", 61.25), Stage("pretrain", "9 steps", 8.0)],
        "datasets": [
            DatasetRow("heart", "folder", "heart", "heart-mr", 10, 5, 10, "store/heart/quality.html")
        ],
        "losses": {"image": [(0, 3.0), (9, 1.25)]},
        "accuracies": {"task": [(0, 0.5), (9, 1.0)]},
        "arms": [_arm("from the registry", LV=[0.8, math.nan, 0.9]), _arm("from scratch", LV=[0.25])],
        "dataset": "heart",
        "classes": {1: "LV"},
        "training_patients": 4,
        "labelled_patients": 2,
        "test_patients": 1,
        "test_cases": 3,
        "workers": 2,
        "lineage": [("manifest heart", "ab" * 32)],
    }
    return DemoData(**(values | changes))  # type: ignore[arg-type]


def test_means_leave_out_cases_without_the_class() -> None:
    arm = _arm("x", LV=[0.8, math.nan, 0.9], RV=[0.5], apex=[math.nan])
    assert arm.mean("LV") == pytest.approx(0.85)
    assert arm.mean("apex") is None
    assert arm.overall == pytest.approx((0.85 + 0.5) / 2)
    assert _arm("x", LV=[]).overall is None


def test_the_page_shows_its_facts_and_stands_alone() -> None:
    page = demo_report(_data())
    facts = dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", page))
    assert facts["mean Dice from the registry"] == "0.850"
    assert facts["labelled patients used"] == "2 of 4"
    assert facts["from start to end"] == "1 min 9 s"
    assert '<td class="n">0.850</td><td class="n">0.250</td>' in page
    assert "image ends at 1.25" in page
    assert "they say nothing about real scans" in page
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)([^"']*)""", page) == ["store/heart/quality.html"]
    assert "ab" * 32 in page


def test_texts_are_escaped() -> None:
    evil = "<img onerror=alert(1)>"
    page = demo_report(_data(dataset=evil, lineage=[(evil, evil)], stages=[Stage(evil, evil, 1.0)]))
    assert "<img onerror" not in page
