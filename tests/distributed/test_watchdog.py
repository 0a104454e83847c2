"""Ranks that hang, die or end with an error, really: the others name them in time, with all stacks."""

import ctypes
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hssl_dist import collectives, watchdog
from hssl_dist.errors import CollectiveError, HsslError, StoreError
from hssl_dist.records import CaseRecord, Region
from hssl_dist.store import StoredForm
from hssl_dist.training.checkpoint import CheckpointStore
from hssl_dist.training.loop import run_pretraining
from hssl_dist.watchdog import watching
from tests.distributed.ranks import run_ranks
from tests.tiny_pretraining import ArrayReader, Recorder, config, manifests

DEADLINE_S = 4.0
LONG_S = 120.0
MOMENT_S = 12.0
"""What is waited for answers after the deadline, and what busy processors add."""


@contextmanager
def watched(folder: Path | None, deadline_s: float = DEADLINE_S, **options: Any) -> Iterator[None]:
    url = None if folder is None else str(folder)
    rank, world_size = collectives.rank(), collectives.world_size()
    with watching(collectives.group_store(), rank, world_size, deadline_s, url, **options):
        yield


def failing(act: Callable[[], object]) -> tuple[str, float]:
    """The words of the CollectiveError, and the seconds until it came."""
    start_s = time.monotonic()
    with pytest.raises(CollectiveError) as caught:
        act()
    return str(caught.value), time.monotonic() - start_s


def sleeping() -> None:
    time.sleep(2 * LONG_S)


def hang(marks: Path) -> None:
    """Hang until the other two ranks have failed, then end this process without a word."""

    def end() -> None:
        while len(list(marks.iterdir())) < 2:
            time.sleep(0.05)
        os._exit(0)

    threading.Thread(target=end, daemon=True).start()
    sleeping()


def fail_marked(marks: Path, act: Callable[[], object]) -> tuple[str, float]:
    try:
        return failing(act)
    finally:
        (marks / str(collectives.rank())).touch()


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


# -------------------------------------------------------------------------------------------- ranks that hang


def hang_before_a_gather(folder: Path, marks: Path) -> tuple[str, float]:
    with watched(folder):
        collectives.all_reduce_sum(torch.ones(1))
        watchdog.begin_step(7)
        if collectives.rank() == 1:
            hang(marks)
        return fail_marked(marks, lambda: collectives.gather_rows(torch.ones(2, 3)))


def test_a_rank_that_sleeps_before_a_gather_is_named_and_its_stack_shows_where(
    tmp_path: Path, marks: Path
) -> None:
    folder = tmp_path / "stacks"
    first, _, last = run_ranks(hang_before_a_gather, 3, folder, marks, deadline_s=DEADLINE_S, lost={1})
    for rank, (said, seconds) in ((0, first), (2, last)):
        assert re.fullmatch(
            rf"rank {rank} of 3 failed at gathering sizes with the other ranks in step 7: rank 1 did not "
            rf"come, it is at \S+/test_watchdog\.py:\d+ in sleeping, past summing; "
            rf"the stacks are in {folder}",
            said,
        ), said
        assert seconds < DEADLINE_S + MOMENT_S
    assert sorted(path.name for path in folder.iterdir()) == [f"rank-0000{rank}.txt" for rank in range(3)]
    stacks = (folder / "rank-00001.txt").read_text()
    assert stacks.startswith("rank 1 of 3, ")
    assert ": past collective 1 (summing) for " in stacks.partition("\n")[0]
    assert " in sleeping\n" in stacks
    assert " in hang_before_a_gather\n" in stacks
    assert ": hssl-watchdog\n" in stacks
    assert " in gather_rows\n" in (folder / "rank-00002.txt").read_text()


def hang_before_backward(folder: Path, marks: Path) -> tuple[str, float]:
    with watched(folder):
        network = DistributedDataParallel(nn.Linear(4, 4))
        loss = network(torch.ones(2, 4)).sum()
        watchdog.begin_step(0)
        if collectives.rank() == 1:
            hang(marks)

        def backward() -> None:
            with collectives.joined("averaging the gradients"):
                loss.backward()

        return fail_marked(marks, backward)


def test_what_ddp_raises_in_its_backward_pass_names_the_rank_too(tmp_path: Path, marks: Path) -> None:
    ranks = run_ranks(hang_before_backward, 3, tmp_path / "stacks", marks, deadline_s=DEADLINE_S, lost={1})
    for said, seconds in (ranks[0], ranks[2]):
        assert (
            " failed at averaging the gradients with the other ranks in step 0: rank 1 did not come" in said
        )
        assert " in sleeping, before its first collective; the stacks are in " in said
        assert seconds < DEADLINE_S + MOMENT_S
    assert " in sleeping\n" in (tmp_path / "stacks" / "rank-00001.txt").read_text()


