"""Checkpoints on a real S3 server behind a proxy that fails, hangs, cuts and slows requests."""

from __future__ import annotations

import signal
import threading
import time
from multiprocessing import get_context

import pytest
import torch

from hssl_dist import files
from hssl_dist.config.pretrain import CheckpointConfig, StageConfig
from hssl_dist.errors import CheckpointError
from hssl_dist.training.checkpoint import Checkpoint, CheckpointStore
from hssl_dist.training.checkpoint_writer import CheckpointWriter
from hssl_dist.training.loop import PretrainingResult, run_pretraining
from tests.faulty_proxy import (
    INTERNAL_ERROR,
    NO_SPACE,
    REQUEST_TIMEOUT,
    SLOW_DOWN,
    Close,
    Fault,
    FaultyProxy,
    Hang,
    Slow,
)
from tests.tiny_pretraining import ArrayReader, Recorder, config, manifests

CLIENT_ATTEMPTS, ATTEMPTS = 4, 16
"""At a request by the client, and by `files` as well, each of whose attempts is all of the client's."""
ONCE, QUICK = files.Backoff(attempts=1), files.Backoff(attempts=3, first_s=0.01)


@pytest.fixture
def url(s3_bucket: str, proxy: FaultyProxy) -> str:
    return files.join(s3_bucket, "run", "checkpoints")


