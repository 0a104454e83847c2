"""python -m hssl_dist.demo

The whole pipe on phantoms: preprocess, pretrain on two workers, register, fine-tune, report.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hssl_dist.cli import run_verb
from hssl_dist.config.demo import DemoConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit status."""
    return run_verb("demo", DemoConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
