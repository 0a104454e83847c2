"""`python -m tests.s3 [FOLDER]`: the tests' S3 server in the foreground, for development and containers.

Prints the environment that clients need, and serves until Ctrl-C or SIGTERM. What is stored in FOLDER stays.
With `--secret FILE` the secret key is that file's, and nothing is printed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

from tests.s3.server import SECRET_KEY, S3Server


def main(words: list[str]) -> int:
    """Serve; 0 when asked to end, 1 if the server could not start or one of its processes ended."""
    parser = argparse.ArgumentParser(prog="python -m tests.s3")
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--secret", type=Path)
    asked = parser.parse_args(words)
    secret = asked.secret.read_text() if asked.secret else SECRET_KEY
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with ExitStack() as stack:
        folder = asked.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="hssl-s3-"))
        try:
            server = stack.enter_context(S3Server(Path(folder).absolute(), secret, asked.host, asked.port))
        except RuntimeError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        if not asked.secret:
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
