"""A process of little memory that reads damaged files: `fuzzing.py FORMAT SEED ROUNDS` tells what came of it.

Each round damages a healthy image's header, voxels or compressed stream, loads it as a case and, if it loads,
surveys and prepares it. Only InputError may come out of that, or a volume that is one. `fuzzing.py FORMAT
giants` reads small files whose headers declare gigabytes that are allowed.
"""

from __future__ import annotations

import functools
import gzip
import json
import re
import resource
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

from hssl_dist.errors import InputError
from hssl_dist.imaging import ChannelRecipe, Recipe, load_case, prepare, survey_case
from hssl_dist.imaging.source import read_source
from hssl_dist.records import Case, Volume

MEMORY_BYTES = 2 << 30
MAX_VOXELS = 1 << 20
HEADER_BYTES = 352
EXTREMES = (b"\x00", b"\xff", b"\x7f", b"\x80")
WORDS = (
    *(b"0", b"-1", b"1", b"2", b"3", b"4", b"1e400", b"1e-400", b"nan", b"inf", b"-5", b"1_0", b"0x7", b"x"),
    *(b"999999999999999999", b"4294967295", b"65536 65536", b"1 2 3", b"9" * 400, b"1e308", b"", b"(", b","),
    *(b"MET_FLOAT", b"MET_STRING", b"MET_UCHAR_ARRAY", b"double", b"block", b"none", b"vector", b"complex"),
    *(b"LOCAL", b"../a.raw", b"LIST", b"ascii", b"hex", b"bzip2", b"True", b"False", b"RAI", b"space", b"\n"),
)
RECIPE = Recipe(
    spacing_mm=(3.0, 1.5, 1.5), channels=(ChannelRecipe(rule="mr"),), classes={1: "box"}, storage={}
)


def flips(data: bytearray, rng: np.random.Generator, start: int = 0, stop: int | None = None) -> None:
    """Up to four bits of a stretch are others."""
    for place in rng.integers(start, stop or len(data), rng.integers(1, 5)):
        data[place] ^= 1 << int(rng.integers(8))


def extremes(data: bytearray, rng: np.random.Generator) -> None:
    """Up to eight bytes of the header are the extremes of some type."""
    place, size = int(rng.integers(HEADER_BYTES - 8)), int(rng.integers(1, 9))
    data[place : place + size] = EXTREMES[rng.integers(len(EXTREMES))] * size


def header_flips(data: bytearray, rng: np.random.Generator) -> None:
    """Bits of the header are others."""
    flips(data, rng, 0, HEADER_BYTES)


def truncation(data: bytearray, rng: np.random.Generator) -> None:
    """The end is missing."""
    del data[int(rng.integers(len(data))) :]


def insertion(data: bytearray, rng: np.random.Generator) -> None:
    """A few bytes too many somewhere."""
    place = int(rng.integers(len(data)))
    data[place:place] = rng.bytes(int(rng.integers(1, 64)))


DAMAGES: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    header_flips,
    header_flips,
    extremes,
    extremes,
    flips,
    truncation,
    insertion,
)


def renumbered(data: bytearray, rng: np.random.Generator) -> None:
    """A word or number of a header of text is another."""
    words = list(re.finditer(rb"[-\w.]+", data[: header_end(data)]))
    if not words:  # of a file that was cut to next to nothing
        return
    word = words[rng.integers(len(words))]
    data[word.start() : word.end()] = WORDS[rng.integers(len(WORDS))]


def header_end(data: bytes) -> int:
    """Where the header of an NRRD file or a MetaImage ends."""
    found = re.search(rb"\n\n|ElementDataFile = LOCAL\n", data)
    return found.end() if found else len(data)


def damaged_text(plain: bytes, rng: np.random.Generator) -> bytes:
    """An NRRD file or a MetaImage whose header or voxels are damaged, once or twice."""
    data = bytearray(plain)
    for _ in range(rng.integers(1, 3)):
        damage = int(rng.integers(6))
        if damage < 3:
            renumbered(data, rng)
        elif damage == 3:
            flips(data, rng, 0, header_end(data))
        else:
            (flips, truncation, insertion)[rng.integers(3)](data, rng)
        if not data:
            break
    return bytes(data)


def damaged(plain: bytes, rng: np.random.Generator) -> bytes:
    """A NIfTI file's bytes, damaged before or after compression."""
    data = bytearray(plain)
    if rng.random() < 0.6:
        DAMAGES[rng.integers(len(DAMAGES))](data, rng)
        return bytes(data) if rng.random() < 0.5 else gzip.compress(bytes(data), 1)
    data = bytearray(gzip.compress(plain, 1))
    (flips, truncation, insertion)[rng.integers(3)](data, rng)
    return bytes(data)


