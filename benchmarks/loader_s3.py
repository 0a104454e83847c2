"""The loader's benchmark from object storage: a real Swift server with an S3 interface, on loopback.

First epoch and what follows it, GETs and bytes counted at the server; and, in turns with them, the same
volumes from local disk, because a later epoch from S3 is to be as fast as that.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.loader_data import Prepared, draw_patches, generate, reference_digests
from benchmarks.loader_local import BATCH, Remote, summary, turned
from benchmarks.loader_process import run_arm
from tests.s3.server import S3Server

if TYPE_CHECKING:
    from hssl_dist.console import Console

ON_DISK = "ours, from local disk"
ARMS = ("ours", ON_DISK, "ours, no cache", "zarr-python")
_BUCKET = "benchmark"
_DEADLINE_S = 240.0

Figures = dict[str, Any]


def measure_s3(remote: Remote, rounds: int, warm_s: float, scratch: Path, console: Console) -> Figures:
    """Figures of volumes in a bucket. Raises RuntimeError if the server cannot be started."""
    console.say("S3: making the volumes, starting the server")
    local = generate(str(scratch / "s3-volumes"), remote.shape, remote.volumes)
    draws = draw_patches(local, remote.patch, BATCH, remote.patches)
    expected = reference_digests(local, draws)
    folder = scratch / "s3-server"
    folder.mkdir()
    outcomes: dict[str, list[Figures]] = {arm: [] for arm in ARMS}
    with S3Server(folder) as server:
        prepared = upload(server, local, _BUCKET)
        for number in range(rounds):
            for arm in turned(ARMS, number):
                console.say(f"S3: round {number + 1} of {rounds}, {arm}")
                folder = str(scratch / f"s3-{number}-{ARMS.index(arm)}")  # so the node's cache is empty
                reader, volumes = ("ours", local) if arm == ON_DISK else (arm, prepared)
                at = replace(volumes, folder=folder)
                outcomes[arm].append(run_arm(reader, at, draws, warm_s, _DEADLINE_S, server.environment))
    used_bytes = 2 * math.prod(remote.patch)
    volumes, patch = (" x ".join(map(str, shape)) for shape in (remote.shape, remote.patch))
    return {
        "scenario": f"S3, {remote.volumes} x ({volumes}), patch {patch}",
        "patch": remote.patch,
        "batch": BATCH,
        "patches": remote.patches,
        "arms": [_figures(arm, summary(outcomes[arm], expected), used_bytes) for arm in ARMS],
    }


def _figures(arm: str, figures: Figures, used_bytes: int) -> Figures:
    """With GETs per patch, and bytes fetched per byte used: the stored numbers of the delivered voxels."""
    for name in ("first", "steady"):
        window = figures[name]
        served = window["served"] or {"gets": 0, "bytes_sent": 0}  # nobody serves local disk
        window["gets_per_patch"] = served["gets"] / window["patches"]
        window["fetched_per_used"] = served["bytes_sent"] / window["patches"] / used_bytes
    return {"arm": arm, **figures}


def upload(server: S3Server, local: Prepared, bucket: str) -> Prepared:
    """Put a store into a new bucket; the same volumes with their store there."""
    client = server.client()
    client.create_bucket(Bucket=bucket)
    root = Path(local.store)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            client.put_object(Bucket=bucket, Key=f"store/{path.relative_to(root)}", Body=path.read_bytes())
    return replace(local, store=f"s3://{bucket}/store")
