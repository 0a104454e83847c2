"""python -m hssl_dist.promote --model hssl-unet

Move an alias of the model registry to a version.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hssl_dist.cli import run_verb
from hssl_dist.config.finetune import PromoteConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit status."""
    return run_verb("promote", PromoteConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
