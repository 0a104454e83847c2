"""python -m hssl_dist.preprocess --config configs/preprocess/real.yaml

Turn challenge datasets into a store of sharded OME-Zarr volumes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hssl_dist.cli import run_verb
from hssl_dist.config.preprocess import PreprocessConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit status."""
    return run_verb("preprocess", PreprocessConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
