"""The benchmark of the loss: how it measures, what it recorded, and that it runs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch

from benchmarks.loss_table import BEGIN, END, PAGE, RECORD, ROOT, page_with
from benchmarks.measuring import CannotRun, Measurement, measure, wait_for_memory
from benchmarks.tables import between

MIB = 1 << 20


def build_allocation(warm_up_mib: int, mib: int) -> Callable[[], int]:
    torch.ones(warm_up_mib * MIB, dtype=torch.uint8)

    def allocate() -> int:
        start_s = time.process_time()
        while time.process_time() - start_s < 0.2:
            pass
        return int(torch.ones(mib * MIB, dtype=torch.uint8)[-1])

    return allocate


def test_measurement_counts_the_work_and_not_its_preparation() -> None:
    outcome = measure(build_allocation, 200, 64)
    assert isinstance(outcome, Measurement)
    assert 63 <= outcome.growth_mib <= 72
    assert 0.2 <= outcome.cpu_s <= 1.0
    assert outcome.result == 1


def test_memory_beyond_the_limit_cannot_run() -> None:
    assert measure(build_allocation, 1, 300, memory_limit_mib=100) == CannotRun("needs more than 100 MiB")


def build_end(status: int) -> Callable[[], None]:
    return lambda: os._exit(status)


def build_error(message: str) -> Callable[[], None]:
    def fail() -> None:
        raise RuntimeError(message)

    return fail


def test_a_process_that_ends_and_an_error() -> None:
    assert measure(build_end, 9) == CannotRun("its process was killed")
    with pytest.raises(RuntimeError, match="on purpose"):
        measure(build_error, "on purpose")


def test_waiting_for_memory() -> None:
    assert wait_for_memory(0.0, timeout_s=0)
    assert not wait_for_memory(1e9, timeout_s=0.1)


def test_the_page_shows_the_record() -> None:
    record = json.loads(RECORD.read_text())
    assert page_with(PAGE.read_text(), record) == PAGE.read_text()
    assert [criterion["name"] for criterion in record["criteria"] if criterion["passed"] is None] == []


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match=f"no {BEGIN.strip()} and {END.strip()} in the page"):
        between("# Loss\n", BEGIN, END, "")


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_quick_benchmark_reaches_what_it_measures() -> None:
    command = [sys.executable, "-m", "benchmarks.loss", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert {scaling["rows"] for scaling in record["scaling"]} == {1024, 2048}
    verdicts = {criterion["name"]: criterion["passed"] for criterion in record["criteria"]}
    assert sum(verdict is True for verdict in verdicts.values()) >= 4
    assert False not in verdicts.values()
