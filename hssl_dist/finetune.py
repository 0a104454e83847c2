"""python -m hssl_dist.finetune --config configs/finetune/real-hippocampus.yaml

Fine-tune a registered network, or train one from scratch, on a dataset's labels.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hssl_dist.cli import run_verb
from hssl_dist.config.finetune import FinetuneConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit status."""
    return run_verb("finetune", FinetuneConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
