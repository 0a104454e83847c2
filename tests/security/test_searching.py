"""The search that other tests rely on finds a word wherever it can hide."""

from __future__ import annotations

import base64
import gzip
import io
import sqlite3
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from tests.security.searching import places

WORD = "CANARY7F3A"
PLAIN = f"before {WORD} behind".encode()


def zipped(data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("member", data)
    return stream.getvalue()


def tarred(data: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo("member")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def png(kind: bytes, body: bytes) -> bytes:
    pixels = zlib.compress(b"\0\0")
    chunks = [(kind, body), (b"IDAT", pixels), (b"IEND", b"")]
    parts = [len(data).to_bytes(4, "big") + name + data + bytes(4) for name, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def in_database(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "a.db")) as database:
        database.execute("create table a (b)")
        database.execute("insert into a values (?)", ("x" * 9000 + PLAIN.decode(),))
        database.commit()


def in_array(folder: Path) -> None:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/a/"}}
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip"}]
    metadata = {"shape": [len(PLAIN)], "data_type": "uint8", "codecs": codecs}
    array = ts.open(spec | {"metadata": metadata}, create=True).result()
    array.write(np.frombuffer(PLAIN, np.uint8)).result()
    assert not any(WORD.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def as_file(data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "a").write_bytes(data)


HIDING: dict[str, Callable[[Path], object]] = {
    "plain": as_file(PLAIN),
    "name": lambda folder: (folder / WORD).touch(),
    "folder": lambda folder: (folder / WORD).mkdir(),
    "utf-16": as_file(b"\xff\xfe" + PLAIN.decode().encode("utf-16-le")),
    "hex": as_file(PLAIN.hex().encode()),
    "gzip": as_file(gzip.compress(PLAIN)),
    "gzip in zip": as_file(zipped(gzip.compress(PLAIN))),
    "zip in tar": as_file(tarred(zipped(PLAIN))),
    "PNG in HTML": as_file(
        b'<img src="data:image/png;base64,' + base64.b64encode(png(b"tEXt", PLAIN)) + b'">'
    ),
    "packed text of a PNG": as_file(png(b"zTXt", b"key\0\0" + zlib.compress(PLAIN))),
    "database": in_database,
    "array": in_array,
    **{
        f"base64, shifted by {n}": as_file(b"{" + base64.b64encode(b"x" * n + PLAIN) + b"}") for n in range(3)
    },
}


@pytest.mark.parametrize("name", HIDING)
def test_a_hidden_word_is_found(tmp_path: Path, name: str) -> None:
    HIDING[name](tmp_path)
    assert places([WORD], tmp_path)
    assert places(["another", WORD], tmp_path)
    assert places(["XANADU7F3B"], tmp_path) == []
