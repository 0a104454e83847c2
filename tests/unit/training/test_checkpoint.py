"""The checkpoint store keeps what it says, on local disk and on an object store's semantics alike."""

from __future__ import annotations

import errno
import random
import uuid
from pathlib import Path

import pytest
import torch

from hssl_dist import files
from hssl_dist.errors import CheckpointError
from hssl_dist.training.checkpoint import Checkpoint, CheckpointStore, Snapshot


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    url = str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4().hex}/run"
    return CheckpointStore(url)


def checkpoint(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    return Checkpoint(
        step=step,
        model={
            "a.weight": torch.randn(3, 4, generator=generator).t(),
            "b": torch.tensor(step + 0.5).double(),
        },
        optimizer={"exp_avg/a.weight": torch.randn(4, 3, generator=generator)},
        state={"step": step, "history": [[1, {"loss": 0.1}]]},
    )


def test_a_checkpoint_comes_back_bit_for_bit(store: CheckpointStore) -> None:
    saved = checkpoint(7)
    store.save(saved)
    loaded = store.load(7)
    assert loaded.step == 7
    assert loaded.state == saved.state == store.load_state(7)
    for before, after in ((saved.model, loaded.model), (saved.optimizer, loaded.optimizer)):
        assert before.keys() == after.keys()
        for name in before:
            assert after[name].dtype == before[name].dtype
            assert torch.equal(after[name], before[name])


def test_an_empty_store_has_no_latest(store: CheckpointStore) -> None:
    assert store.latest() is None
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3 at"):
        store.load(3)


def test_the_last_ones_and_the_best_of_each_series_stay(store: CheckpointStore) -> None:
    for step, series, score in (
        (1, "encoder", 5.0),
        (2, "encoder", 3.0),
        (3, "encoder", 4.0),
        (4, "decoder", 9.0),
        (5, "decoder", 9.5),
        (6, "decoder", 9.9),
        (7, "decoder", 9.7),
    ):
        store.save(checkpoint(step), series=series, score=score, keep_last=2)
    assert store.steps() == [2, 4, 6, 7]
    assert files.listing(store.url) == [f"step-{step:08d}" for step in (2, 4, 6, 7)]


def test_a_save_without_commit_record_does_not_exist(store: CheckpointStore) -> None:
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    files.remove(files.join(store.url, "step-00000002", "commit.json"))
    assert store.latest() == 1
    store.save(checkpoint(3))
    assert store.steps() == [1, 3]
    assert files.listing(store.url) == ["step-00000001", "step-00000003"]


def test_saving_a_step_again_replaces_it(store: CheckpointStore) -> None:
    store.save(checkpoint(1))
    other = checkpoint(2)
    store.save(Checkpoint(step=1, model=other.model, optimizer=other.optimizer, state={"step": 1}))
    assert torch.equal(store.load(1).model["a.weight"], other.model["a.weight"])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "commit.json"])
def test_any_flipped_bit_is_found_and_its_file_named(tmp_path: Path, name: str) -> None:
    """250 random bits of each file."""
    store = CheckpointStore(str(tmp_path))
    store.save(checkpoint(1))
    path = tmp_path / "step-00000001" / name
    data = path.read_bytes()
    for bit in random.Random(name).sample(range(8 * len(data)), 250):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError) as caught:
            store.load(1)
        assert str(caught.value).startswith(f"{path} "), bit
    path.write_bytes(data)
    assert store.load(1).step == 1


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_flipped_bit_is_named(store: CheckpointStore, name: str) -> None:
    store.save(checkpoint(1))
    url = files.join(store.url, "step-00000001", name)
    data = bytearray(files.read(url))
    data[-3] ^= 4
    files.write(url, bytes(data))
    with pytest.raises(CheckpointError) as caught:
        store.load(1)
    folder = files.join(store.url, "step-00000001")
    assert str(caught.value) == (
        f"{url} has other bytes than were saved (SHA-256 differs); "
        f"remove {folder} to resume from an older checkpoint"
    )


def test_a_file_that_is_cut_short_or_missing_is_named(store: CheckpointStore) -> None:
    store.save(checkpoint(1))
    url = files.join(store.url, "step-00000001", "model.safetensors")
    data = files.read(url)
    files.write(url, data[:-1])
    with pytest.raises(
        CheckpointError,
        match=rf"model.safetensors has {len(data) - 1} bytes, its commit record says {len(data)}",
    ):
        store.load(1)
    files.remove(url)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        store.load(1)


