"""What it takes to start on a large store, and to draw from it: `python -m benchmarks.sampler --json`.

A store of 10,000 cases in four tasks is made up: every case has a commit record of its own, with 96 recorded
foreground voxels and six objects, and they share four real volumes. Fresh processes then start, open its
manifests, build the schedule and deliver the first batch of 64 regions of 24 x 72 x 72 voxels; the seconds
count from before the process existed. The memory is the growth of the anonymous resident memory
(`RssAnon`) by opening manifests of 100,000 cases, the schedule and 64 draws.
Results go to benchmarks/results/sampler.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "sampler.json"
TASKS = ("colon", "heart", "liver", "lung")
GLOBAL_BATCH = 64
_SHAPE = (32, 96, 96)
_DRAWS = 2000
_MARK = "case_000000"


# ---------------------------------------------------------------------------------------------------- a store


def write_store(root: Path, cases: int, *, volumes: bool) -> None:
    """A store of `cases` cases in four datasets, two cases to a patient; with `volumes`, their objects."""
    for number, task in enumerate(TASKS):
        _write_dataset(root, task, len(range(number, cases, len(TASKS))), volumes)


def _write_dataset(root: Path, task: str, cases: int, volumes: bool) -> None:
    from hssl_dist.store import write_manifest

    record, header = _write_case(root, task)
    folder = root / task
    manifest = write_manifest(str(root), header, [record])
    path = folder / "manifest.jsonl"
    head, line, _ = path.read_bytes().splitlines(keepends=True)
    digest = hashlib.sha256(head)
    with path.open("wb") as stream:
        stream.write(head)
        for case in range(cases):
            text = line.replace(_MARK.encode(), f"case_{case:06}".encode())
            text = text.replace(b"a patient", f"patient_{case // 2:06}".encode())
            digest.update(text)
            stream.write(text)
            if volumes and case:
                (folder / f"case_{case:06}.zarr").symlink_to(f"{_MARK}.zarr")
        seal = {"lines": cases + 1, "sha256": digest.hexdigest()}
        stream.write(f"{json.dumps(seal)}\n".encode())
    assert manifest.cases


def _write_case(root: Path, task: str) -> tuple[Any, Any]:
    """The volume that all cases of a task share, the record of its first case, and the manifest's header."""
    import numpy as np

    from hssl_dist.config.preprocess import StorageConfig
    from hssl_dist.records import (
        CaseRecord,
        Geometry,
        Intensity,
        ManifestHeader,
        SourceFile,
        Volume,
        content_hash,
    )
    from hssl_dist.store.writer import write_case

    rng = np.random.default_rng(TASKS.index(task))
    geometry = Geometry(
        original_shape=_SHAPE[::-1],
        original_affine=((-0.78, 0, 0, 180.1), (0, 0.78, 0, -90.2), (0, 0, 2.5, -512.25), (0, 0, 0, 1)),
        oriented_shape=_SHAPE,
        oriented_spacing_mm=(2.5, 0.78, 0.78),
        crop_start=(0, 0, 0),
        crop_stop=_SHAPE,
        shape=_SHAPE,
        spacing_mm=(2.5, 0.78, 0.78),
    )
    image = rng.normal(size=(1, *_SHAPE)).astype(np.float32)
    low, mean, high = float(image.min()), float(image.mean()), float(image.max())
    intensity = Intensity(
        minimum=low, maximum=high, mean=mean, std=float(image.std()), percentile_00_5=low,
        percentile_99_5=high, clip_low=low, clip_high=high, offset=mean, scale=1.0, background=low,
    )  # fmt: skip
    voxels = {name: tuple(sorted(map(tuple, rng.integers(_SHAPE, size=(32, 3)).tolist()))) for name in "123"}
    record = CaseRecord(
        id=_MARK, dataset=task, patient="a patient", task=task, group="abdomen-ct", split="train",
        labelled=True, modalities=("ct",), geometry=geometry, intensities=(intensity,), foreground=voxels,
        voxels={"0": 290_000, "1": 4000, "2": 800, "3": 100}, key=content_hash(task), objects=(),
        sources=tuple(
            SourceFile(path=f"{part}/{_MARK}.nii.gz", size_bytes=30_000_000, sha256=content_hash(part))
            for part in ("imagesTr", "labelsTr")
        ),
        fingerprints=(f"{_MARK}{content_hash(task)[11:]}",),
    )  # fmt: skip
    label = rng.integers(0, 4, size=_SHAPE).astype(np.uint8)
    volume = Volume(image, label, geometry.spacing_mm, ("ct",), geometry)
    classes = {1: "organ", 2: "tumour", 3: "vessel"}
    header = ManifestHeader(
        dataset=task, task=task, group="abdomen-ct", classes=classes, channels=("ct",),
        recipe={"version": 1}, recipe_hash=content_hash("recipe"), code_version="benchmark",
    )  # fmt: skip
    return write_case(str(root), record, volume, classes, StorageConfig()), header


