"""python -m hssl_dist.pretrain --config configs/pretrain/real.yaml

Pretrain a network on a store, without labels, and register it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hssl_dist.cli import run_verb
from hssl_dist.config.pretrain import PretrainConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit status."""
    return run_verb("pretrain", PretrainConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
