"""Predicting from a bucket into a bucket: the same bytes as on disk, and as resumable."""

from __future__ import annotations

import io
from pathlib import Path

from hssl_dist import files
from hssl_dist.config.predict import PredictConfig
from hssl_dist.console import Console
from hssl_dist.jobs import predict
from hssl_dist.records import Outcome
from tests.tiny_model import save_tiny_model, write_scan


def run(model: str, source: str, output: str) -> Outcome:
    config = PredictConfig(model=model, input=source, output=output, threads=1)
    return predict.run(config, Console(io.StringIO()))


def test_model_input_and_output_may_be_in_a_bucket(s3_bucket: str, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    for number, name in enumerate(("a", "b")):
        write_scan(tmp_path / f"scans/{name}.nii.gz", number)
    for path in files.walk(str(tmp_path)):
        files.write(files.join(s3_bucket, files.relative(path, str(tmp_path))), Path(path).read_bytes())
    run(model, str(tmp_path / "scans"), str(tmp_path / "out"))

    there = run(f"{s3_bucket}/model", f"{s3_bucket}/scans", f"{s3_bucket}/out")
    assert (there.summary["predicted"], there.summary["failed"]) == (2, [])
    assert files.listing(f"{s3_bucket}/out") == ["a.nii.gz", "b.nii.gz", "records"]
    for name in ("a.nii.gz", "b.nii.gz"):
        assert files.read(f"{s3_bucket}/out/{name}") == (tmp_path / "out" / name).read_bytes()
    again = run(f"{s3_bucket}/model", f"{s3_bucket}/scans/", f"{s3_bucket}/out/")
    assert (again.summary["predicted"], again.summary["skipped"]) == (0, 2)
    mixed = run(model, f"{s3_bucket}/scans/a.nii.gz", str(tmp_path / "out"))
    assert mixed.summary["skipped"] == 1
