import threading
import time

import pytest

from hssl_dist.sampling.prefetch import read_ahead


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def wait_for(condition):
    deadline_s = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.005)


def test_items_come_in_order():
    items = [item for item, _ in read_ahead(lambda step: step * step, range(3, 20), 4)]

    assert items == [step * step for step in range(3, 20)]
    assert not reading_threads()


def test_no_more_than_the_depth_is_read_ahead():
    begun = []

    items = read_ahead(lambda step: begun.append(step) or step, range(100), 3)
    for expected in range(5):
        assert next(items)[0] == expected
        wait_for(lambda: len(begun) >= expected + 4)  # noqa: B023  (called at once)
        assert len(begun) == expected + 4
    items.close()

    assert len(begun) == 8
    assert not reading_threads()


def test_waiting_is_measured_where_it_happens():
    done = []

    def read(step):
        time.sleep(0.2)
        done.append(step)

    items = read_ahead(read, range(3), 3)
    _, first_s = next(items)
    wait_for(lambda: len(done) == 3)
    waits_s = [wait_s for _, wait_s in items]

    assert first_s >= 0.15
    assert max(waits_s) < 0.1


def test_an_error_comes_at_its_step_and_ends_the_thread():
    def read(step):
        if step == 2:
            raise ValueError("step 2")
        return step

    items = read_ahead(read, range(10), 4)

    assert [next(items)[0], next(items)[0]] == [0, 1]
    with pytest.raises(ValueError, match="step 2"):
        next(items)
    assert not reading_threads()


def test_nothing_starts_before_the_first_item_is_asked_for():
    begun = []

    items = read_ahead(begun.append, range(5), 2)
    items.close()

    assert not begun
