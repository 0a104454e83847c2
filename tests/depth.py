"""How many examples the property tests and the fuzzers try.

They are the same in every run. `HSSL_TEST_DEPTH=20 python -m pytest -k "properties or fuzz or flipped"` tries
twenty times as many; give it a `--timeout` to match.
"""

from __future__ import annotations

import os

from hypothesis import settings

DEPTH = int(os.environ.get("HSSL_TEST_DEPTH", "1"))


def examples(count: int) -> settings:
    """`count` examples in continuous integration, `DEPTH` times as many in a deeper run."""
    return settings(max_examples=count * DEPTH)
