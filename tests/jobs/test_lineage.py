"""The code's version says what ran: the commit in a checkout, the package's version elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import hssl_dist
from hssl_dist import __version__
from hssl_dist.jobs.lineage import code_version, lineage
from hssl_dist.records import Lineage
from tests.tiny_store import write_blobs

SAY_VERSION = "from hssl_dist.jobs.lineage import code_version; print(code_version())"
GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@example.org")


def _version_of(folder: Path, **environment: str) -> str:
    """What a copy of the package in `folder` says of itself."""
    return subprocess.run(
        [sys.executable, "-c", SAY_VERSION],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.strip()


def _copy_package(folder: Path) -> Path:
    source = Path(hssl_dist.__file__).parent
    return Path(shutil.copytree(source, folder / "hssl_dist", ignore=shutil.ignore_patterns("__pycache__")))


def _git(folder: Path, *arguments: str) -> str:
    command = [*GIT, "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_in_a_checkout_it_has_the_commit_and_whether_the_package_differs(tmp_path: Path) -> None:
    package = _copy_package(tmp_path)
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "add", "hssl_dist")
    _git(tmp_path, "commit", "--quiet", "--message", "a")
    commit = _git(tmp_path, "rev-parse", "--short=12", "HEAD")
    assert _version_of(tmp_path) == f"{__version__}+g{commit}"
    (tmp_path / "notes.txt").write_text("not the package's")
    assert _version_of(tmp_path) == f"{__version__}+g{commit}"
    (package / "more.py").write_text("")
    assert _version_of(tmp_path) == f"{__version__}+g{commit}.dirty"


def test_elsewhere_it_is_the_packages_version(tmp_path: Path) -> None:
    _copy_package(tmp_path)
    assert _version_of(tmp_path) == __version__  # no repository
    assert _version_of(tmp_path, PATH="/nowhere") == __version__  # no git
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "another project's")
    assert _version_of(tmp_path) == __version__  # a repository the package is no part of


def test_lineage_names_manifests_and_parents(tmp_path: Path) -> None:
    manifest = write_blobs(str(tmp_path), patients=1)
    assert lineage("c" * 64, [manifest], "run", "models:/hssl-unet/3") == Lineage(
        config_hash="c" * 64,
        code_version=code_version(),
        manifests={"blobs": manifest.sha256},
        parent_run="run",
        parent_model="models:/hssl-unet/3",
    )