def read(case: Case) -> str:
    """What comes of a case: `accepted` or `refused`."""
    try:
        volume = load_case(case, {1: "box"}, MAX_VOXELS)
        check(volume)
        survey_case(case.id, volume)
        stored, _ = prepare(volume, RECIPE)
        check(stored)
    except InputError as error:
        if "\n" in str(error):
            raise AssertionError(f"several lines: {error!r}") from error
        return "refused"
    return "accepted"


def check(volume: Volume) -> None:
    """Raise AssertionError unless the volume is one."""
    sound = (
        bool(np.isfinite(volume.image).all())
        and volume.image.size <= 64 * MAX_VOXELS
        and volume.image.shape[1:] == volume.geometry.shape
        and all(0 < edge < 1e5 for edge in volume.spacing_mm)
    )
    if not sound:
        raise AssertionError(f"no volume: {volume.image.shape} {volume.geometry}")


def nifti() -> list[bytes]:
    """A healthy file of each kind."""
    voxels = np.random.default_rng(0).normal(200, 20, (12, 10, 8))
    kinds = [
        nibabel.Nifti1Image(voxels.astype(np.int16), np.diag([1.5, 1.5, 3.0, 1.0])),
        nibabel.Nifti2Image(voxels.astype(np.float32), np.diag([1.5, 1.5, 3.0, 1.0])),
    ]
    return [kind.to_bytes() for kind in kinds]


def by_itk(ending: str) -> list[bytes]:
    """A healthy file, raw and compressed."""
    import SimpleITK

    voxels = np.random.default_rng(0).normal(200, 20, (8, 10, 12)).astype(np.int16)
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing((1.5, 1.5, 3.0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"healthy{ending}")
        plains = []
        for compressed in (False, True):
            SimpleITK.WriteImage(image, str(path), compressed)
            plains.append(path.read_bytes())
    return plains


FORMATS: dict[str, tuple[Callable[[], list[bytes]], Callable[[bytes, np.random.Generator], bytes]]] = {
    ".nii.gz": (nifti, damaged),
    ".nrrd": (functools.partial(by_itk, ".nrrd"), damaged_text),
    ".mha": (functools.partial(by_itk, ".mha"), damaged_text),
}


def fuzz(ending: str, seed: int, rounds: int) -> Counter[str]:
    """Damage and read; how many were accepted, refused or worse."""
    healthy, damage = FORMATS[ending]
    plains = healthy()
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"fuzz{ending}")
        case = Case("fuzz", "fuzz", "fuzz", (str(path),), None, ("mr",))
        for number in range(rounds):
            rng = np.random.default_rng([seed, number])
            path.write_bytes(damage(plains[number % 2], rng))
            try:
                outcomes[read(case)] += 1
            except Exception as error:  # noqa: BLE001  (whatever it is, it has to be told)
                outcomes[f"round {number}: {type(error).__name__}: {error}"[:300]] += 1
    return outcomes


def giants(ending: str) -> Counter[str]:
    """Read small files that declare 8 GiB of voxels; how they are refused."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number, plain in enumerate(FORMATS[ending][0]()):
            path = Path(folder, f"{number}{ending}")
            path.write_bytes(enlarged(plain, ending, compressed=False))
            if ending == ".nii.gz":
                (Path(folder) / "zipped.nii.gz").write_bytes(
                    gzip.compress(enlarged(plain, ending, compressed=True))
                )
        for path in sorted(Path(folder).iterdir()):
            try:
                read_source(str(path), 1 << 30)
                outcomes["accepted"] += 1
            except InputError as error:
                outcomes["too few bytes" if " the 85899" in str(error) else str(error)] += 1
    return outcomes


def enlarged(plain: bytes, ending: str, *, compressed: bool) -> bytes:
    """The file with a header of 1024 x 1024 x 1024 voxels of eight bytes."""
    if ending != ".nii.gz":
        end = header_end(plain)
        text = re.sub(rb"12 10 8", b"1024 1024 1024", plain[:end])
        text = re.sub(rb"MET_SHORT|int16|short", b"MET_DOUBLE" if ending == ".mha" else b"double", text)
        return text + plain[end:]
    kind = nibabel.Nifti1Header if plain[:4] == b"\x5c\x01\0\0" else nibabel.Nifti2Header
    header = kind(plain[: kind.template_dtype.itemsize], check=False)
    header["dim"][1:4], header["datatype"], header["bitpix"] = 1024, 64, 64
    return header.binaryblock + plain[len(header.binaryblock) :]


def main(ending: str, what: str, rounds: str = "0") -> None:
    """Print what came of it, and this process's peak of memory."""
    warnings.simplefilter("error")
    if ending != ".nii.gz":
        import SimpleITK  # noqa: F401  (its own memory is none of the readers')
    before_bytes = peak_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    outcomes = giants(ending) if what == "giants" else fuzz(ending, int(what), int(rounds))
    sys.stdout.write(json.dumps({"outcomes": outcomes, "peak_bytes": peak_bytes() - before_bytes}))


def peak_bytes() -> int:
    """This process's own peak; `ru_maxrss` begins with that of the process it was forked from."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
