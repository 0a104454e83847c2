"""Text files of canonical JSON lines that end in a seal, so that a flipped bit or a cut end is an error.

The last line holds the number of lines above it and their SHA-256.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from pydantic import ValidationError

from hssl_dist.errors import CorruptError
from hssl_dist.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterable


class Seal(Record):
    """The last line of a sealed file."""

    lines: int
    sha256: str


def seal(records: Iterable[Record]) -> bytes:
    """The bytes of a sealed file of records, one a line."""
    lines = [f"{record.to_json()}\n" for record in records]
    text = "".join(lines).encode()
    last = Seal(lines=len(lines), sha256=hashlib.sha256(text).hexdigest())
    return text + f"{last.to_json()}\n".encode()


def unseal(url: str, data: bytes) -> list[bytes]:
    """The lines above the seal. Raises CorruptError, naming the file, if they are not those sealed."""
    *lines, last = data.splitlines(keepends=True) or [b""]
    try:
        recorded = Seal.model_validate_json(last)
    except ValidationError:
        raise CorruptError(f"{url} does not end in its seal; preprocess the dataset again") from None
    if recorded.sha256 != hashlib.sha256(b"".join(lines)).hexdigest() or recorded.lines != len(lines):
        raise CorruptError(f"{url} does not have the SHA-256 of its last line; preprocess the dataset again")
    return lines
