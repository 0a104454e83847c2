"""python -m hssl_dist.evaluate --model models:/hssl-hippocampus@latest
python -m hssl_dist.evaluate --predictions predictions/acdc --labels Dataset027_ACDC/labelsTs

Score a fine-tuned network on the test patients of its dataset, or label maps beside true ones.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hssl_dist.cli import run_verb
from hssl_dist.config.evaluate import EvaluateConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit status."""
    return run_verb("evaluate", EvaluateConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
