"""The quality report of one preprocessed dataset: what is in it, what was done to it, what looks odd."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hssl_dist.report.distributions import geometry_charts, intensity_charts
from hssl_dist.report.figures import inline_svg
from hssl_dist.report.montage import contour_colour
from hssl_dist.report.page import png_source, render
from hssl_dist.report.suspicions import suspicions

if TYPE_CHECKING:
    from markupsafe import Markup

    from hssl_dist.records import CaseRecord, ManifestHeader, Quarantined


@dataclass(frozen=True, slots=True)
class QualityData:
    """All a quality report shows; `montage` is a PNG of `montage.montage`, `warnings` are the job's own."""

    header: ManifestHeader
    records: Sequence[CaseRecord]
    quarantined: Sequence[Quarantined] = ()
    montage: bytes | None = None
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class over the labelled cases; volumes in millilitres over the cases that have it."""

    value: int
    name: str
    colour: str
    cases: int
    case_share: float
    voxel_share: float
    smallest_ml: float | None
    median_ml: float | None
    largest_ml: float | None


@dataclass(frozen=True, slots=True)
class SplitRow:
    """Cases and patients of one split of the challenge."""

    name: str
    cases: int
    labelled: int
    patients: int


@dataclass(frozen=True, slots=True)
class AxisRow:
    """Smallest, median and largest value of one axis over the cases, in the source and in the store."""

    quantity: str
    axis: str
    before: tuple[float, float, float]
    after: tuple[float, float, float]


def quality_report(data: QualityData) -> str:
    """The report as one self-contained HTML page; texts from the data are escaped."""
    records = data.records
    return render(
        "quality.html.j2",
        title=f"Data quality: {data.header.dataset}",
        header=data.header,
        facts=_facts(data),
        warnings=(*data.warnings, *suspicions(data.header, records)),
        montage=png_source(data.montage) if data.montage else None,
        classes=class_rows(data.header, records),
        splits=_split_rows(records),
        axes=_axis_rows(records) if records else (),
        geometry_charts=_geometry_figures(records) if records else (),
        intensity_charts=_intensity_figures(data.header, records) if records else (),
        quarantined=data.quarantined,
    )


def volume_ml(record: CaseRecord, value: int) -> float:
    """Volume of a class in the stored case, in millilitres."""
    depth, height, width = record.geometry.spacing_mm
    return record.voxels.get(str(value), 0) * depth * height * width / 1000.0


def class_rows(header: ManifestHeader, records: Sequence[CaseRecord]) -> list[ClassRow]:
    """One row per declared class, by value."""
    labelled = [record for record in records if record.labelled]
    voxels = sum(record.shape[0] * record.shape[1] * record.shape[2] for record in labelled)
    rows = []
    for value, name in sorted(header.classes.items()):
        volumes = [volume for record in labelled if (volume := volume_ml(record, value)) > 0]
        inside = sum(record.voxels.get(str(value), 0) for record in labelled)
        rows.append(
            ClassRow(
                value=value,
                name=name,
                colour=contour_colour(value),
                cases=len(volumes),
                case_share=len(volumes) / len(labelled) if labelled else 0.0,
                voxel_share=inside / voxels if voxels else 0.0,
                smallest_ml=min(volumes, default=None),
                median_ml=statistics.median(volumes) if volumes else None,
                largest_ml=max(volumes, default=None),
            )
        )
    return rows


def _facts(data: QualityData) -> list[tuple[str, str]]:
    records = data.records
    size_bytes = sum(item.size_bytes for record in records for item in record.objects)
    source_bytes = sum(item.size_bytes for record in records for item in record.sources)
    return [
        ("cases", f"{len(records)}"),
        ("patients", f"{len({record.patient for record in records})}"),
        ("labelled", f"{sum(record.labelled for record in records)}"),
        ("quarantined", f"{len(data.quarantined)}"),
        ("stored", _megabytes(size_bytes)),
        ("source files", _megabytes(source_bytes)),
    ]


def _megabytes(size_bytes: int) -> str:
    megabytes = size_bytes / 1e6
    return f"{megabytes / 1e3:.1f} GB" if megabytes >= 1e3 else f"{megabytes:.1f} MB"


def _split_rows(records: Sequence[CaseRecord]) -> list[SplitRow]:
    cases = Counter(record.split for record in records)
    return [
        SplitRow(
            name=split,
            cases=count,
            labelled=sum(record.labelled for record in records if record.split == split),
            patients=len({record.patient for record in records if record.split == split}),
        )
        for split, count in sorted(cases.items(), reverse=True)
    ]


def _axis_rows(records: Sequence[CaseRecord]) -> list[AxisRow]:
    def spread(values: Sequence[float]) -> tuple[float, float, float]:
        return min(values), statistics.median(values), max(values)

    geometries = [record.geometry for record in records]
    rows = []
    for index, axis in enumerate("zyx"):
        before = spread([float(geometry.oriented_shape[index]) for geometry in geometries])
        after = spread([float(geometry.shape[index]) for geometry in geometries])
        rows.append(AxisRow("size in voxels", axis, before, after))
    for index, axis in enumerate("zyx"):
        before = spread([geometry.oriented_spacing_mm[index] for geometry in geometries])
        after = spread([geometry.spacing_mm[index] for geometry in geometries])
        rows.append(AxisRow("spacing in mm", axis, before, after))
    return rows


def _geometry_figures(records: Sequence[CaseRecord]) -> list[Markup]:
    charts = geometry_charts([record.geometry for record in records])
    return [
        inline_svg(figure, f"Histogram over the cases: {title}, source and stored.")
        for title, figure in charts.items()
    ]


def _intensity_figures(header: ManifestHeader, records: Sequence[CaseRecord]) -> list[Markup]:
    figures = []
    for channel, modality in enumerate(header.channels):
        intensities = [record.intensities[channel] for record in records]
        name = modality.upper() if len(header.channels) == 1 else f"channel {channel} ({modality.upper()})"
        for title, figure in intensity_charts(name, intensities).items():
            figures.append(inline_svg(figure, f"Range and mean of the intensities, case by case: {title}."))
    return figures
