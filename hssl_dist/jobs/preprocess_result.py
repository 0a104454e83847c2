"""What came of preprocessing: one result per dataset, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hssl_dist.errors import TooManyFailuresError
from hssl_dist.jobs.overlaps import Overlap, find_overlaps
from hssl_dist.jobs.preprocess_report import report_url
from hssl_dist.records import Manifest, Outcome, Quarantined

if TYPE_CHECKING:
    from hssl_dist.console import Console

_NAMED = 5


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one dataset; no manifest if none of its cases could ever be read.

    `unused` are files among its images and labels that belong to no case, `overlaps` the scans that another
    dataset, or another patient, has as well.
    """

    name: str
    cases: int
    manifest: Manifest | None
    written: int
    removed: tuple[str, ...]
    quarantined: tuple[Quarantined, ...]
    unused: tuple[str, ...] = ()
    overlaps: tuple[Overlap, ...] = ()

    @property
    def oddities(self) -> tuple[str, ...]:
        """One sentence each on what a person should look at, besides the quarantine."""
        sentences = [str(overlap) for overlap in self.overlaps]
        if self.unused:
            sentences.append(f"files that belong to no case: {_named(self.unused)}")
        return tuple(sentences)


def add_overlaps(results: Sequence[Result], root: str, console: Console) -> list[Result]:
    """The results with the scans each dataset shares with any of the store."""
    manifests = {result.name: result.manifest for result in results if result.manifest is not None}
    overlaps = find_overlaps(root, manifests, console)
    return [replace(result, overlaps=overlaps.get(result.name, ())) for result in results]


def check_failure_rates(results: Sequence[Result], most: float) -> None:
    """Raise TooManyFailuresError, naming each dataset with too many cases in quarantine, or no other case."""
    failed = []
    for result in results:
        count = len(result.quarantined)
        if result.manifest is None or count > most * result.cases:
            reasons = "; ".join(item.reason for item in result.quarantined[:3])
            reasons += f"; and {count - 3} more" if count > 3 else ""
            share = f"{count} of {result.cases} cases ({count / result.cases:.0%})"
            failed.append(f"{result.name}: {share} are in quarantine ({reasons})")
    if failed:
        raise TooManyFailuresError(
            f"{', '.join(failed)}; at most {most:.0%} may be; mend the files or raise max_failure_rate"
        )


def outcome(root: str, results: Sequence[Result]) -> Outcome:
    """The job's summary, its lines and its warnings."""
    datasets = {result.name: _summary(root, result) for result in results}
    totals = {
        key: sum(summary[key] for summary in datasets.values())
        for key in ("cases", "written", "unchanged", "bytes")
    }
    totals["quarantined"] = sum(len(result.quarantined) for result in results)
    lines, warnings = [], []
    for name, summary in datasets.items():
        lines.append(
            f"{name}: {summary['cases']} cases ({summary['written']} written, "
            f"{summary['unchanged']} unchanged), {len(summary['quarantined'])} in quarantine, "
            f"{summary['bytes'] / 1e6:.1f} MB, report {summary['report'] or 'none'}"
        )
    for result in results:
        warnings += [f"{result.name}: {text}" for text in _warnings(result)]
    return Outcome({"datasets": datasets, "totals": totals}, tuple(lines), warnings=tuple(warnings))


def _warnings(result: Result) -> list[str]:
    warnings = [f"{item.id} is in quarantine: {item.reason}" for item in result.quarantined]
    if result.removed:
        warnings.append(
            f"{len(result.removed)} cases are no longer in the source and left the manifest; "
            f"their objects stay: {', '.join(result.removed)}"
        )
    return [*warnings, *result.oddities]


def _summary(root: str, result: Result) -> dict[str, Any]:
    records = result.manifest.cases if result.manifest else ()
    return {
        "cases": len(records),
        "written": result.written,
        "unchanged": len(records) - result.written,
        "quarantined": [{"id": item.id, "reason": item.reason} for item in result.quarantined],
        "removed": list(result.removed),
        "unused": list(result.unused),
        "overlaps": [item.summary() for item in result.overlaps],
        "manifest_sha256": result.manifest.sha256 if result.manifest else None,
        "bytes": sum(item.size_bytes for record in records for item in record.objects),
        "report": report_url(root, result.name) if result.manifest else None,
    }


def _named(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
