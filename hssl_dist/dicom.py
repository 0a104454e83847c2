"""What may be known of a DICOM file, and which files are one series. No voxel is read here.

Tags name the patient, the day, the place: of a file only those in `_ALLOWED` are looked at, and every other
value is stepped over unread. A series travels as a URL: its folder with a slash at the end, and, where the
folder may hold several, the hash of the one that is meant: `s3://bucket/p1/s1/#0f3a5c7e9b1d2f48`.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from hssl_dist import files
from hssl_dist.errors import InputError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable

_SERIES_URL = re.compile(r"(?P<folder>.*)/(?:#(?P<series>[0-9a-f]{16}))?", re.DOTALL)
_ALLOWED = {
    0x0002_0002: "media_class",
    0x0002_0010: "transfer_syntax",
    0x0008_0060: "modality",
    0x0020_000E: "series",
    0x0020_0032: "position",
    0x0020_0037: "orientation",
    0x0028_0002: "samples",
    0x0028_0004: "photometric",
    0x0028_0008: "frames",
    0x0028_0010: "rows",
    0x0028_0011: "columns",
    0x0028_0030: "spacing",
    0x0028_0100: "bits_allocated",
    0x0028_0101: "bits_stored",
    0x0028_0103: "signed",
    0x0028_1052: "intercept",
    0x0028_1053: "slope",
}
_TWO_BYTES = ("samples", "rows", "columns", "bits_allocated", "bits_stored", "signed")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,2})?")
_LARGEST = 1e12
"""No place or size of a scan is beyond it, and its square is finite."""
_PIXELS = range(0x7FE0_0008, 0x7FE0_0011)
_LAST_TAG = 0x7FE0_0010
_DIRECTORY = "1.2.840.10008.1.3.10"
DEFLATED = "1.2.840.10008.1.2.1.99"
_IMPLICIT, _BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
_LONG_FORMS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFE_E000, 0xFFFE_E00D, 0xFFFE_E0DD
_UNDEFINED = 0xFFFF_FFFF
_MAX_DEPTH = 32
_MAX_HEADER_BYTES = 1 << 26
_BLOCK_BYTES = 1 << 16
_PARALLEL = 8


@dataclass(frozen=True, slots=True)
class DicomHeader:
    """What is allowed to be known of one DICOM file. `series` is the hash of its SeriesInstanceUID.

    `values` are texts of tags by the names in `_ALLOWED`; `pixels` is where their data begins and ends in the
    file (bytes), the end being None if they are compressed; None altogether for a file without an image.
    """

    series: str
    values: dict[str, str]
    pixels: tuple[int, int | None] | None

    def whole(self, name: str, default: int = 0) -> int:
        """A tag as a whole number; `default` if it is missing or no number."""
        text = self.values.get(name, "")
        return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else default

    def numbers(self, name: str, count: int) -> tuple[float, ...] | None:
        """A tag of `count` numbers, none beyond 1e12; None if it is anything else."""
        parts = self.values.get(name, "").split("\\")
        if len(parts) != count or not all(_NUMBER.fullmatch(part.strip()) for part in parts):
            return None
        values = tuple(float(part) for part in parts)
        return values if max(map(abs, values)) <= _LARGEST else None


def series_url(folder: str, series: str | None = None) -> str:
    """The URL of the series with that hash in a folder; of the only one there without a hash."""
    return f"{folder.rstrip('/')}/" + (f"#{series}" if series else "")


def is_series(url: str) -> bool:
    """Whether a URL is that of a DICOM series."""
    return _SERIES_URL.fullmatch(url) is not None


def series_name(url: str) -> str:
    """The name of a series for messages: its folder's."""
    return posixpath.basename(url.rpartition("/")[0])


def series_files(url: str) -> list[tuple[str, DicomHeader]]:
    """URLs and headers of the images of a series, sorted by URL.

    Raises InputError if a DICOM file of the folder is damaged (it might be one of them), if there is none,
    or if the URL does not say which of several is meant.
    """
    match = _SERIES_URL.fullmatch(url)
    assert match is not None
    folder, wanted = match["folder"], match["series"]
    inside = [path for path in files.walk(f"{folder}/") if posixpath.dirname(path) == folder]
    images = []
    for path, header in headers(inside):
        if isinstance(header, InputError):
            raise header
        if header is not None and header.pixels:
            images.append((path, header))
    found = sorted({header.series for _, header in images})
    if wanted is None and len(found) > 1:
        raise InputError(
            f"{series_name(url)}: {len(found)} DICOM series in one folder; a case is one: give each a folder"
        )
    series = [(path, header) for path, header in images if wanted in (None, header.series)]
    if not series:
        raise InputError(f"{series_name(url)}: the folder holds no DICOM images of the case")
    return series


def headers(urls: Iterable[str]) -> list[tuple[str, DicomHeader | InputError | None]]:
    """Each URL, but for hidden files, with its header, or why it has none; None for other files than DICOM.

    Several are read at a time.
    """
    with ThreadPoolExecutor(_PARALLEL) as pool:
        visible = [url for url in urls if not posixpath.basename(url).startswith(".")]
        return list(zip(visible, pool.map(_header_or_error, visible), strict=True))


def _header_or_error(url: str) -> DicomHeader | InputError | None:
    try:
        return read_header(url)
    except InputError as error:
        return error
    except StorageError:
        raise
    except OSError as error:
        return InputError(f"{posixpath.basename(url)}: cannot be read: {error.strerror or error}")


