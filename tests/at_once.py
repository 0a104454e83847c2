"""Processes that do something at the same moment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence


def at_once(code: str, words: Sequence[str], processes: int, timeout_s: float) -> list[str]:
    """What each of so many Pythons has said that run the code with these words, and all ended well.

    The code says `ready`, flushed, once it has imported what it needs, and then waits for a line.
    """
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ended = [process.communicate(timeout=timeout_s) for process in started]
    assert [process.returncode for process in started] == [0] * processes, ended
    return [said for said, _ in ended]
