"""A whole run with real secrets: nothing that it writes or says holds one of them.

Real storage (Swift), a tracking server with a password, a Ray cluster with a token: all made up for the run.
Some commands fail on purpose: errors are where secrets like to show.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.mlflow_server import USER, MlflowServer
from tests.s3.server import S3Server
from tests.security.local_cluster import ON_LOOPBACK, LocalCluster, local_cluster, without_ray
from tests.security.searching import places
from tests.spoiling import write_case, write_dataset
from tests.tiny_network import NETWORK

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

VERB_TIMEOUT_S = 900
BUCKET = "private"
TRAINING = {"steps": 2, "patch_size": [4, 8, 8], "validate_every": 2, "log_every_steps": 1}
PRETRAINING = {
    "global_batch": 4,
    "sampling": {"patch_size": [4, 8, 8], "block_size": 2},
    "network": NETWORK.model_dump(mode="json"),
    "objective": {"projection_size": 8, "dense_points": 8, "dense_distance": 2.0},
    "encoder": {"steps": 2, "warmup_steps": 1},
    "decoder": {"steps": 2, "warmup_steps": 1},
    "checkpoint": {"every_steps": 1},
}
SECRETS = {
    name: f"CANARY{secrets.token_hex(13)}" for name in ("storage", "tracking", "wrong storage", "wrong")
}
TOKEN = secrets.token_hex(32)


@dataclass(frozen=True)
class Place:
    """Where everything is, and the verbs run there."""

    folder: Path
    storage: S3Server
    tracking: MlflowServer
    cluster: LocalCluster
    environment: Mapping[str, str]

    def hssl(
        self, verb: str, config: Mapping[str, Any], status: int = 0, **environment: str
    ) -> dict[str, Any]:
        """The JSON line of a verb that ends with this status; all it said is kept in `said`."""
        number = len(list((self.folder / "configs").iterdir()))
        path = self.folder / f"configs/{number}.yaml"
        path.write_text(json.dumps(config))
        done = subprocess.run(
            [sys.executable, "-m", f"hssl_dist.{verb}", "--config", str(path), "--json"],
            cwd=self.folder / "out",
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=VERB_TIMEOUT_S,
            check=False,
        )
        (self.folder / f"said/{number}-{verb}").write_text(done.stdout + done.stderr)
        assert done.returncode == status, done.stderr
        summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return summary

    def fetch_bucket(self) -> None:
        """All objects of the bucket as files, to be searched."""
        client = self.storage.client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            for item in page["Contents"]:
                path = self.folder / "bucket" / item["Key"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    for name in ("configs", "said", "out", "home", "cache"):
        (tmp_path / name).mkdir()
    with (
        S3Server(tmp_path / "swift", SECRETS["storage"]) as storage,
        MlflowServer(tmp_path / "mlflow", SECRETS["tracking"]) as tracking,
    ):
        storage.client().create_bucket(Bucket=BUCKET)
        variables = {
            **storage.environment,
            **tracking.environment,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }
        (tmp_path / "ray").mkdir()
        with local_cluster(tmp_path / "ray", variables, cpus=2) as cluster:
            own = {"HOME": str(tmp_path / "home"), "RAY_ADDRESS": cluster.gcs, **ON_LOOPBACK}
            environment = {**without_ray(), **variables, **own, "PYTHONPATH": os.pathsep.join(sys.path)}
            yield Place(tmp_path, storage, tracking, cluster, environment)


def write_source(folder: Path) -> dict[str, Any]:
    """Eleven cases, one of them damaged."""
    config = write_dataset(folder / "boxes", "folder")
    for number in range(8):
        case = write_case(folder / "boxes", "folder", f"case-{number}")
    case.image.write_bytes(case.image.read_bytes()[:-40])
    return config.model_dump(mode="json")


def run_all(place: Place) -> None:
    """Every verb once, and failures of storage, tracking and input between them."""
    bucket, url = f"s3://{BUCKET}", place.tracking.url
    with_password = url.replace("//", f"//{USER}:{SECRETS['tracking']}@")
    stored = {
        "store": {"url": f"{bucket}/store"},
        "source_root": str(place.folder / "source"),
        "datasets": [write_source(place.folder / "source")],
        "max_failure_rate": 0.5,
    }
    assert place.hssl("preprocess", stored)["totals"]["quarantined"] == 1
    place.hssl("preprocess", stored | {"store": {"url": "s3://nowhere/store"}}, status=2)
    place.hssl("preprocess", stored, status=2, AWS_SECRET_ACCESS_KEY=SECRETS["wrong storage"])

    common = {"store": stored["store"], "runs": f"{bucket}/runs", "tracking": {"uri": url}}
    place.hssl("pretrain", common | PRETRAINING | {"name": "pre", "runner": "ray"})
    tuned = {
        "name": "tuned",
        "dataset": "boxes",
        "model": "models:/hssl-unet@latest",
        "split": {"test": 0.25, "validation": 0.25},
        "training": TRAINING,
        "threads": 1,
    }
    place.hssl("finetune", common | tuned, status=1, MLFLOW_TRACKING_PASSWORD=SECRETS["wrong"])
    wrong = {"uri": url.replace("//", f"//{USER}:{SECRETS['wrong']}@")}
    logged_out = {"MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": ""}
    place.hssl("finetune", common | tuned | {"tracking": wrong}, status=1, **logged_out)
    place.hssl("finetune", common | tuned | {"tracking": {"uri": with_password}}, **logged_out)

    place.hssl("finetune", common | tuned | {"name": "tuned-on-ray", "runner": "ray"})

    model = {"model": "models:/hssl-boxes@latest", "tracking": {"uri": with_password}, "threads": 1}
    scored = {"output": str(place.folder / "out/scores"), "runs": common["runs"]}
    place.hssl("evaluate", model | {"store": stored["store"]} | scored)
    images = {"input": str(place.folder / "source/boxes/images"), "output": f"{bucket}/predictions"}
    assert place.hssl("predict", model | images, status=1)["failed"]
    place.hssl("export", model | {"to": "monai", "output": str(place.folder / "out/bundle")})
    place.hssl("promote", {"model": "hssl-boxes", "alias": "best", "tracking": {"uri": with_password}})
    study = {
        "name": "tiny",
        "tasks": [{"dataset": "boxes", "training": TRAINING}],
        "arms": ["scratch", "hssl-multi"],
        "fractions": [0.5],
        "subsets": 1,
        "seeds": [0],
        "split": tuned["split"],
        "pretrain": PRETRAINING,
        "output": str(place.folder / "out/study"),
        "tracking": {"uri": with_password},
    }
    place.hssl("study", {key: common[key] for key in ("store", "runs")} | study)
    place.hssl("sync", {"runs": [common["runs"]], "tracking": {"uri": with_password}})


def test_no_secret_is_written_or_said(place: Place) -> None:
    run_all(place)
    place.fetch_bucket()
    roots = [place.folder / name for name in ("said", "out", "home", "cache", "bucket", "mlflow")]
    for root in (*roots, place.cluster.session, place.cluster.home, place.cluster.said):
        assert places([*SECRETS.values(), TOKEN], root) == [] if any(root.rglob("*")) else True
    assert SECRETS["tracking"] not in place.tracking.log.read_text()
    for pattern in (
        *(
            "bucket/store/boxes/manifest.jsonl",
            "bucket/runs/pre/**/*.safetensors",
            "bucket/predictions/*.nii.gz",
        ),
        *(
            "out/scores/**/*.html",
            "out/study/**/report.html",
            "out/bundle/configs/*.json",
            "mlflow/server.db",
        ),
    ):
        assert list(place.folder.glob(pattern)), pattern
    assert list(place.cluster.session.rglob("*.log"))