def read_header(url: str) -> DicomHeader | None:
    """The header of a file; None if it is no DICOM file, or a DICOMDIR. Raises InputError if it is damaged.

    A file is taken for DICOM by its mark (`DICM` at byte 128), or by the ending `.dcm`.
    """
    name = posixpath.basename(url)
    with files.open_read(url) as stream:
        source = _Source(stream)
        try:
            if source.take(132)[128:] != b"DICM":
                raise _DamagedError
            found = _Parsed()
            _parse(source, found)
            if "rows" in found.values and found.pixels is None:
                raise _DamagedError
        except _DamagedError:
            if source.is_dicom or name.lower().endswith(".dcm"):
                raise InputError(f"{name}: not a DICOM file, damaged or truncated") from None
            return None
    if found.values.get("media_class") == _DIRECTORY:
        return None
    uid = found.values.pop("series", "")
    if not uid:
        raise InputError(f"{name}: the DICOM file does not say which series it is of")
    return DicomHeader(hashlib.sha256(uid.encode()).hexdigest()[:16], found.values, found.pixels)


class _DamagedError(Exception):
    """The bytes end early, or make no sense."""


@dataclass(slots=True)
class _Parsed:
    values: dict[str, str] = field(default_factory=dict)
    pixels: tuple[int, int | None] | None = None


class _Source:
    """Bytes from a stream, read as they are needed."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream: IO[bytes] | None = stream
        self._data = b""
        self.position = 0

    @property
    def is_dicom(self) -> bool:
        return self._data[128:132] == b"DICM"

    def take(self, size: int) -> bytes:
        """The next bytes."""
        self.skip(size)
        return self._data[self.position - size : self.position]

    def peek(self, size: int) -> bytes:
        """The next bytes, which stay; fewer at the end."""
        self._fill(self.position + size)
        return self._data[self.position : self.position + size]

    def skip(self, size: int) -> None:
        """Step over the next bytes."""
        self._fill(self.position + size)
        if self.position + size > len(self._data):
            raise _DamagedError
        self.position += size

    def inflate(self) -> None:
        """Replace all that follows by what it holds, deflated."""
        while self._stream is not None:
            self._fill(min(len(self._data) + 1, _MAX_HEADER_BYTES))
        rest = self._data[self.position :]
        whole = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            plain = whole.decompress(rest, _MAX_HEADER_BYTES)
        except zlib.error:
            raise _DamagedError from None
        if not whole.eof:
            raise _DamagedError
        self._data, self._stream = self._data[: self.position] + plain, None

    def _fill(self, end: int) -> None:
        if end > _MAX_HEADER_BYTES:
            raise _DamagedError
        while self._stream is not None and len(self._data) < end:
            more = self._stream.read(max(_BLOCK_BYTES, end - len(self._data)))
            if not more:
                self._stream = None
            self._data += more


@dataclass(frozen=True, slots=True)
class _Coding:
    """How elements are written."""

    explicit: bool
    order: str


def _parse(source: _Source, found: _Parsed) -> None:
    meta = _Coding(explicit=True, order="<")
    while source.peek(2) == b"\2\0":
        _element(source, meta, found, depth=0)
    syntax = found.values.get("transfer_syntax", _IMPLICIT)
    if syntax == DEFLATED:
        source.inflate()
    coding = _Coding(syntax != _IMPLICIT, ">" if syntax == _BIG_ENDIAN else "<")
    while found.pixels is None and source.peek(1):
        if _element(source, coding, found, depth=0) > _LAST_TAG:
            return


def _element(source: _Source, coding: _Coding, found: _Parsed | None, depth: int) -> int:
    """Step over one element, noting its value if that is allowed; returns its tag."""
    tag, form, size = _start(source, coding)
    if found is not None and tag in _PIXELS:
        end = None if size == _UNDEFINED else source.position + size
        found.pixels = (source.position, end)
    elif size == _UNDEFINED:
        # A sequence whose form is unknown to its writer is always written without forms.
        inner = _Coding(False, "<") if form == b"UN" else coding
        _skip_sequence(source, inner, depth + 1)
    elif found is not None and tag in _ALLOWED:
        found.values[_ALLOWED[tag]] = _text(source.take(size), tag, coding.order)
    else:
        source.skip(size)
    return tag


def _start(source: _Source, coding: _Coding) -> tuple[int, bytes, int]:
    """Tag, form (VR) and size of an element or item."""
    group, number = struct.unpack(coding.order + "HH", source.take(4))
    tag = group << 16 | number
    form = b""
    if coding.explicit and group != 0xFFFE:
        form = source.take(2)
        if not form.isalpha():
            raise _DamagedError
        if form not in _LONG_FORMS:
            return tag, form, struct.unpack(coding.order + "H", source.take(2))[0]
        source.skip(2)
    return tag, form, struct.unpack(coding.order + "I", source.take(4))[0]


def _skip_sequence(source: _Source, coding: _Coding, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise _DamagedError
    while True:
        tag, _, size = _start(source, coding)
        if tag == _SEQUENCE_END:
            return
        if tag != _ITEM:
            raise _DamagedError
        if size != _UNDEFINED:
            source.skip(size)
            continue
        while struct.unpack(coding.order + "HH", source.peek(4).ljust(4)) != (0xFFFE, 0xE00D):
            _element(source, coding, None, depth)
        source.skip(8)


def _text(data: bytes, tag: int, order: str) -> str:
    """A value as text: the numbers of group 28 that are written as two bytes, and what is text anyway."""
    if tag >> 16 == 0x0028 and len(data) == 2 and _ALLOWED[tag] in _TWO_BYTES:
        return str(struct.unpack(order + "H", data)[0])
    return _CONTROL.sub(" ", data.decode("ascii", "replace")).strip()
