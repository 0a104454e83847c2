"""Text files of canonical JSON lines that end in a seal, so that a flipped bit or a cut end is an error.

The last line holds the number of lines above it and their SHA-256.
"""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING

from pydantic import ValidationError

from hssl_dist.errors import CorruptError
from hssl_dist.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from hashlib import _Hash as HASH


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


def sealed_lines(url: str, stream: Iterable[bytes], digest: HASH) -> Iterator[bytes]:
    """The lines above the seal, one at a time; `digest` is that of the whole file afterwards.

    The seal is met last: what was yielded holds once the iteration has ended. Raises CorruptError then,
    naming the file, if the lines are not those sealed.
    """
    count, last = 0, b""
    for line in stream:
        if last:
            count += 1
            digest.update(last)
            yield last
        last = line
    try:
        recorded = Seal.model_validate_json(last)
    except ValidationError:
        raise CorruptError(f"{url} does not end in its seal; preprocess the dataset again") from None
    if recorded.sha256 != digest.hexdigest() or recorded.lines != count:
        raise CorruptError(f"{url} does not have the SHA-256 of its last line; preprocess the dataset again")
    digest.update(last)


def unseal(url: str, data: bytes) -> list[bytes]:
    """The lines above the seal. Raises CorruptError, naming the file, if they are not those sealed."""
    return list(sealed_lines(url, io.BytesIO(data), hashlib.sha256()))
