"""Writing what a study keeps, with one line for what cannot be written."""

from __future__ import annotations

from contextlib import AbstractContextManager

from hssl_dist import files

_REMEDY = "what is done is kept: make room, mend its permissions or choose another place, and run it again"


def put(url: str, data: bytes) -> None:
    """Write a file whole; one that says so already is left as it is. Raises StorageError if it cannot be."""
    with writing(url):
        if not files.exists(url) or files.read(url) != data:
            files.write(url, data)


def writing(url: str) -> AbstractContextManager[None]:
    """Inside, what keeps `url` from being written is a StorageError that says so in one line."""
    return files.writing(url, _REMEDY)
