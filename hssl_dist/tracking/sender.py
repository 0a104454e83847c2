"""A thread that sends what a run logs, so that no step of training ever waits for the tracking server.

    queue in memory -> the server, or -> the spool while the server does not answer

Order is kept: once something is in the spool, all that comes later queues behind it until the spool has been
replayed. Without a spool (a run that has no folder) what is not sent stays in memory.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from hssl_dist.errors import BusyError
from hssl_dist.tracking.client import is_denied, is_outage, reason, remedy, silent
from hssl_dist.tracking.operations import Metrics, merged
from hssl_dist.tracking.replay import replay
from hssl_dist.tracking.spool import Entry

if TYPE_CHECKING:
    from hssl_dist.files.ownership import Ownership
    from hssl_dist.tracking.registry import Version
    from hssl_dist.tracking.server import Server
    from hssl_dist.tracking.spool import Spool

_SEND_EVERY_S = 2.0
_SPOOL_EVERY_S = 20.0
_RETRY_S, _RETRY_MOST_S = 5.0, 60.0
_PATIENCE_S = 30.0
"""How long a job that ends waits for one call; MLflow's timeouts are longer."""
_POLL_S = 0.5
_FAILED = "tracking failed, the run goes on without it for now"

Caller = Callable[[Callable[[], "Version | None"]], "Version | None"]


class _GivenUpError(Exception):
    """This thread is waited for no more, and must do nothing more."""


