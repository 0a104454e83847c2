"""What a case is made of: its files' content, by hash. All decisions about what is to be done rest on it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hssl_dist import dicom, files
from hssl_dist.errors import InputError, StorageError
from hssl_dist.records import SourceFile, content_hash

if TYPE_CHECKING:
    from hssl_dist.console import Console
    from hssl_dist.records import Case

_PARALLEL = 8


@dataclass(frozen=True, slots=True)
class HashedCase:
    """A case and its source files. `content` identifies their bytes in their roles, whatever their names;
    `problem` is the reason if they could not be read.
    """

    case: Case
    sources: tuple[SourceFile, ...]
    content: str
    problem: str | None = None

    @property
    def id(self) -> str:
        """The case's id."""
        return self.case.id

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(source.size_bytes for source in self.sources)


def hash_cases(cases: Sequence[Case], source_url: str, console: Console) -> list[HashedCase]:
    """Hash the files of all cases, several at a time; paths are recorded relative to `source_url`."""
    for line in files.ignored(source_url):
        console.warn(line)
    hashed = []
    with (
        console.track(f"{cases[0].dataset}: hash the sources", len(cases)) as advance,
        ThreadPoolExecutor(_PARALLEL) as pool,
    ):
        for case in pool.map(lambda case: _hash_case(case, source_url), cases):
            hashed.append(case)
            advance(1)
    return hashed


def _hash_case(case: Case, source_url: str) -> HashedCase:
    urls = (*case.images, case.label) if case.label is not None else case.images
    sources: list[SourceFile] = []
    for url in urls:
        path = files.relative(url, source_url)
        try:
            sha256, size_bytes = _hash_series(url) if dicom.is_series(url) else files.sha256(url)
        except StorageError:
            raise
        except InputError as error:
            return _broken(case, sources, str(error))
        except OSError as error:
            reason = (
                "is missing"
                if isinstance(error, FileNotFoundError)
                else f"cannot be read: {error.strerror or error}"
            )
            return _broken(case, sources, f"{path}: {reason}")
        sources.append(SourceFile(path=path, size_bytes=size_bytes, sha256=sha256))
    hashes = [source.sha256 for source in sources]
    images = len(case.images)
    return HashedCase(
        case, tuple(sources), content_hash({"images": hashes[:images], "label": hashes[images:]})
    )


def _hash_series(url: str) -> tuple[str, int]:
    """One hash and size for all files of a DICOM series: of their bytes, whatever their names and order."""
    hashed = [files.sha256(path) for path, _ in dicom.series_files(url)]
    return content_hash(sorted(sha256 for sha256, _ in hashed)), sum(size for _, size in hashed)


def _broken(case: Case, sources: Sequence[SourceFile], problem: str) -> HashedCase:
    reason = " ".join(problem.splitlines())  # a name may have line breaks
    return HashedCase(case, tuple(sources), content_hash({"problem": problem}), reason)
