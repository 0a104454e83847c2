"""The quality report of a dataset, beside its manifest; written anew only when what it shows has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hssl_dist import files
from hssl_dist.records import Region, content_hash
from hssl_dist.store import open_reader
from hssl_dist.store.layout import dataset_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hssl_dist.records import CaseRecord, Manifest, Quarantined
    from hssl_dist.store import Reader

_PICTURED_CASES = 12
_REPORT_VERSION = 1  # raised when the page changes, so that old pages are replaced


def report_url(root: str, dataset: str) -> str:
    """Where a dataset's report is."""
    return files.join(dataset_url(root, dataset), "report.html")


def write_report(
    root: str, manifest: Manifest, quarantined: Sequence[Quarantined], warnings: Sequence[str]
) -> None:
    """Write the dataset's report, unless the one that is there was made from the same."""
    shown = {
        "manifest": manifest.sha256,
        "quarantine": [item.model_dump(mode="json") for item in quarantined],
        "warnings": list(warnings),
        "version": _REPORT_VERSION,
    }
    mark = f"\n<!-- made from {content_hash(shown)} -->\n".encode()
    url = report_url(root, manifest.dataset)
    if files.exists(url) and files.read(url).endswith(mark):
        return
    from hssl_dist.report.quality import QualityData, quality_report  # matplotlib takes its time

    picture = _montage(open_reader(root), manifest.cases) if manifest.cases else None
    page = quality_report(QualityData(manifest.header, manifest.cases, quarantined, picture, warnings))
    files.write(url, page.encode() + mark)


def _montage(reader: Reader, records: Sequence[CaseRecord]) -> bytes:
    """Pictures of slices with contours, of cases spread over the dataset, annotated ones if there are."""
    from hssl_dist.report.montage import fullest_slice, montage

    candidates = [record for record in records if record.labelled] or records
    count = min(len(candidates), _PICTURED_CASES)
    tiles, spacings_mm = [], []
    for record in (candidates[number * len(candidates) // count] for number in range(count)):
        label = reader.label(record) if record.labelled else None
        depth, height, width = record.shape
        index = fullest_slice(label, depth)
        region = Region(record.dataset, record.id, 0, (index, 0, 0), (1, height, width))
        image = reader.region(record, region)[0]
        tiles.append((record.id, image, label[index] if label is not None else None))
        spacings_mm.append((record.geometry.spacing_mm[1], record.geometry.spacing_mm[2]))
    return montage(tiles, spacing_mm=spacings_mm)
