"""`hssl pretrain` in a process with a real limit on its memory: `limited.py RANK BYTES [flags]`.

The limit is BYTES more than the process has once all is imported, and for the rank RANK alone ("" without
ranks).
"""

import os
import resource
import sys
from pathlib import Path

import hssl_dist.jobs.pretrain
from hssl_dist import pretrain


def limit(more_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size_bytes = pages * resource.getpagesize() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (size_bytes, size_bytes))


if __name__ == "__main__":
    assert hssl_dist.jobs.pretrain.run
    rank, more_bytes, *flags = sys.argv[1:]
    if os.environ.get("RANK", "") == rank:
        limit(int(more_bytes))
    sys.exit(pretrain.main(flags))
