"""Looking for a word in everything that was written: raw, unpacked, decoded, in several spellings."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import re
import sqlite3
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import tensorstore as ts

_DEEPEST = 4
_DATA_URI = re.compile(rb"base64,([A-Za-z0-9+/=]{16,})")
_PNG = b"\x89PNG\r\n\x1a\n"


def spellings(word: str) -> tuple[bytes, ...]:
    """The word in the ways that files spell text."""
    plain = word.encode()
    whole = [base64.b64encode(b"\0" * shift + plain) for shift in range(3)]
    # Characters that depend on what stands before or behind the word are cut off.
    inner = (whole[0][:-4], whole[1][4:-4], whole[2][4:-4])
    return (plain, word.encode("utf-16-le"), word.encode("utf-16-be"), plain.hex().encode(), *inner)


def places(words: Iterable[str], *roots: Path) -> list[str]:
    """Where below the roots any of the words stands: in a name, or in whatever a file holds or unpacks to."""
    wanted = [spelling for word in words for spelling in spellings(word)]
    found, files = [], [path for root in roots for path in sorted(root.rglob("*"))]
    assert files, f"nothing to search in {roots}"
    for path in files:
        contents = [("its name", path.name.encode(errors="surrogateescape"))]
        if path.is_file() and not path.is_socket():
            contents += [("", path.read_bytes())]
            contents += [(what, data) for what, data in _decoded(path)]
        found += [
            f"{path}{f' ({what})' if what else ''}"
            for name, data in contents
            for what, part in _unpacked(name, data)
            if any(one in part for one in wanted)
        ]
    return sorted(set(found))


def _unpacked(name: str, data: bytes, depth: int = 0) -> Iterator[tuple[str, bytes]]:
    """The data, and what it unpacks to."""
    yield name, data
    if depth == _DEEPEST:
        return
    for what, inner in _members(data):
        yield from _unpacked(f"{name}/{what}".strip("/"), inner, depth + 1)


def _members(data: bytes) -> Iterator[tuple[str, bytes]]:
    with contextlib.suppress(OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError):
        if data.startswith(b"\x1f\x8b"):
            yield "gunzipped", gzip.decompress(data)
        elif data.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for member in archive.namelist():
                    yield member, archive.read(member)
        elif data.startswith(_PNG):
            yield from _png_chunks(data)
        elif data[257:262] == b"ustar":
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                for entry in archive:
                    stream = archive.extractfile(entry)
                    yield entry.name, stream.read() if stream else b""
    for place, match in enumerate(_DATA_URI.finditer(data)):
        with contextlib.suppress(ValueError):
            yield f"data URI {place}", base64.b64decode(match[1])


def _png_chunks(data: bytes) -> Iterator[tuple[str, bytes]]:
    place, pixels = len(_PNG), b""
    while place < len(data):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        body = data[place + 8 : place + 8 + size]
        pixels += body if kind == b"IDAT" else b""
        if kind in (b"zTXt", b"iTXt"):
            with contextlib.suppress(zlib.error):
                yield "PNG text", zlib.decompress(body.split(b"\0", 2)[-1])
        place += 12 + size
    yield "PNG pixels", zlib.decompress(pixels)


def _decoded(path: Path) -> Iterator[tuple[str, bytes]]:
    """What only a library can show: a database's rows, and the voxels of an array."""
    if path.suffix == ".db":
        with contextlib.closing(sqlite3.connect(path)) as database, contextlib.suppress(sqlite3.Error):
            yield "SQL", "\n".join(database.iterdump()).encode()
    if path.name == "zarr.json" and json.loads(path.read_text())["node_type"] == "array":
        place = {"driver": "file", "path": f"{path.parent}/"}
        array = ts.open({"driver": "zarr3", "kvstore": place}, open=True, read=True).result()
        yield "voxels", array.read().result().tobytes()
