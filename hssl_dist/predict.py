"""python -m hssl_dist.predict --model models:/hssl-hippocampus@champion --input images --output labels

Predict label maps of images with a fine-tuned network, each on its source file's own grid.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hssl_dist.cli import run_verb
from hssl_dist.config.predict import PredictConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit status."""
    return run_verb("predict", PredictConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
