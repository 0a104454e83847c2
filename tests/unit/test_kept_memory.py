"""Freed memory that is kept: pages are not faulted in again while it is, and go back to the system after."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from hssl_dist import memory
from hssl_dist.memory import _glibc, freed_memory_kept

pytestmark = pytest.mark.skipif(_glibc() is None, reason="the C library is not glibc")

# In a process of its own: the limits are of the process, and so is what is counted.
SCRIPT = """
import json, resource
import torch
from hssl_dist.memory import freed_memory_kept

def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20

def faults_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults_of_a_step()
found = {"before": faults_of_a_step()}
with freed_memory_kept():
    for _ in range(5):  # until there is a free place that is large enough with its alignment
        faults_of_a_step()
    with freed_memory_kept():  # nested, as trainings in threads would be
        pass
    found["inside"] = faults_of_a_step()
    found["inside_mib"] = resident_mib()
found["after_mib"] = resident_mib()
found["after"] = faults_of_a_step()
print(json.dumps(found))
"""


def test_pages_are_not_faulted_in_again_and_are_given_back_at_the_end() -> None:
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    found = json.loads(done.stdout)
    assert found["before"] > 500
    assert found["inside"] < 100
    assert found["inside_mib"] - found["after_mib"] > 60
    assert found["after"] > 500


def raise_inside() -> None:
    with freed_memory_kept():
        assert memory._keepers == 1
        raise ValueError("inside")


def test_an_error_inside_ends_it_too() -> None:
    with pytest.raises(ValueError, match="inside"):
        raise_inside()
    assert memory._keepers == 0
    with freed_memory_kept(wanted=False):
        assert memory._keepers == 0