def test_a_torn_commit_record_is_named(store: CheckpointStore) -> None:
    store.save(checkpoint(1))
    files.write(files.join(store.url, "step-00000001", "commit.json"), b'{"step": 1')
    with pytest.raises(CheckpointError, match=r"step-00000001/commit\.json is damaged, or of an older"):
        store.load(1)


def test_storage_that_refuses_is_one_clear_error_and_older_checkpoints_stay(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.save(checkpoint(1))
    (tmp_path / "step-00000002").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"^the checkpoint of step 2 cannot be saved at .*: .*older"):
        store.save(checkpoint(2))
    assert store.latest() == 1
    assert store.load(1).step == 1


def test_a_save_that_was_killed_leaves_nothing_behind_when_it_is_repeated(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.save(checkpoint(1))
    torn = tmp_path / "step-00000002"
    torn.mkdir()
    (torn / ".model.safetensors.99.partial").write_bytes(b"half")
    (torn / "model.safetensors").write_bytes(b"of another save")
    assert store.latest() == 1
    store.save(checkpoint(2))
    assert files.listing(str(torn)) == [
        "commit.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert torch.equal(store.load(2).model["b"], checkpoint(2).model["b"])


def test_the_commit_record_is_put_last_and_older_ones_are_dropped_after_it(tmp_path: Path) -> None:
    put: list[tuple[str, list[int]]] = []

    def note(url: str, data: bytes) -> None:
        put.append((url.rpartition("/")[2], store.steps()))
        files.write(url, data, durable=True)

    store = CheckpointStore(str(tmp_path), put=note)
    for step in (1, 2):
        store.save(checkpoint(step), keep_last=1)
    names = ["model.safetensors", "optimizer.safetensors", "state.json", "commit.json"]
    assert put == [(name, []) for name in names] + [(name, [1]) for name in names]
    assert store.steps() == [2]


def test_a_fault_that_passes_is_waited_out_and_one_that_stays_is_not(tmp_path: Path) -> None:
    faults: list[OSError] = []

    def put(url: str, data: bytes) -> None:
        if faults:
            raise faults.pop()
        files.write(url, data, durable=True)

    store = CheckpointStore(str(tmp_path), files.Backoff(attempts=3, first_s=0.001), put)
    faults[:] = [ConnectionResetError(errno.ECONNRESET, "reset")] * 2
    store.save(checkpoint(1))
    faults[:] = [TimeoutError("late")] * 3
    with pytest.raises(CheckpointError, match=r"the checkpoint of step 2 cannot be saved at .*: late; "):
        store.save(checkpoint(2))
    assert faults == []
    faults[:] = [OSError(errno.ENOSPC, "No space left on device")] * 3
    with pytest.raises(CheckpointError) as full:
        store.save(checkpoint(2))
    assert len(faults) == 2
    assert str(full.value) == (
        f"no space for the checkpoint of step 2 in {tmp_path}/step-00000002: [Errno 28] No space left on "
        "device; make room there, or raise the quota or the limit on file sizes: older checkpoints are intact"
    )
    assert store.steps() == [1]


def test_what_cannot_be_read_is_never_dropped(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    for step in (1, 2):
        store.save(checkpoint(step), keep_last=3)
    (tmp_path / "step-00000001" / "commit.json").write_bytes(b"{}")
    store.write(Snapshot.of(checkpoint(3)))
    with pytest.raises(
        CheckpointError, match=r"^an older checkpoint is kept: .*step-00000001/commit\.json is"
    ):
        store.drop_all_but(1)
    assert store.steps() == [1, 3]


def test_a_snapshot_shares_nothing_with_what_it_was_taken_of() -> None:
    live = {"weight": torch.arange(6.0).view(2, 3).t(), "count": torch.tensor(3.0)}
    state = {"history": [[1, {"loss": 0.5}]]}
    snapshot = Snapshot.of(Checkpoint(1, live, live, state))
    before = list(snapshot.contents())
    for value in live.values():
        value.add_(1)
    state["history"][0][1]["loss"] = 9.0  # type: ignore[index]
    assert list(snapshot.contents()) == before
