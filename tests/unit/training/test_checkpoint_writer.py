"""Checkpoints beside training: what a snapshot holds, who waits for whom, and what becomes of failures."""

from __future__ import annotations

import errno
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from hssl_dist import files
from hssl_dist.config.pretrain import CheckpointConfig, PretrainConfig, StageConfig
from hssl_dist.errors import CheckpointError, Interrupted
from hssl_dist.training.checkpoint import Checkpoint, CheckpointStore
from hssl_dist.training.checkpoint_writer import CheckpointWriter
from hssl_dist.training.loop import run_pretraining
from tests.tiny_pretraining import ArrayReader, Recorder, config, manifests

FULL = OSError(errno.ENOSPC, "No space left on device")


@dataclass
class Storage:
    """Writes to local disk, once `opened`; before that it fails with what is in `faults`, in their order."""

    opened: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)
    faults: list[BaseException] = field(default_factory=list)

    def put(self, url: str, data: bytes) -> None:
        self.reached.set()
        assert self.opened.wait(60)
        if self.faults:
            raise self.faults.pop(0)
        files.write(url, data, durable=True)


def open_storage(*faults: BaseException) -> Storage:
    storage = Storage(faults=list(faults))
    storage.opened.set()
    return storage


def store(folder: Path, storage: Storage) -> CheckpointStore:
    return CheckpointStore(str(folder), files.Backoff(attempts=1), storage.put)


def writer(folder: Path, storage: Storage, recorder: Recorder, **settings: Any) -> CheckpointWriter:
    checkpoints, chosen = store(folder, storage), CheckpointConfig(**settings)
    return CheckpointWriter(checkpoints, chosen, recorder.on_checkpoint, recorder.on_warning)


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"w": torch.full((3,), float(step))}, {}, {"history": [step]})


def pretrain(
    folder: Path, storage: Storage, recorder: Recorder, settings: PretrainConfig
) -> dict[str, torch.Tensor]:
    checkpoints = store(folder, storage)
    result = run_pretraining(settings, manifests(), ArrayReader(), checkpoints, recorder, torch.device("cpu"))
    return result.network.state_dict()


# -------------------------------------------------------------------------------------------------- snapshots


def test_a_pending_snapshot_is_not_changed_by_what_comes_later(tmp_path: Path) -> None:
    storage, recorder = Storage(), Recorder()
    weight, history = torch.nn.Parameter(torch.arange(4.0)), [[1, {"loss": 0.5}]]
    optimiser = torch.optim.AdamW([weight], lr=0.1)
    weight.sum().backward()
    optimiser.step()
    moment = optimiser.state[weight]["exp_avg"]
    before, moment_before = weight.detach().clone(), moment.clone()
    with writer(tmp_path, storage, recorder) as written:
        written.save(Checkpoint(1, {"w": weight}, {"m": moment}, {"history": history}))
        assert storage.reached.wait(60)
        optimiser.step()
        history.append([2, {"loss": 0.25}])
        assert recorder.saved == []
        storage.opened.set()
    loaded = CheckpointStore(str(tmp_path)).load(1)
    assert torch.equal(loaded.model["w"], before)
    assert not torch.equal(loaded.model["w"], weight)
    assert torch.equal(loaded.optimizer["m"], moment_before)
    assert loaded.state == {"history": [[1, {"loss": 0.5}]]}
    assert recorder.saved == [1]


def test_how_long_a_checkpoint_took_to_write_is_told(tmp_path: Path) -> None:
    storage, recorder = Storage(), Recorder()
    start_s = time.monotonic()
    with writer(tmp_path, storage, recorder) as written:
        written.save(checkpoint(1))
        assert storage.reached.wait(60)
        time.sleep(0.2)
        storage.opened.set()
    (seconds,) = recorder.save_s
    assert 0.2 <= seconds <= time.monotonic() - start_s


