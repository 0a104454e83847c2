"""Pretraining on two Ray workers of which one alone meets an error that starting it again cannot mend."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from hssl_dist import files
from hssl_dist.config.parts import CacheConfig, StoreConfig
from hssl_dist.config.pretrain import PretrainConfig
from hssl_dist.sampling.loader import rank_slice
from hssl_dist.sampling.schedule import Schedule
from tests.drivers import Driver
from tests.faulty_proxy import Answer, FaultyProxy
from tests.s3.server import S3Server
from tests.tiny_pretraining import job_config, manifests, write_store

WORKERS = 2
END_S = 120.0
"""The other rank would wait for `collective_timeout_s`, ten minutes by its default."""


def case_of_one_rank(config: PretrainConfig) -> str:
    """A case `dataset/id` of which rank 1 reads a region for the first step, and rank 0 none."""
    schedule = Schedule(manifests(), config.sampling, config.seed, config.global_batch)
    drawn = []
    for rank in range(WORKERS):
        records = [schedule.draw(0, i).record for i in rank_slice(config.global_batch, rank, WORKERS)]
        drawn.append({f"{record.dataset}/{record.id}" for record in records})
    return min(drawn[1] - drawn[0])


def test_what_object_storage_refuses_to_one_rank_ends_all_at_once(
    s3_bucket: str, s3_environment: S3Server, tmp_path: Path
) -> None:
    write_store(s3_bucket)
    there = {"store": StoreConfig(url=s3_bucket), "cache": CacheConfig(max_bytes=0, chunk_bytes=0)}
    config = job_config(tmp_path, "refused", runner="ray", workers=WORKERS, **there)
    assert config.collective_timeout_s > 4 * END_S
    assert config.max_failures > 0
    (tmp_path / "refused.json").write_text(config.model_dump_json())
    command = [sys.executable, "-m", "hssl_dist.pretrain", "--config", str(tmp_path / "refused.json")]
    case = case_of_one_rank(config)
    with FaultyProxy(s3_environment.endpoint) as proxy:
        rule = proxy.inject(Answer(403, "AccessDenied"), method="GET", path=f"{case}.zarr/0/c/")
        with Driver(command, {**os.environ, "AWS_ENDPOINT_URL": proxy.endpoint}) as driver:
            driver.wait_for(f"training on {WORKERS} workers")
            start_s = time.monotonic()
            status = driver.end()
            took_s = time.monotonic() - start_s
    assert status == 2, driver.lines
    assert driver.lines[-1].startswith(f"hssl pretrain: error: {files.join(s3_bucket, case)}.zarr/0/c/")
    assert "the object storage refused (AccessDenied); check AWS_ACCESS_KEY_ID" in driver.lines[-1]
    assert not any("Traceback" in line for line in driver.lines)
    assert took_s < END_S
    assert rule.hits > 0