class Ticket:
    """What became of one entry: `sent` with the version it made, `spooled`, or refused with an `error`."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.sent = self.spooled = False
        self.version: Version | None = None
        self.error: Exception | None = None

    @property
    def settled(self) -> bool:
        """Whether it is out of memory."""
        return self.sent or self.spooled or self.error is not None


class Sender:
    """Sends entries in the order they were put."""

    def __init__(
        self,
        server: Server,
        spool: Spool | None,
        ownership: Ownership | None,
        warn: Callable[[str], None],
        *,
        down: Exception | None = None,
    ) -> None:
        self._server, self._spool, self._ownership, self._warn = server, spool, ownership, warn
        self._warned: set[str] = set()
        self._changed = threading.Condition()
        self._queue: deque[Ticket] = deque()
        self._thread: threading.Thread | None = None
        self._given_up = threading.Event()
        self._down = self._hurry = self._stop = self._unkept = False
        self._calling_since_s: float | None = None
        self._retry_s, self._retry_at_s = _RETRY_S, time.monotonic() + _RETRY_S
        self._pass_at_s = time.monotonic()
        self.why = "no answer; check tracking.uri and the server"
        """Why the server was last not told something, and what to do."""
        if down is not None:
            self._fall_back(down)

    def put(self, entry: Entry) -> Ticket:
        """Queue an entry; returns at once."""
        ticket = Ticket(entry)
        with self._changed:
            self._queue.append(ticket)
            if self._thread is None:
                self._stop, self._given_up = False, threading.Event()
                run = partial(self._run, self._given_up)
                self._thread = threading.Thread(target=run, name="hssl-tracking", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return ticket

    def flush(self, patience_s: float = _PATIENCE_S) -> None:
        """Wait until all that was put is sent or spooled, or has been tried in vain.

        A single call to the server that takes more than `patience_s` is not waited for.
        """
        with self._changed:
            if self._thread is None:
                return
            self._hurry = True
            self._changed.notify_all()
            while self._hurry and self._thread.is_alive() and not self._stuck(patience_s):
                self._changed.wait(_POLL_S)

    def close(self) -> None:
        """Flush, and end the thread; what a server that hangs still has in its hands is spooled too, as it is
        not known to have arrived.
        """
        self.flush()
        with self._changed:
            thread, self._thread, self._stop = self._thread, None, True
            self._changed.notify_all()
            while thread is not None and thread.is_alive():
                if self._stuck(_PATIENCE_S):
                    self._given_up.set()
                    break
                self._changed.wait(_POLL_S)
            self._calling_since_s = None
            left = list(self._queue)
            self._queue.clear()
        self._keep(left, wait_s=_PATIENCE_S)
        if self._spool is not None and (lost := sum(not ticket.settled for ticket in left)):
            self._warn(f"{lost} of the things that were logged could be neither sent nor kept")
        if self._ownership is not None:
            self._ownership.release()

    # --------------------------------------------------------------------------------------------- the thread

    def _stuck(self, patience_s: float) -> bool:
        since_s = self._calling_since_s
        return since_s is not None and time.monotonic() - since_s > patience_s

    def _run(self, given_up: threading.Event) -> None:
        if self._spool is not None and self._spool.waits():
            if not self._down:
                self._retry_at_s = time.monotonic()
            self._down = True
        while True:
            with self._changed:
                while not self._stop and not self._due():
                    self._changed.wait(_POLL_S)
                if self._stop:
                    return
                tickets, hurried = list(self._queue), self._hurry
            try:
                self._work(tickets, hurried, given_up)
            except _GivenUpError:
                return
            with self._changed:
                self._pass_at_s = time.monotonic()
                if hurried:
                    self._hurry = False
                self._changed.notify_all()

    def _due(self) -> bool:
        """Whether there is something to do now."""
        now_s = time.monotonic()
        if self._hurry:
            return True
        if self._down and now_s >= self._retry_at_s:
            return True
        if not self._queue or (self._down and self._spool is None):
            return False
        if self._unkept and now_s - self._pass_at_s < _RETRY_S:
            return False
        every_s = _SPOOL_EVERY_S if self._down else _SEND_EVERY_S
        patient = all(isinstance(ticket.entry.operation, Metrics) for ticket in self._queue)
        return not patient or now_s - self._pass_at_s >= every_s

    def _work(self, tickets: Sequence[Ticket], hurried: bool, given_up: threading.Event) -> None:
        """One pass over what was queued."""
        call = partial(self._call, given_up)
        if self._down and (hurried or time.monotonic() >= self._retry_at_s):
            self._try_again(call)
        for group in _groups(tickets):
            if not self._down:
                self._send(group, call)
        if self._down:
            self._keep([ticket for ticket in tickets if not ticket.settled])

    def _send(self, group: Sequence[Ticket], call: Caller) -> None:
        """Send metrics of several steps, or one other thing."""
        version, refused = None, None
        try:
            version = call(partial(self._server.perform, _one(group), self._folder))
        except _GivenUpError:
            raise
        except Exception as error:  # noqa: BLE001  (whatever it is, training goes on)
            if is_outage(error):
                self._fall_back(error)
                return
            refused = error
            self._warn_once("refused", f"{_FAILED}: {reason(error)}")
        for ticket in group:
            ticket.version, ticket.error, ticket.sent = version, refused, refused is None
        self._settle()

    def _call(self, given_up: threading.Event, action: Callable[[], Version | None]) -> Version | None:
        """A call that may hang. Raises _GivenUpError if `close` has not waited for it."""
        with self._changed:
            self._calling_since_s = time.monotonic()
        try:
            return action()
        finally:
            with self._changed:
                if given_up.is_set():
                    raise _GivenUpError
                self._calling_since_s = None

    def _fall_back(self, error: Exception) -> None:
        """The server does not answer."""
        self._down = True
        self._retry_at_s = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _RETRY_MOST_S)
        self.why = f"{reason(error)}; {remedy(error)}"
        said = f"{_FAILED}: {self.why if is_denied(error) else reason(error)}"
        if self._spool is not None:
            said += f"; what it logs waits in {self._spool.folder} for the server, or for `hssl sync`"
        self._warn_once("down", said)

    def _try_again(self, call: Caller) -> None:
        """Send what is in the spool; if that succeeds the server is back."""
        try:
            if (why := silent(self._server.config)) is not None:
                raise ConnectionError(why)
            if self._spool is not None and self._ownership is not None and self._spool.numbers():
                self._ownership.claim()
                replay(self._server, self._spool, self._ownership, call=call)
        except _GivenUpError:
            raise
        except BusyError:  # what waits is being sent by another process
            self._retry_at_s = time.monotonic() + self._retry_s
            return
        except Exception as error:  # noqa: BLE001  (whatever it is, training goes on)
            if is_outage(error):
                self._fall_back(error)
                return
            self._retry_at_s = time.monotonic() + _RETRY_MOST_S
            self._warn_once("replay", f"what waits cannot be sent, the run goes on without: {reason(error)}")
            return
        self._down, self._retry_s = False, _RETRY_S
        self._warned.discard("down")

    def _keep(self, tickets: Sequence[Ticket], wait_s: float = 0.0) -> None:
        """Spool entries; those that the storage refuses stay in memory."""
        if self._spool is None or self._ownership is None or not tickets:
            return
        try:
            self._ownership.claim(wait_s)
            self._ownership.check()
            self._spool.append([_one(group) for group in _groups(tickets)])
        except Exception as error:  # noqa: BLE001  (whatever it is, training goes on)
            self._warn_once(
                "spool", f"what is logged cannot be kept in {self._spool.folder}: {reason(error)}"
            )
            self._unkept = True
            return
        self._unkept = False
        for ticket in tickets:
            ticket.spooled = True
        self._settle()

    def _settle(self) -> None:
        with self._changed:
            while self._queue and self._queue[0].settled:
                self._queue.popleft()

    def _warn_once(self, what: str, text: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self._warn(text)

    @property
    def _folder(self) -> str:
        return "" if self._spool is None else self._spool.run_folder


def _groups(tickets: Sequence[Ticket]) -> Iterator[list[Ticket]]:
    """Tickets that are sent together: metrics that follow each other, and every other one alone."""

    def alike(numbered: tuple[int, Ticket]) -> tuple[object, ...]:
        number, ticket = numbered
        operation = ticket.entry.operation
        if isinstance(operation, Metrics):
            return ("metrics", operation.run, operation.again)
        return (number,)

    for _, group in groupby(enumerate(tickets), alike):
        yield [ticket for _, ticket in group]


def _one(group: Sequence[Ticket]) -> Entry:
    operations = [ticket.entry.operation for ticket in group]
    metrics = [operation for operation in operations if isinstance(operation, Metrics)]
    return replace(group[0].entry, operation=merged(metrics)) if len(metrics) > 1 else group[0].entry
