"""Where a result comes from: the code's version, the config's hash, the manifests' hashes, the parents."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import hssl_dist
from hssl_dist.records import Lineage, Manifest

if TYPE_CHECKING:
    from collections.abc import Iterable

_GIT_TIMEOUT_S = 10.0


def code_version() -> str:
    """The package's version, in a checkout with `+g<commit>`, and `.dirty` if the package differs from it."""
    package = Path(hssl_dist.__file__).parent
    commit = _git(package, "rev-parse", "--short=12", "HEAD")
    # A package installed into some other project's checkout is not that project's code.
    if not commit or _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return hssl_dist.__version__
    changed = _git(package, "status", "--porcelain", "--untracked-files=normal", "--", ".")
    return f"{hssl_dist.__version__}+g{commit}{'.dirty' if changed else ''}"


def lineage(
    config_hash: str,
    manifests: Iterable[Manifest] = (),
    parent_run: str | None = None,
    parent_model: str | None = None,
) -> Lineage:
    """The lineage of what this code makes now with that config from those manifests and parents."""
    return Lineage(
        config_hash=config_hash,
        code_version=code_version(),
        manifests={manifest.dataset: manifest.sha256 for manifest in manifests},
        parent_run=parent_run,
        parent_model=parent_model,
    )


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None if there is no git, no repository, or it does not answer."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
