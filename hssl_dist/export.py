"""python -m hssl_dist.export --model models:/hssl-unet@champion --to nnunet --output exported

Take a model to nnU-Net, MONAI or plain safetensors.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hssl_dist.cli import run_verb
from hssl_dist.config.export import ExportConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns the exit status."""
    return run_verb("export", ExportConfig, argv)


if __name__ == "__main__":
    sys.exit(main())
