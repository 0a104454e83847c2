"""Who does not come to a collective, and where every rank is: notes, a thread that watches, stacks.

Each rank notes in memory which collective it is in; nothing is sent while all goes well. A thread of each
rank looks at that note, and into the process group's store by a client of its own, every second or so:

    a rank waits longer than 0.8 of its deadline, or its collective fails: it raises a flag in the store
    a rank sees the flag, also one that hangs: it posts its position, then writes the stacks of its threads
    a rank that waits: it reads who is behind, and who is gone

So whoever gives up can say whom it waited for. A rank that ends with an error posts that. Where collectives
do not raise at their deadline (NCCL ends the process), the thread says it and ends the process before.

    position.py  which collective this rank is in
    verdict.py   who did not come
    stacks.py    where all threads are, into a file
    thread.py    the thread
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hssl_dist.errors import CollectiveError, Interrupted
from hssl_dist.watchdog.position import Position, Rank, begin_step, in_step, noted
from hssl_dist.watchdog.stacks import first_line
from hssl_dist.watchdog.thread import Store, Watchdog
from hssl_dist.watchdog.verdict import DONE, GAVE_UP

__all__ = ["Store", "begin_step", "explain", "in_step", "noted", "watching"]


class _Watched:
    """The watchdog of this process, and how many there have been."""

    watchdog: Watchdog | None = None
    count = 0


def explain() -> str | None:
    """Why the collective this rank is in failed: the ranks that did not come, and where the stacks are.

    It takes some seconds at most. None if no rank is to blame or nobody watches.
    """
    return None if _Watched.watchdog is None else _Watched.watchdog.explain()


@contextmanager
def watching(
    store: Store,
    rank: int,
    world_size: int,
    timeout_s: float,
    folder: str | None,
    *,
    ends_process: bool = False,
    say: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Watch this rank's collectives inside; all ranks of a group enter, equally often.

    `store` is the process group's, `timeout_s` its deadline. Stacks go to `<folder>/rank-00001.txt` and
    so on, or to standard error without a folder. With `ends_process`, for backends whose collectives do not
    raise, a rank that waited 0.9 of the deadline tells `say` (standard error by default) why, and ends its
    process with status 1.
    """
    _Watched.count += 1
    Rank.position = Position(since_s=time.monotonic())
    Rank.step = None
    prefix = f"hssl-watchdog/{_Watched.count}"
    watchdog = Watchdog(store.clone(), prefix, rank, world_size, timeout_s, folder, ends_process, say)
    _Watched.watchdog = watchdog
    watchdog.start()
    how = DONE
    try:
        yield
    except Interrupted:
        raise
    except CollectiveError:  # it blames another rank, and is no cause itself
        how = GAVE_UP
        raise
    except Exception as error:
        how = f"{type(error).__name__}: {first_line(error)}"
        raise
    finally:
        _Watched.watchdog = None
        watchdog.end(how)
