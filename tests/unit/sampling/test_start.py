"""Starting on large stores, in fresh processes. The exact figures are `benchmarks.sampler`'s."""

import pytest

from benchmarks.sampler import probe_in_new_process, write_store


def test_the_first_batch_of_ten_thousand_cases_comes_soon(tmp_path):
    write_store(tmp_path, 10_000, volumes=True)

    figures = probe_in_new_process(tmp_path, deliver=True)

    assert figures["sampler_cpu_s"] < 1.5  # 0.4 s on a quiet machine, of 3 s in all
    assert figures["cpu_s"] < 6.0


@pytest.mark.timeout(300)
def test_a_hundred_thousand_cases_take_little_memory(tmp_path):
    write_store(tmp_path, 100_000, volumes=False)

    figures = probe_in_new_process(tmp_path, deliver=False)

    assert figures["memory_mib"] < 50