class HangingReader(ArrayReader):
    """Reads for rank 1 hang from the third on, where nothing but a marker in `marks` ends them."""

    def __init__(self, marks: Path) -> None:
        super().__init__()
        self.marks, self.reads = marks, 0

    def fill_numbers(self, pairs: list[tuple[CaseRecord, Region]], out: np.ndarray) -> StoredForm:
        self.reads += 1
        if collectives.rank() == 1 and self.reads == 3:
            hang(self.marks)
        return super().fill_numbers(pairs, out)


def train_with_a_hanging_reader(folder: Path, marks: Path) -> tuple[str, float]:
    store, device = CheckpointStore(str(folder / "checkpoints")), torch.device("cpu")
    with watched(folder / "stacks"):
        if collectives.rank() == 1:
            run_pretraining(config(), manifests(), HangingReader(marks), store, Recorder(), device)
        return fail_marked(
            marks,
            lambda: run_pretraining(config(), manifests(), ArrayReader(), store, Recorder(), device),
        )


def test_training_says_at_which_step_a_loader_hangs(tmp_path: Path, marks: Path) -> None:
    ranks = run_ranks(train_with_a_hanging_reader, 3, tmp_path, marks, deadline_s=DEADLINE_S, lost={1})
    for said, _ in (ranks[0], ranks[2]):
        assert re.search(
            r" in step 2: rank 1 did not come, it is at \S+:\d+ in \w+, past \D+ in step 1; the stacks are",
            said,
        ), said
    assert " in sleeping\n" in (tmp_path / "stacks" / "rank-00001.txt").read_text()


def hang_with_the_interpreter(folder: Path, marks: Path, said: Path) -> tuple[str, float]:
    with said.open("a") as stream, watched(folder):
        if collectives.rank() == 1:
            os.dup2(stream.fileno(), 2)
            ctypes.PyDLL(None).sleep(15)
            os._exit(0)
        return failing(lambda: collectives.gather_rows(torch.ones(2, 3)))


def test_a_rank_where_no_thread_can_run_is_named_and_says_where_it_is(tmp_path: Path, marks: Path) -> None:
    """A call that holds the interpreter's lock: the stacks come from faulthandler's own thread."""
    folder, said_by = tmp_path / "stacks", tmp_path / "stderr"
    said, _ = run_ranks(hang_with_the_interpreter, 2, folder, marks, said_by, deadline_s=DEADLINE_S, lost={1})
    assert f"rank 1 does not answer: {GONE}; the stacks are in " in said[0]
    assert (folder / "rank-00000.txt").is_file()
    assert re.search(r"Timeout \(0:00:03\..*\)!\n(?s:.*) in hang_with_the_interpreter\n", said_by.read_text())


GONE = "its process or its machine is gone or stands still, look at its log"


def come_late_then_never(folder: Path, marks: Path) -> tuple[str, float]:
    with watched(folder):
        for step in range(2):
            watchdog.begin_step(step)
            if collectives.rank() == 1:
                time.sleep(0.9 * DEADLINE_S)
            collectives.all_reduce_sum(torch.ones(1))
        watchdog.begin_step(2)
        if collectives.rank() == 1:
            hang(marks)
        return fail_marked(marks, lambda: collectives.all_reduce_sum(torch.ones(1)))


def test_a_rank_that_comes_late_is_waited_for_and_one_that_never_comes_is_named(
    tmp_path: Path, marks: Path
) -> None:
    ranks = run_ranks(come_late_then_never, 3, tmp_path / "stacks", marks, deadline_s=DEADLINE_S, lost={1})
    for said, _ in (ranks[0], ranks[2]):
        assert "with the other ranks in step 2: rank 1 did not come" in said
        assert "in sleeping, past summing in step 1; the stacks are in" in said
    assert "(summing in step 1)" in (tmp_path / "stacks" / "rank-00001.txt").read_text()


# ---------------------------------------------------------------------------------------- ranks that are gone


def die(folder: Path) -> tuple[str, float]:
    with watched(folder, LONG_S):
        collectives.barrier(LONG_S)
        if collectives.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return failing(lambda: collectives.all_reduce_sum(torch.ones(1)))


def test_a_killed_rank_is_named_at_once(tmp_path: Path) -> None:
    first, _, last = run_ranks(die, 3, tmp_path, deadline_s=LONG_S, lost={1})
    for rank, (said, seconds) in ((0, first), (2, last)):
        assert said == (
            f"rank {rank} of 3 failed at summing with the other ranks: rank 1 does not answer: {GONE}; the "
            f"stacks are in {tmp_path}"
        )
        assert seconds < MOMENT_S < LONG_S


