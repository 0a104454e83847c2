"""Where all threads of this process are, written to a file."""

from __future__ import annotations

import faulthandler
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import IO

from hssl_dist import files


def save_stacks(heading: str, url: str | None, timeout_s: float) -> None:
    """Write the stacks of all threads below a heading; to standard error without a URL, or if that fails.

    Storage that hangs may be why the rank hangs: it is waited for `timeout_s` seconds.
    """
    names = "\n".join(f"thread 0x{thread.ident or 0:016x}: {thread.name}" for thread in threading.enumerate())
    text = f"{heading}\n{names}\n\n{_stacks()}"
    written = threading.Event()

    def write(url: str) -> None:
        files.write(url, text.encode())
        written.set()

    if url is not None:
        writer = threading.Thread(target=_quietly, args=(write, url), daemon=True)
        writer.start()
        writer.join(timeout_s)
    if not written.is_set():
        to_stderr(text)


def _stacks() -> str:
    """By faulthandler, which reads no source files, in a file, as it needs one."""
    try:
        with tempfile.TemporaryFile() as stream:
            faulthandler.dump_traceback(stream, all_threads=True)
            stream.seek(0)
            return stream.read().decode(errors="replace")
    except OSError as error:
        return f"no stacks: {first_line(error)}\n"


def _quietly(write: Callable[[str], None], url: str) -> None:
    try:
        write(url)
    except Exception as error:  # noqa: BLE001  (the stacks go to standard error then)
        to_stderr(f"{files.shown(url)} cannot be written: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """The first line of what it says."""
    return next(iter(str(error).splitlines()), "")


def to_stderr(text: str) -> None:
    """A line, also where `sys.stderr` is somebody else's."""
    stream: IO[str] | None = sys.__stderr__
    if stream is not None:
        stream.write(f"{text}\n")
        stream.flush()