def test_training_goes_on_while_storage_is_blocked_and_the_checkpoint_is_of_its_step(tmp_path: Path) -> None:
    """Step 6 is written only after step 7 is done, and is what it is in an undisturbed run."""
    settings = config(
        encoder=StageConfig(steps=7, learning_rate=1e-2, warmup_steps=1),
        decoder=StageConfig(steps=0),
        checkpoint=CheckpointConfig(every_steps=6, keep_last=9),
    )
    pretrain(tmp_path / "whole", open_storage(), Recorder(), settings)
    storage = Storage()

    class Opening(Recorder):
        def on_step(self, step: int) -> None:
            super().on_step(step)
            if step == 6:
                assert not storage.reached.is_set()
            if step == 7:
                assert storage.reached.wait(60)
                assert self.saved == []
                storage.opened.set()

    recorder = Opening()
    pretrain(tmp_path / "blocked", storage, recorder, settings)
    assert recorder.saved == [6, 7]
    for step in (6, 7):
        one, other = (CheckpointStore(str(tmp_path / name)).load(step) for name in ("whole", "blocked"))
        for key in one.model:
            assert torch.equal(one.model[key], other.model[key]), key
        for key in one.optimizer:
            assert torch.equal(one.optimizer[key], other.optimizer[key]), key


# ---------------------------------------------------------------------------------------------------- waiting


def test_a_second_save_waits_for_the_first(tmp_path: Path) -> None:
    storage, recorder = Storage(), Recorder()
    with writer(tmp_path, storage, recorder) as written:
        written.save(checkpoint(1))
        assert storage.reached.wait(60)
        opening = threading.Timer(0.2, storage.opened.set)
        opening.start()
        written.save(checkpoint(2))
        assert recorder.saved == [1]
    opening.join()
    assert recorder.saved == [1, 2]
    assert CheckpointStore(str(tmp_path)).steps() == [1, 2]


def test_storage_that_hangs_is_waited_for_so_long_and_is_a_failure(tmp_path: Path) -> None:
    storage, recorder = Storage(), Recorder()
    written = writer(tmp_path, storage, recorder, timeout_s=0.1, max_failures=3)
    written.save(checkpoint(1))
    for step in (2, 3):
        written.save(checkpoint(step))
    assert [step for step, _ in recorder.warnings] == [2, 3]
    assert recorder.warnings[0][1] == (
        f"the checkpoint of step 1 is still being written to {tmp_path} after 0.1 s, that of step 2 is not "
        "saved; look at the storage, or raise checkpoint.timeout_s: older checkpoints are intact; "
        "training goes on (failure 1, 3 in a row end the run)"
    )
    with pytest.raises(
        CheckpointError, match=r"^3 checkpoints in a row could not be saved, the last because the"
    ):
        written.save(checkpoint(4))
    storage.opened.set()


def test_a_save_that_waits_returns_when_it_is_committed_or_raises(tmp_path: Path) -> None:
    recorder = Recorder()
    with writer(tmp_path / "a", open_storage(), recorder) as written:
        written.save(checkpoint(1), wait=True)
        assert recorder.saved == [1]
        assert CheckpointStore(str(tmp_path / "a")).latest() == 1
    written = writer(tmp_path / "b", open_storage(FULL), recorder)
    with pytest.raises(CheckpointError, match=r"^no space for the checkpoint of step 1 in "):
        written.save(checkpoint(1), wait=True)
    storage = Storage()
    late = writer(tmp_path / "c", storage, recorder, timeout_s=0.1)
    with pytest.raises(
        CheckpointError, match=r"step 1 is still being written to .*, the run ends without it; "
    ):
        late.save(checkpoint(1), wait=True)
    storage.opened.set()
    assert recorder.warnings == []


def test_a_stop_waits_for_the_write_before_it_and_for_its_own(tmp_path: Path) -> None:
    """Step 2's write is under way when a stop is asked for in step 3."""
    storage, recorder = Storage(), Recorder(stop_at=3)
    opening = threading.Thread(
        target=lambda: (storage.reached.wait(60), time.sleep(0.3), storage.opened.set())
    )
    opening.start()
    with pytest.raises(Interrupted, match=r"stopped after step 3; "):
        pretrain(tmp_path, storage, recorder, config())
    opening.join()
    assert recorder.saved == [2, 3]
    assert CheckpointStore(str(tmp_path)).latest() == 3


# --------------------------------------------------------------------------------------------------- failures