def end_with_an_error(folder: Path) -> tuple[str, float]:
    try:
        with watched(folder, LONG_S):
            if collectives.rank() == 1:
                raise StoreError("case 'a' cannot be read")
            return failing(lambda: collectives.all_reduce_sum(torch.ones(1)))
    except StoreError as error:
        return str(error), 0.0


def test_the_error_of_a_rank_is_told_by_the_others(tmp_path: Path) -> None:
    first, _, last = run_ranks(end_with_an_error, 3, tmp_path / "stacks", deadline_s=LONG_S)
    for said, seconds in (first, last):
        assert said.endswith(
            "failed at summing with the other ranks: rank 1 ended with StoreError: case 'a' cannot be read"
        )
        assert seconds < MOMENT_S
    assert not (tmp_path / "stacks").exists()


class HungryReader(ArrayReader):
    """The third read of rank 1 asks for more memory than the process may have."""

    reads = 0

    def fill_numbers(self, pairs: list[tuple[CaseRecord, Region]], out: np.ndarray) -> StoredForm:
        self.reads += 1
        if collectives.rank() == 1 and self.reads == 3:
            resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36))
            np.ones(2**37, np.uint8)
        return super().fill_numbers(pairs, out)


def train_with_too_little_memory(folder: Path) -> str:
    store, device = CheckpointStore(str(folder / "checkpoints")), torch.device("cpu")
    with pytest.raises(HsslError) as caught, watched(folder / "stacks", LONG_S):
        run_pretraining(config(), manifests(), HungryReader(), store, Recorder(), device)
    return f"{type(caught.value).__name__}: {caught.value}"


def test_memory_that_does_not_suffice_for_one_rank_ends_all(tmp_path: Path) -> None:
    """Found by the thread that reads ahead, under a real limit."""
    first, own, last = run_ranks(train_with_too_little_memory, 3, tmp_path, deadline_s=LONG_S)
    assert own.startswith("OutOfMemoryError: not enough memory for reading ahead; 2 batches of ")
    for said in (first, last):
        assert said.startswith("CollectiveError: rank ")
        assert said.endswith(f": rank 1 ended with {own}")


def end_the_process(said: Path) -> None:
    """As where a collective never raises: the group's deadline is long, the watchdog's is not."""
    lines = said / str(collectives.rank())
    with watched(None, DEADLINE_S, ends_process=True, say=lambda line: lines.write_text(line) and None):
        if collectives.rank() == 1:
            while len(list(said.iterdir())) < 2:
                time.sleep(0.05)
            return
        collectives.all_reduce_sum(torch.ones(1))


def test_where_collectives_do_not_raise_the_watchdog_says_why_and_ends_the_process(tmp_path: Path) -> None:
    start_s = time.monotonic()
    run_ranks(end_the_process, 3, tmp_path, deadline_s=LONG_S, lost={0, 2})
    assert time.monotonic() - start_s < LONG_S
    for rank in (0, 2):
        assert re.fullmatch(
            rf"rank {rank} of 3 waited \d s at summing: rank 1 did not come, it is at \S+ in \w+,"
            r" before its first collective; the stacks are in the ranks' standard error",
            (tmp_path / str(rank)).read_text(),
        )


# ---------------------------------------------------------------------------------------------- healthy ranks


def work(folder: Path) -> tuple[bool, list[str], float]:
    with watched(folder):
        start_s = time.monotonic()
        while time.monotonic() - start_s < 1.5 * DEADLINE_S:
            time.sleep(0.01)
            collectives.gather_rows(torch.ones(2, 3))
            if collectives.broadcast_object(time.monotonic() - start_s) > 1.2 * DEADLINE_S:
                break
        flag = collectives.group_store().check(["hssl-watchdog/1/0/flag"])
    start_s = time.thread_time()
    for _ in range(10_000):
        with watchdog.noted("nothing"):
            pass
    cost_s = (time.thread_time() - start_s) / 10_000
    return flag, [thread.name for thread in threading.enumerate()], cost_s


def test_healthy_ranks_leave_no_file_no_flag_no_thread_and_pay_microseconds(tmp_path: Path) -> None:
    """A note takes 1 to 2 microseconds of processor time, a small collective of gloo ranks 100 and more."""
    for flag, threads, cost_s in run_ranks(work, 2, tmp_path / "stacks", deadline_s=DEADLINE_S):
        print(f"a note takes {1e6 * cost_s:.2f} microseconds")  # noqa: T201  (with -rP)
        assert not flag
        assert "hssl-watchdog" not in threads
        assert cost_s < 20e-6
    assert not (tmp_path / "stacks").exists()
