"""Removes from the image what nothing here runs: tests, headers, other languages, other cloud services."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

SITE = Path(sysconfig.get_path("purelib"))

# Packages whose `tests` folders nothing else imports.
_TESTED = ("matplotlib", "networkx", "nibabel", "numpy", "pandas", "pyarrow", "scipy", "sklearn", "sympy")

_UNUSED = (
    "numpy/_core/include",
    "pyarrow/include",
    "pyarrow/src",
    "ray/cpp",
    "ray/jars",
    "ray/llm",
    "ray/rllib",
    "torch/include",
    "torch/test",
)
# Of `torch/bin` only this one runs: it shares tensors between processes.
_TORCH_PROGRAM = "torch_shm_manager"
# Of the services that botocore describes, these are S3 and the ways to its credentials.
_AWS = ("s3", "sso", "sso-oidc", "sts")
# The largest that come with symbols only a debugger reads.
_STRIPPED = (
    "ray/_raylet.so",
    "ray/core/src/ray/gcs/gcs_server",
    "ray/core/src/ray/raylet/raylet",
    "tensorstore/_tensorstore.*.so",
    "torch/lib/libtorch_cpu.so",
)


def main() -> None:
    """Remove them, and say how much that was."""
    doomed = [folder for name in _TESTED for folder in (SITE / name).rglob("tests") if folder.is_dir()]
    doomed += [SITE / path for path in _UNUSED]
    doomed += [path for path in (SITE / "torch/bin").glob("*") if path.name != _TORCH_PROGRAM]
    described = (SITE / "botocore/data").iterdir()
    doomed += [path for path in described if path.is_dir() and path.name not in _AWS]
    removed = 0
    for path in doomed:
        if path.is_dir():
            removed += sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())
            shutil.rmtree(path)
        elif path.exists():
            removed += path.lstat().st_size
            path.unlink()
    for path in [path for pattern in _STRIPPED for path in SITE.glob(pattern)]:
        before = path.stat().st_size
        subprocess.run(["strip", "--strip-unneeded", path], check=True)
        removed += before - path.stat().st_size
    print(f"removed {removed / 1e6:.0f} MB")


main()
