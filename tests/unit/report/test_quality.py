"""The quality report: its numbers, its warnings, and that nothing from a file becomes markup."""

from __future__ import annotations

import re

import pytest

from hssl_dist.records import Quarantined
from hssl_dist.report.distributions import geometry_charts, intensity_charts
from hssl_dist.report.page import number, percent, score
from hssl_dist.report.quality import QualityData, class_rows, quality_report, volume_ml
from hssl_dist.report.suspicions import suspicions
from tests import case_records as made


def test_volumes_are_voxels_times_stored_spacing() -> None:
    assert volume_ml(made.record(), 1) == pytest.approx(2.0)
    assert volume_ml(made.record(), 7) == 0.0


def test_class_rows_count_labelled_cases_only() -> None:
    cases = [
        made.record("a"),
        made.record("b", voxels={"0": 3500, "1": 500}),
        made.record("c", labelled=False, voxels={"any": 4000}),
    ]
    liver, tumour = class_rows(made.header(), cases)
    assert (liver.name, liver.cases, liver.case_share) == ("liver", 2, 1.0)
    assert (liver.smallest_ml, liver.median_ml, liver.largest_ml) == pytest.approx((1.0, 1.5, 2.0))
    assert liver.voxel_share == pytest.approx(1500 / 8000)
    assert (tumour.cases, tumour.case_share, tumour.median_ml) == (1, 0.5, pytest.approx(0.2))


def test_the_page_shows_its_facts_and_stands_alone() -> None:
    cases = [made.record("a"), made.record("b", split="test", labelled=False, voxels={})]
    page = quality_report(QualityData(made.header(), cases, montage=b"\x89PNG"))
    facts = dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", page))
    assert facts["cases"] == "2"
    assert facts["labelled"] == "1"
    assert facts["quarantined"] == "0"
    assert facts["stored"] == "2.0 MB"
    assert facts["source files"] == "6.0 MB"
    assert '<th scope="row">train</th><td class="n">1</td><td class="n">1</td>' in page
    assert page.count("<svg ") == 8
    assert page.count('role="img" aria-label=') == 8
    assert 'src="data:image/png;base64,iVBORw==" alt="Slices' in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "Quarantine" not in page
    assert page == quality_report(QualityData(made.header(), cases, montage=b"\x89PNG"))


def test_texts_of_files_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    quarantined = [Quarantined(id=evil, patient="p", key="k", reason=evil, sources=(evil,))]
    data = QualityData(
        made.header(classes={1: evil}, recipe={"note": evil}),
        [made.record(evil)],
        quarantined,
        warnings=[evil],
    )
    page = quality_report(data)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5


def test_a_dataset_whose_every_case_failed_has_a_report() -> None:
    quarantined = [Quarantined(id="a", patient="a", key="k", reason="the file is empty", sources=("a",))]
    page = quality_report(QualityData(made.header(), [], quarantined))
    assert "No case was stored." in page
    assert "the file is empty" in page


def test_a_clean_dataset_raises_no_suspicion() -> None:
    assert suspicions(made.header(), [made.record(case) for case in "abc"]) == []


@pytest.mark.parametrize(
    ("cases", "sentence"),
    [
        ([{"labelled": False}], "No case is labelled: the dataset serves pretraining only."),
        ([{"voxels": {"1": 9}}] * 3, "Class 2 (tumour) occurs in no labelled case."),
        (
            [{}] + [{"voxels": {"1": 1000}}] * 2,
            "Class 2 (tumour) occurs in only 1 of 3 labelled cases.",
        ),
        (
            [{"voxels": {"1": 10, "2": 100}}] + [{}] * 2,
            "Class 1 (liver) has less than 2% of its median number of voxels in case0.",
        ),
        ([{"voxels": {"0": 4000}}] + [{}] * 2, "The label is empty in case0."),
        (
            [{"geometry": {"oriented_spacing_mm": (5.0, 1.0, 1.0)}}] + [{}] * 2,
            "The spacing was changed more than 2-fold in case0.",
        ),
        (
            [{"geometry": {"spacing_mm": (8.0, 2.0, 2.0), "oriented_spacing_mm": (8.0, 2.0, 2.0)}}],
            "Stored voxels are 4.0 times as long along z as across it: use kernels and strides of 1 along "
            "that axis in the first stages.",
        ),
        (
            [{"geometry": {"shape": (2, 20, 20)}}] * 7,
            "A side is shorter than 4 voxels in case0, case1, case2, case3, case4 and 2 more: patches are "
            "mostly padding.",
        ),
        (
            [{"fingerprints": ("a", "b", "a")}, {"fingerprints": ("a", "b")}, {}],
            "Two channels are the same image in case0.",
        ),
    ],
)
def test_suspicions(cases: list[dict], sentence: str) -> None:
    records = [made.record(f"case{number}", **dict(changes)) for number, changes in enumerate(cases)]
    assert suspicions(made.header(), records) == [sentence]


def test_histograms_count_every_case_before_and_after() -> None:
    cases = [made.record(str(size), geometry={"oriented_shape": (size, 20, 20)}) for size in range(10, 20)]
    charts = geometry_charts([case.geometry for case in cases])
    assert list(charts) == [f"{what} {axis}, {unit}" for what, unit in (("size", "voxels"), ("spacing", "mm"))
                            for axis in "zyx"]  # fmt: skip
    bars = charts["size z, voxels"].axes[0].patches
    assert sum(bar.get_height() for bar in bars[:14]) == 10


def test_intensities_are_drawn_as_stored_after_clipping() -> None:
    charts = intensity_charts("CT", [made.record().intensities[0]])
    (source,) = charts["CT, source"].axes[0].collections[0].get_segments()
    (stored,) = charts["CT, stored"].axes[0].collections[0].get_segments()
    assert source[:, 1].tolist() == [-90.0, 240.0]
    assert stored[:, 1].tolist() == pytest.approx([-2.0, 200 / 60])


def test_of_many_cases_evenly_many_are_drawn() -> None:
    base = made.record().intensities[0]
    many = [base.model_copy(update={"mean": float(mean)}) for mean in range(1000)]
    line = intensity_charts("CT", many)["CT, source"].axes[0].get_lines()[0]
    means = line.get_ydata()
    assert len(means) == 160
    assert (means[0], means[-1]) == (0, 999)


def test_numbers_read_well() -> None:
    values = (0, 0.00012345, 0.216, 1.0, 112.4, 12345.6)
    assert [number(value) for value in values] == ["0", "0.000123", "0.216", "1", "112", "12,346"]
    assert number(None) == "\N{EN DASH}"
    assert [percent(share) for share in (0, 0.012, 0.5, 1.0)] == ["0%", "1.2%", "50%", "100%"]
    assert [score(value) for value in (None, 0.8)] == ["\N{EN DASH}", "0.800"]
