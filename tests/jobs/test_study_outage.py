"""A study while the tracking server is down: what it says, what it keeps, and how it goes on."""

from __future__ import annotations

import io
from pathlib import Path

from hssl_dist.console import Console
from hssl_dist.jobs import study
from tests import tiny_study
from tests.mlflow_server import MlflowServer


def test_what_is_trained_without_a_server_is_not_trained_again_with_it(tmp_path: Path) -> None:
    tiny_study.write_store(tmp_path)
    server = MlflowServer(tmp_path / "server")
    config = tiny_study.config(tmp_path, tasks=tiny_study.BLOBS_ALONE, tracking=server.tracking)
    said = io.StringIO()
    outcome = study.run(config, Console(said))
    told = " ".join(said.getvalue().split())
    assert "the tracking server does not answer, and only a network that is registered is scored" in told
    assert (outcome.status, outcome.summary["cells"]) == ("failed", 0)
    reasons = {entry["name"]: entry["reason"] for entry in outcome.summary["failed"]}
    (pretrained,) = (name for name in reasons if name.startswith("tiny-r0-hssl-multi-"))
    for name in (pretrained, "blobs-f0.5-s0-r0-scratch"):
        assert (
            "is not registered, for the tracking server does not answer: the network is safe" in reasons[name]
        )
    assert reasons["blobs-f0.5-s0-r0-hssl-multi"] == f"its pretraining {pretrained} failed"
    weights = list(Path(config.runs).rglob("model/model.safetensors"))
    assert len(weights) == 2
    stamps = {path: path.stat().st_mtime_ns for path in weights}
    with server:
        outcome = study.run(config, Console(io.StringIO()))
    assert (outcome.status, outcome.summary["cells"], outcome.summary["failed"]) == ("done", 2, [])
    assert {path: path.stat().st_mtime_ns for path in weights} == stamps
