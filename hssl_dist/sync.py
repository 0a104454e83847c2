"""python -m hssl_dist.sync --runs s3://bucket/runs

Send what runs have kept while the tracking server was down.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hssl_dist.cli import run_verb
from hssl_dist.config.sync import SyncConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit status."""
    return run_verb("sync", SyncConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