def test_failed_saves_are_warnings_and_a_success_counts_anew(tmp_path: Path) -> None:
    """Saves at steps 1 to 5 of which 1, 2, 4 and 5 fail; at 6 the stage ends."""
    settings = config(
        encoder=StageConfig(steps=6, learning_rate=1e-2, warmup_steps=1),
        decoder=StageConfig(steps=0),
        checkpoint=CheckpointConfig(every_steps=1, max_failures=3),
    )
    failing = {"step-00000001", "step-00000002", "step-00000004", "step-00000005"}

    def put(url: str, data: bytes) -> None:
        if url.split("/")[-2] in failing:
            raise FULL
        files.write(url, data, durable=True)

    recorder = Recorder()
    checkpoints = CheckpointStore(str(tmp_path), put=put)
    run_pretraining(settings, manifests(), ArrayReader(), checkpoints, recorder, torch.device("cpu"))
    assert recorder.saved == [3, 6]
    assert [step for step, _ in recorder.warnings] == [1, 2, 4, 5]
    assert recorder.warnings[1][1].startswith("no space for the checkpoint of step 2 in ")
    assert recorder.warnings[1][1].endswith("training goes on (failure 2, 3 in a row end the run)")


def test_too_many_failures_in_a_row_end_the_run_and_older_checkpoints_stay(tmp_path: Path) -> None:
    settings = config(
        encoder=StageConfig(steps=8, learning_rate=1e-2, warmup_steps=1),
        checkpoint=CheckpointConfig(every_steps=1, max_failures=2),
    )
    with pytest.raises(Interrupted):
        pretrain(tmp_path, open_storage(), Recorder(stop_at=1), settings)
    recorder = Recorder()
    with pytest.raises(CheckpointError) as ended:
        pretrain(tmp_path, open_storage(*[FULL] * 9), recorder, settings)
    why = "the last because no space for the checkpoint of step 3 in "
    assert str(ended.value).startswith(f"2 checkpoints in a row could not be saved, {why}")
    assert [step for step, _ in recorder.warnings] == [2]
    assert CheckpointStore(str(tmp_path)).steps() == [1]
    assert CheckpointStore(str(tmp_path)).load(1).step == 1


def test_a_failure_at_a_stop_is_an_error(tmp_path: Path) -> None:
    recorder = Recorder(stop_at=1)
    with pytest.raises(CheckpointError, match=r"^no space for the checkpoint of step 1 in "):
        pretrain(tmp_path, open_storage(FULL), recorder, config())


def test_a_bug_in_the_writer_comes_out_on_the_training_thread(tmp_path: Path) -> None:
    written = writer(tmp_path, open_storage(ZeroDivisionError("a bug")), Recorder())
    written.save(checkpoint(1))
    with pytest.raises(ZeroDivisionError, match=r"a bug"):
        written.save(checkpoint(2))


def test_beside_another_error_a_pending_write_is_awaited_and_its_failure_told(tmp_path: Path) -> None:
    recorder = Recorder()

    def break_off(storage: Storage, error: Exception | None) -> None:
        with writer(tmp_path, storage, recorder) as written:
            written.save(checkpoint(1))
            if error is not None:
                raise error

    with pytest.raises(KeyError):
        break_off(open_storage(), KeyError())
    assert recorder.saved == [1]
    with pytest.raises(KeyError):
        break_off(open_storage(FULL), KeyError())
    (warning,) = recorder.warnings
    assert warning[1].startswith("no space for the checkpoint of step 1 in ")
    with pytest.raises(CheckpointError, match=r"^no space"):
        break_off(open_storage(FULL), None)


def test_an_older_checkpoint_that_cannot_be_read_is_warned_of_once(tmp_path: Path) -> None:
    recorder = Recorder()
    with writer(tmp_path, open_storage(), recorder, keep_last=1) as written:
        written.save(checkpoint(1), wait=True)
        (tmp_path / "step-00000001" / "commit.json").write_bytes(b"{}")
        for step in (2, 3):
            written.save(checkpoint(step), wait=True)
    assert recorder.saved == [1, 2, 3]
    assert len(recorder.warnings) == 1
    assert recorder.warnings[0][1].startswith("an older checkpoint is kept: ")
    assert CheckpointStore(str(tmp_path)).steps() == [1, 3]