def checkpoint(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    return Checkpoint(
        step, {"w": torch.randn(99, generator=generator)}, {"m": torch.zeros(2)}, {"step": step}
    )


def assert_whole(url: str, step: int) -> None:
    loaded = CheckpointStore(url).load(step)
    assert torch.equal(loaded.model["w"], checkpoint(step).model["w"])
    assert loaded.state == {"step": step}


@pytest.mark.parametrize(
    ("fault", "times"),
    [
        (INTERNAL_ERROR, ATTEMPTS + 1),  # one more than `files` tries by itself
        (REQUEST_TIMEOUT, CLIENT_ATTEMPTS + 1),
        (SLOW_DOWN, 2),
        (Close(), 2),
        (Close(arrives=True), 1),
        (Slow(seconds=0.5), 3),
    ],
    ids=str,
)
def test_a_save_outlasts_faults_that_pass(url: str, proxy: FaultyProxy, fault: Fault, times: int) -> None:
    store = CheckpointStore(url, QUICK)
    rule = proxy.inject(fault, times=times, method="PUT")
    store.save(checkpoint(1))
    assert rule.hits == times
    assert_whole(url, 1)


def test_a_checkpoint_whose_commit_never_arrives_does_not_exist(url: str, proxy: FaultyProxy) -> None:
    store = CheckpointStore(url, ONCE)
    store.save(checkpoint(1))
    proxy.inject(INTERNAL_ERROR, method="PUT", path="step-00000002/commit.json")
    with pytest.raises(CheckpointError) as failed:
        store.save(checkpoint(2))
    commit = f"{url}/step-00000002/commit.json"
    assert str(failed.value).startswith(
        f"the checkpoint of step 2 cannot be saved at {url}: {commit}: the object storage failed or does not "
    )
    proxy.clear()
    assert files.listing(files.join(url, "step-00000002")) == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert store.latest() == 1
    assert_whole(url, 1)
    store.save(checkpoint(2))
    assert store.steps() == [1, 2]
    assert_whole(url, 2)


@pytest.mark.parametrize(
    ("path", "fault", "latest"),
    [
        ("model.safetensors", Hang(60.0), 1),
        ("commit.json", Hang(60.0), 1),
        ("commit.json", Slow(seconds=60.0), 2),  # it has arrived; only its sender never heard so
    ],
    ids=["in the weights", "in the commit", "after the commit"],
)
def test_a_process_killed_during_a_put_leaves_the_older_or_a_whole_checkpoint(
    url: str, proxy: FaultyProxy, path: str, fault: Fault, latest: int
) -> None:
    store = CheckpointStore(url)
    store.save(checkpoint(1))
    rule = proxy.inject(fault, method="PUT", path=f"step-00000002/{path}")
    process = get_context("spawn").Process(target=save, args=(url, 2))
    process.start()
    try:
        deadline_s = time.monotonic() + 60.0
        while not (rule.hits and store.latest() == latest):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    proxy.clear()
    assert store.latest() == latest
    assert_whole(url, latest)
    store.save(checkpoint(2))
    assert store.steps() == [1, 2]
    assert_whole(url, 2)


def save(url: str, step: int) -> None:
    """In a process of its own."""
    CheckpointStore(url).save(checkpoint(step))


def test_what_does_not_pass_is_not_tried_again(
    url: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(url, files.Backoff(first_s=1e6))
    rule = proxy.inject(NO_SPACE, method="PUT")
    with pytest.raises(
        CheckpointError, match=rf"^no space for the checkpoint of step 1 in {url}/step-00000001: "
    ):
        store.save(checkpoint(1))
    assert rule.hits == 1
    proxy.clear()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(CheckpointError, match=r"the object storage refused .*; check AWS_ACCESS_KEY_ID"):
        store.save(checkpoint(1))


def test_a_server_that_hangs_is_an_error_in_bounded_time(url: str, proxy: FaultyProxy) -> None:
    recorder, settings = Recorder(), CheckpointConfig(timeout_s=1.0)
    writer = CheckpointWriter(
        CheckpointStore(url, ONCE), settings, recorder.on_checkpoint, recorder.on_warning
    )
    proxy.inject(Hang(300.0), method="PUT")
    start_s = time.monotonic()
    with pytest.raises(CheckpointError, match=r"step 1 is still being written to .* after 1 s, the run ends"):
        writer.save(checkpoint(1), wait=True)
    assert time.monotonic() - start_s < 20.0
    assert CheckpointStore(url).latest() is None
    proxy.clear()
    for thread in threading.enumerate():
        if thread.name == "checkpoint-1":
            thread.join(timeout=60)
            assert not thread.is_alive()


# --------------------------------------------------------------------------------------------------- training


def train(url: str, recorder: Recorder, encoder_steps: int = 4, **checkpoint: int) -> PretrainingResult:
    settings = config(
        encoder=StageConfig(steps=encoder_steps, learning_rate=1e-2, warmup_steps=1),
        checkpoint=CheckpointConfig(every_steps=1, **checkpoint),
    )
    store = CheckpointStore(url, ONCE)
    return run_pretraining(settings, manifests(), ArrayReader(), store, recorder, torch.device("cpu"))


def test_a_run_outlasts_a_failed_upload_and_is_the_same(url: str, proxy: FaultyProxy) -> None:
    undisturbed = train(files.join(url, "undisturbed"), Recorder())
    recorder = Recorder()
    for path in ("disturbed/step-00000002/model", "disturbed/step-00000003/commit"):
        proxy.inject(INTERNAL_ERROR, times=ATTEMPTS, method="PUT", path=path)
    disturbed = train(files.join(url, "disturbed"), recorder)
    assert recorder.saved == [1, 4, 5, 6, 7]
    assert [step for step, _ in recorder.warnings if step in (2, 3)] == [2, 3]
    for name, value in undisturbed.network.state_dict().items():
        assert torch.equal(value, disturbed.network.state_dict()[name]), name


def test_uploads_that_fail_in_a_row_end_the_run(url: str, proxy: FaultyProxy) -> None:
    recorder = Recorder()
    proxy.inject(INTERNAL_ERROR, method="PUT", path="step-00000002")
    proxy.inject(INTERNAL_ERROR, method="PUT", path="step-00000003")
    with pytest.raises(
        CheckpointError, match=r"^2 checkpoints in a row could not be saved, the last because "
    ):
        train(url, recorder, encoder_steps=8, max_failures=2)
    proxy.clear()
    assert recorder.saved == [1]
    assert CheckpointStore(url).steps() == [1]
    assert CheckpointStore(url).load(1).step == 1