# ----------------------------------------------------------------------------------------------- measurements


def probe(root: str, since_s: float, *, deliver: bool) -> dict[str, float]:
    """In a fresh process: seconds of each phase since `since_s` of the monotonic clock, memory, draws/s."""
    marks = {"interpreter_s": time.monotonic() - since_s}

    def mark(name: str) -> None:
        marks[name] = time.monotonic() - since_s - sum(marks.values())

    from hssl_dist.config.pretrain import SamplingConfig
    from hssl_dist.sampling import PretrainingLoader, Schedule
    from hssl_dist.store import open_reader, read_manifests

    reader = open_reader(root)
    mark("imports_s")
    before_mib, before_cpu_s = anonymous_mib(), time.process_time()
    manifests = read_manifests(root)
    mark("manifests_s")
    schedule = Schedule(manifests, SamplingConfig(), 0, GLOBAL_BATCH)
    mark("schedule_s")
    sampler_cpu_s = time.process_time() - before_cpu_s
    if deliver:
        (batch,) = PretrainingLoader(schedule, reader).batches(0, 1)
        assert bool(batch.regions.values().std() > 0)
        mark("first_batch_s")
    else:
        for index in range(GLOBAL_BATCH):
            schedule.draw(0, index)
    total = {"total_s": sum(marks.values()), "cpu_s": time.process_time(), "sampler_cpu_s": sampler_cpu_s}
    memory = {"memory_mib": anonymous_mib() - before_mib}
    start_s = time.process_time()
    for number in range(_DRAWS):
        schedule.draw(1 + number // GLOBAL_BATCH, number % GLOBAL_BATCH)
    return {**marks, **total, **memory, "draws_per_cpu_s": _DRAWS / (time.process_time() - start_s)}


def anonymous_mib() -> float:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "RssAnon":
            return int(value.split()[0]) / 1024
    raise KeyError("RssAnon")


def probe_in_new_process(root: Path, *, deliver: bool) -> dict[str, float]:
    """`probe` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.sampler", "--probe", str(root)]
    command += ["--since", repr(time.monotonic())] + (["--deliver"] if deliver else [])
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def measure(start_cases: int, memory_cases: int, rounds: int) -> dict[str, Any]:
    """All figures: medians of fresh processes, after one that is not counted."""
    from benchmarks.measuring import load_average, machine

    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder, "start"), start_cases, volumes=True)
        starts = [probe_in_new_process(Path(folder, "start"), deliver=True) for _ in range(1 + rounds)][1:]
        write_store(Path(folder, "memory"), memory_cases, volumes=False)
        large = [probe_in_new_process(Path(folder, "memory"), deliver=False) for _ in range(rounds)]
    return {
        "start": {"cases": start_cases, **_medians(starts)},
        "memory": {"cases": memory_cases, **_medians(large)},
        "rounds": rounds,
        "machine": machine(),
        "load_average": load_average(),
    }


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}


def table(result: dict[str, Any]) -> str:
    """The figures for people."""
    start, memory = result["start"], result["memory"]
    phases = ("interpreter_s", "imports_s", "manifests_s", "schedule_s", "first_batch_s")
    parts = ", ".join(f"{name.removesuffix('_s')} {start[name]:.2f}" for name in phases)
    return (
        f"start to first batch, {start['cases']:,} cases: {start['total_s']:.2f} s ({parts})\n"
        f"memory of manifests and schedule, {memory['cases']:,} cases: {memory['memory_mib']:.1f} MiB\n"
        f"draws per processor second: {start['draws_per_cpu_s']:.0f}"
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes of each kind")
    for name in ("--probe", "--since"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--deliver", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.probe:
        sys.stdout.write(json.dumps(probe(flags.probe, float(flags.since), deliver=flags.deliver)) + "\n")
        return
    result = measure(10_000, 100_000, flags.rounds)
    RESULTS.write_text(f"{json.dumps(result, indent=2)}\n")
    sys.stdout.write((json.dumps(result) if flags.json else table(result)) + "\n")


if __name__ == "__main__":
    main()
