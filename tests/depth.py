"""How many examples the property tests and the fuzzers try.

They are the same in every run. `HSSL_TEST_DEPTH=20 python -m pytest -k "properties or fuzz or flipped"` tries
twenty times as many, and 0.1 a tenth; give it a `--timeout` to match.
"""

from __future__ import annotations

import os

from hypothesis import settings

DEPTH = float(os.environ.get("HSSL_TEST_DEPTH", "1"))


def deepened(count: int) -> int:
    """`count` in continuous integration, `DEPTH` times as many in a deeper run."""
    return max(1, round(count * DEPTH))


def examples(count: int) -> settings:
    """So many examples of a property."""
    return settings(max_examples=deepened(count))
