"""`python -m tests.s3 [FOLDER]`: the tests' S3 server in the foreground, for development.

Prints the environment that clients need, and serves until Ctrl-C or SIGTERM. What is stored in FOLDER stays.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

from tests.s3.server import S3Server


def main(words: list[str]) -> int:
    """Serve; 0 when asked to end, 1 if the server could not start or one of its processes ended."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with ExitStack() as stack:
        folder = words[0] if words else stack.enter_context(tempfile.TemporaryDirectory(prefix="hssl-s3-"))
        try:
            server = stack.enter_context(S3Server(Path(folder).absolute()))
        except RuntimeError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        for key, value in server.environment.items():
            sys.stdout.write(f"export {key}={value}\n")
        sys.stdout.flush()
        sys.stderr.write("serving; Ctrl-C ends it\n")
        while not ended.wait(0.5):
            if (lost := server.ended()) is not None:
                sys.stderr.write(f"{lost}\n")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
