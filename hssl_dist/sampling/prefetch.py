"""Reading ahead in the background, in order and bounded."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def read_ahead(
    read: Callable[[int], Item], steps: Iterable[int], depth: int
) -> Generator[tuple[Item, float]]:
    """`read(step)` for each step in order, with the seconds the caller waited for it.

    At most `depth` items are read or kept ahead of the caller, by one thread (reads inside an item run in
    parallel by themselves). What `read` raises is raised here, at its step. Closing the generator drops what
    is not begun and waits for the thread to end.
    """
    upcoming = iter(steps)
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
    try:
        pending: deque[Future[Item]] = deque(pool.submit(read, step) for step in islice(upcoming, depth))
        while pending:
            begin_s = time.perf_counter()
            item = pending.popleft().result()
            wait_s = time.perf_counter() - begin_s
            pending.extend(pool.submit(read, step) for step in islice(upcoming, 1))
            yield item, wait_s
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
