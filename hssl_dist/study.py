"""python -m hssl_dist.study --config configs/study/quick.yaml

Compare ways of pretraining with training from scratch, by the Dice that few labels give.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hssl_dist.cli import run_verb
from hssl_dist.config.study import StudyConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit status."""
    return run_verb("study", StudyConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
