"""Who writes a dataset of a store: one preprocessing job at a time, the others wait until it ends.

Two jobs that store a case by different recipes would mix its objects, and two of one recipe would each
remove what the other has just put. So a job owns its datasets, in `<root>/<dataset>/owner`, from before it
reads what is there until its reports are written; readers need no leave. Who waited finds what was done.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from hssl_dist import files
from hssl_dist.errors import BusyError, HsslError, StoreError
from hssl_dist.files.ownership import Ownership
from hssl_dist.store.layout import dataset_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from hssl_dist.console import Console

_LEASE_S = 90.0
"""Of silence: what a killed job keeps others waiting on object storage, and a minute more for the clocks."""
_LOOK_S = 10.0
_POLL_S = 1.0


@contextmanager
def owned(
    root: str, datasets: Iterable[str], console: Console, look_s: float = _LOOK_S
) -> Iterator[Callable[[], None]]:
    """Inside, no other job writes these datasets; yields what raises StoreError if that has ended too early.

    It has if this process was silent for longer than its lease, as on a machine that slept; it looks every
    `look_s` seconds. Raises StoreError if the store cannot be written.
    """
    # The keeper ends before anything is released: it would put a record there again.
    with ExitStack() as stack, _Keeper(look_s) as keeper:
        for name in sorted(datasets):  # in one order for all jobs, or two of them could wait for each other
            keeper.owners.append(stack.enter_context(_owned(dataset_url(root, name), console)))
        yield keeper.check


@contextmanager
def _owned(url: str, console: Console) -> Iterator[Ownership]:
    owner = Ownership(files.join(url, "owner"), "job", lease_s=_LEASE_S)
    try:
        _claim(owner, url, console)
    except HsslError:
        raise
    except OSError as error:
        raise StoreError(f"{files.shown(url)} cannot be locked: {error.strerror or error}") from error
    try:
        yield owner
    finally:
        with suppress(OSError):  # storage that has failed: the lease ends by itself
            owner.release()


def _claim(owner: Ownership, url: str, console: Console) -> None:
    waiting = False
    while True:
        try:
            owner.claim()
        except BusyError:
            if not waiting:
                console.say(f"another job is writing {files.shown(url)}: waiting until it ends")
            waiting = True
            time.sleep(_POLL_S)
        else:
            return


class _Keeper:
    """A thread that says, for as long as the context lasts, that this job still lives."""

    def __init__(self, look_s: float) -> None:
        self.owners: list[Ownership] = []
        self._look_s = look_s
        self._looked_s = time.monotonic()
        self._lost: BusyError | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="store-owner", daemon=True)

    def __enter__(self) -> _Keeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def check(self) -> None:
        """Raise StoreError if another job has taken over."""
        if time.monotonic() - self._looked_s > _LEASE_S:  # the thread's call hangs, or this process slept
            self._look()
        if self._lost is not None:
            raise StoreError(
                f"{self._lost}, since this one was silent for {_LEASE_S:g} s; what is committed is kept: run "
                "it again"
            ) from self._lost

    def _look(self) -> None:
        try:
            for owner in tuple(self.owners):
                owner.check()
        except BusyError as error:
            self._lost = error
        else:
            self._looked_s = time.monotonic()

    def _keep(self) -> None:
        while self._lost is None and not self._ended.wait(self._look_s):
            with suppress(OSError):  # of storage: the job meets it too, and says so
                self._look()
