"""Who may write a folder: one process at a time, of those that ask.

In a local folder that is whoever holds a lock on `owner.lock`; the lock goes with its process, however that
ends. Object storage has no locks, so there the owner leaves a record with a lease:

    owner-00000007.json     who, as what (`run`, `sync` or `job`), and when it last said so

A record is made only if there is none of its number, and looked at again after a moment: some storage (Swift)
lets several pass that ask at once, of whom the last one stays. Whoever makes the next number owns the folder,
and an older owner, should it still live, finds so when it next looks. A run takes over from a run at once: it
is the same one, started again. For any other owner everyone waits until its lease has passed. The machines'
clocks must agree to within `_SKEW_S`.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from hssl_dist import files
from hssl_dist.errors import BusyError
from hssl_dist.files.locks import only_one

Kind = Literal["run", "sync", "job"]

LEASE_S = 180.0
"""More than the longest call to a server that hangs."""
_SKEW_S = 60.0
_RENEW_S = 30.0
_POLL_S = 0.2
_SETTLE_S = 1.0
_RECORD = re.compile(r"owner-(\d{8})\.json")


class Ownership:
    """One process's hold on `folder`: `claim` it, `check` it before each use, `release` it."""

    def __init__(self, folder: str, kind: Kind, lease_s: float = LEASE_S) -> None:
        self._folder, self._kind, self._lease_s = folder, kind, lease_s
        self._lock: ExitStack | None = None
        self._number: int | None = None
        self._lost = False
        self._id = uuid.uuid4().hex
        self._renewed_s = 0.0

    def claim(self, wait_s: float = 0.0) -> None:
        """Own the folder from now on; nothing happens if that is so. Raises BusyError after `wait_s`."""
        deadline_s = time.monotonic() + wait_s
        while self._lost or not self._claimed():
            if self._lost or time.monotonic() >= deadline_s:
                raise BusyError(f"{self._folder} is in use by another process; let it end first")
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Raise BusyError if another process has taken over; say that this one still lives."""
        if self._lock is not None:
            return
        numbers = self._numbers()
        number = self._number
        if number is None or numbers[-1:] != [number] or self._read(number).get("id") != self._id:
            self._number, self._lost = None, True  # for good: two would take it from each other for ever
            raise BusyError(f"{self._folder} was taken over by another process")
        if time.monotonic() - self._renewed_s >= _RENEW_S:
            files.write(self._url(number), self._record())
            self._renewed_s = time.monotonic()

    def release(self) -> None:
        """Let others own it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._number is not None:
            files.remove(self._url(self._number))
            self._number = None

    # ------------------------------------------------------------------------------------------------ details

    def _claimed(self) -> bool:
        if self._lock is not None or self._number is not None:
            return True
        return self._lock_folder() if files.is_local(self._folder) else self._leave_record()

    def _lock_folder(self) -> bool:
        folder = Path(self._folder)
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(only_one(folder / "owner.lock", wait=False))
            except BlockingIOError:
                return False
            self._lock = stack.pop_all()
        return True

    def _leave_record(self) -> bool:
        numbers = self._numbers()
        if numbers and self._held(numbers[-1]):
            return False
        number = numbers[-1] + 1 if numbers else 1
        url = self._url(number)
        files.create(url, self._record())
        time.sleep(_SETTLE_S)
        if self._read(number).get("id") != self._id:  # also our own if a request was retried
            return False
        self._number, self._renewed_s = number, time.monotonic()
        for older in numbers:
            files.remove(self._url(older))
        return True

    def _held(self, number: int) -> bool:
        """Whether the owner of that number has to be waited for."""
        record = self._read(number)
        if not record or (record["kind"] == self._kind == "run"):
            return False
        return bool(time.time() - record["renewed_at"] < self._lease_s + _SKEW_S)

    def _read(self, number: int) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(files.read(self._url(number)))
        except FileNotFoundError:
            return {}
        return found

    def _record(self) -> bytes:
        return json.dumps({"id": self._id, "kind": self._kind, "renewed_at": time.time()}).encode()

    def _numbers(self) -> list[int]:
        matches = (_RECORD.fullmatch(name) for name in files.listing(self._folder))
        return sorted(int(match[1]) for match in matches if match)

    def _url(self, number: int) -> str:
        return files.join(self._folder, f"owner-{number:08d}.json")
