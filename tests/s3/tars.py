"""Archives for the tests: honest ones as challenges publish them, and hostile ones."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

Entry = tuple[str, bytes] | tarfile.TarInfo


def tar(entries: Iterable[Entry], *, compression: str = "", layout: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive of files `(name, bytes)`, and of members given as they are."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}", format=layout) as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
            else:
                member = tarfile.TarInfo(entry[0])
                member.size = len(entry[1])
                archive.addfile(member, io.BytesIO(entry[1]))
    return buffer.getvalue()


def member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    """A member without data."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE, data: bytes = b"") -> bytes:
    """A member's header that declares `size`, and data that need not be as long."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    block = info.tobuf(tarfile.GNU_FORMAT)
    return block + data + bytes(-len(data) % tarfile.BLOCKSIZE)


END = bytes(2 * tarfile.BLOCKSIZE)


def folder_tar(folder: Path, path: Path, *, hidden: bool = False, compression: str = "") -> None:
    """An archive of a folder as the Decathlon publishes it, on request with macOS's `._` files."""
    with tarfile.open(path, f"w:{compression}") as archive:
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder.parent)
            if hidden and file.is_file():
                info = tarfile.TarInfo(str(name.parent / f"._{name.name}"))
                info.size = 4
                archive.addfile(info, io.BytesIO(b"\0\5\26\7"))
            archive.add(file, str(name), recursive=False)
