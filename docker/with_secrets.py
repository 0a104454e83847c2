#!/opt/hssl/bin/python -I
"""with-secrets COMMAND...: for every SECRET_NAME of the environment, NAME is what the file it names holds.

So secrets are in the environment of processes alone, and in no description of a container.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_PREFIX = "SECRET_"


def main(command: list[str]) -> None:
    """Read the files and become the command."""
    if not command:
        sys.exit(__doc__)
    for name, path in list(os.environ.items()):
        if name.startswith(_PREFIX):
            try:
                os.environ[name.removeprefix(_PREFIX)] = Path(path).read_text()
            except OSError as error:
                sys.exit(f"{name} is {path!r}, which cannot be read: {error.strerror}")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


main(sys.argv[1:])
