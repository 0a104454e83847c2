"""A process of little memory that reads damaged files: `fuzzing.py SEED ROUNDS` prints what came of them.

Each round damages a healthy image's header, voxels or gzip stream, loads it as a case and, if it loads,
surveys and prepares it. Only InputError may come out of that, or a volume that is one.
"""

from __future__ import annotations

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
from hssl_dist.records import Case, Volume

MEMORY_BYTES = 2 << 30
MAX_VOXELS = 1 << 20
HEADER_BYTES = 352
EXTREMES = (b"\x00", b"\xff", b"\x7f", b"\x80")
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


def damaged(plain: bytes, rng: np.random.Generator) -> bytes:
    """The file's bytes, damaged before or after compression."""
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


def main(seed: int, rounds: int) -> None:
    """Damage and read, and print how many were accepted, refused or worse."""
    warnings.simplefilter("error")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    voxels = np.random.default_rng(0).normal(200, 20, (12, 10, 8))
    kinds = [
        nibabel.Nifti1Image(voxels.astype(np.int16), np.diag([1.5, 1.5, 3.0, 1.0])),
        nibabel.Nifti2Image(voxels.astype(np.float32), np.diag([1.5, 1.5, 3.0, 1.0])),
    ]
    plains = [kind.to_bytes() for kind in kinds]
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fuzz.nii.gz")
        case = Case("fuzz", "fuzz", "fuzz", (str(path),), None, ("mr",))
        for number in range(rounds):
            rng = np.random.default_rng([seed, number])
            path.write_bytes(damaged(plains[number % 2], rng))
            try:
                outcomes[read(case)] += 1
            except Exception as error:  # noqa: BLE001  (whatever it is, it has to be told)
                outcomes[f"round {number}: {type(error).__name__}: {error}"[:300]] += 1
    sys.stdout.write(json.dumps({"outcomes": outcomes, "peak_bytes": peak_bytes()}))


def peak_bytes() -> int:
    """This process's own peak; `ru_maxrss` begins with that of the process it was forked from."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
